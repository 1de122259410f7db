"""`Task` and `Plan`: all that the training loop knows of a training.

A new kind of training is a subclass of `Task`: a module, micro-batches by number, the loss of one, and figures.
Optimiser, schedule, accumulation, clipping, averages, checkpoints, resuming, signals and logging are the loop's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.training.parallel import data_parallel, summed
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from neuroflamingo.recipe.schema import AdamWSettings, CheckpointSettings, LogSettings


@dataclass(frozen=True)
class Counts:
    """Numbers of what a micro-batch holds, or a whole optimiser step.

    Attributes:
        samples, scans: that were drawn.
        tokens: that are learnt.
        divisors: numbers that the task divides its sums by, so that a step has the same loss and gradient whatever its
            micro-steps and processes are.
    """

    samples: float = 0.0
    scans: float = 0.0
    tokens: float = 0.0
    divisors: tuple[float, ...] = ()

    def numbers(self) -> list[float]:
        """All counts in one list, to be summed over processes."""
        return [self.samples, self.scans, self.tokens, *self.divisors]

    @classmethod
    def total(cls, accelerator: Accelerator, parts: list[Counts]) -> Counts:
        """The sum of these in all processes; every process must ask at once."""
        sums = [sum(column) for column in zip(*(part.numbers() for part in parts), strict=True)]
        samples, scans, tokens, *divisors = summed(accelerator, *sums)
        return cls(samples, scans, tokens, tuple(divisors))


class Task(ABC):
    """A module, batches by their number, the loss of a batch, and the figures that say how good the module is.

    Attributes:
        model: on its device; its parameters that require a gradient are what trains.
        runner: what is called in training: the model or what computes its loss, in DDP if there are several processes.
        accelerator: devices, precision, other processes.
    """

    model: nn.Module
    runner: nn.Module
    accelerator: Accelerator
    validates = True
    """Whether there is anything to validate on."""

    def run_in(self, module: nn.Module) -> None:
        """Let `runner` be this module, in DDP if there are several processes."""
        self.runner = data_parallel(module, self.accelerator)

    def buffers(self) -> dict[str, Tensor]:
        """Buffers that training changes, by name, the same in every process: they are saved with the weights."""
        return {}

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: what trains, with and without weight decay."""

    @abstractmethod
    def micro_batches(self, first: int) -> Iterator[Any]:
        """This process's shares of the micro-batches from this number on, without end.

        Each depends on its number and the seed only, so resuming is asking for the next one.
        """

    @abstractmethod
    def count(self, batch: Any) -> Counts:
        """Count what a micro-batch holds."""

    @abstractmethod
    def loss(self, batch: Any, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute this micro-batch's part of the loss of the whole step, and the parts of it that are logged.

        Args:
            batch: from `micro_batches`.
            step: counts of the optimiser step, over all its micro-steps and processes.
            micro_step: its number in the training.
        """

    def check_gradients(self, step: Counts) -> None:  # noqa: B027
        """Look at the gradients of a whole step, before they are clipped; a task may stop a training that cannot learn.

        Args:
            step: counts of the step, over all its micro-steps and processes.
        """

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Figures of the model on held-out cases, the same in every process; called without gradients."""

    @abstractmethod
    def better(self, figures: dict[str, float], best: dict[str, float]) -> bool:
        """Whether these figures are at least as good as the best so far, of which there may be none yet."""

    def names(self, batch: Any) -> list[str]:
        """Names of a micro-batch's samples, for error messages."""
        return []

    def smaller(self) -> list[str]:
        """Settings that take less memory, beside a smaller batch."""
        return []


@dataclass(frozen=True)
class Plan:
    """The part of a recipe that the loop reads: how long, how fast, how often.

    Attributes:
        name: shown with the progress.
        seed: of dropout and the like.
        optim: optimiser, schedule, length.
        every, patience: steps between validations, and how many without a better one end the training.
        checkpoint, log: as in the recipe.
        recipe: resolved; kept in every checkpoint.
        section: of the recipe that `optim` stands in, with its dot; empty: at the top.
        free: beginnings of the keys that may change when a run is resumed.
    """

    name: str
    seed: int
    optim: AdamWSettings
    every: int
    patience: int | None
    checkpoint: CheckpointSettings
    log: LogSettings
    recipe: dict[str, Any]
    section: str = ""
    free: tuple[str, ...] = ()

    def share(self, accelerator: Accelerator) -> int:
        """Samples of a micro-step for each process.

        Raises:
            ConfigError: the processes cannot share a batch evenly.
        """
        world, batch = accelerator.num_processes, self.optim.batch
        if batch % world:
            raise ConfigError(
                f"{self.section}optim.batch: {world} processes cannot share it evenly",
                expected=f"a multiple of {world}: it is what all devices read together in a micro-step",
                seen=str(batch),
                hint=f"--set {self.section}optim.batch={world * max(1, round(batch / world))}",
            )
        return batch // world

    def other_settings(self, checkpoint: Path) -> str:
        """A hint: the options that go on from a checkpoint with another learning rate."""
        if not self.section:
            how = f"--resume {checkpoint} --set optim.lr=..."
            return f"look at these samples; then go on with other settings: {how}"
        settings = (f"name={self.recipe['name']}-2", f"{self.section}start={checkpoint}", f"{self.section}optim.lr=...")
        return "begin from it with other settings: " + " ".join(f"--set {setting}" for setting in settings)
