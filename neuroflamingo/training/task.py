"""`Task` and `Plan`: everything that the training loop needs to know.

A new kind of training is a subclass of `Task`: a module, micro-batches by number, their loss, and validation figures.
The loop does optimiser, schedule, accumulation, clipping, averages, checkpoints, resuming, signals and logging.
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
    """Counts of a micro-batch, or of a whole optimiser step.

    Attributes:
        samples, scans: number drawn.
        tokens: number of tokens with labels.
        divisors: divisors of the task's sums, so that loss and gradient of a step do not depend on the number of
            micro-steps and processes.
    """

    samples: float = 0.0
    scans: float = 0.0
    tokens: float = 0.0
    divisors: tuple[float, ...] = ()

    def numbers(self) -> list[float]:
        """Flatten all counts to one list, to be summed over processes."""
        return [self.samples, self.scans, self.tokens, *self.divisors]

    @classmethod
    def total(cls, accelerator: Accelerator, parts: list[Counts]) -> Counts:
        """Sum counts over all processes; all processes must call it together."""
        sums = [sum(column) for column in zip(*(part.numbers() for part in parts), strict=True)]
        samples, scans, tokens, *divisors = summed(accelerator, *sums)
        return cls(samples, scans, tokens, tuple(divisors))


class Task(ABC):
    """Module to train, micro-batches by number, their loss, and validation figures.

    Attributes:
        model: model on its device; parameters that require a gradient are trained.
        runner: module to call in training: the model or a module that computes its loss, in DDP with several processes.
        accelerator: devices, precision, other processes.
    """

    model: nn.Module
    runner: nn.Module
    accelerator: Accelerator
    validates = True
    """Whether there are validation cases."""

    def run_in(self, module: nn.Module) -> None:
        """Set `runner` to this module, in DDP if there are several processes."""
        self.runner = data_parallel(module, self.accelerator)

    def buffers(self) -> dict[str, Tensor]:
        """Name the buffers that training changes, equal in all processes; they are saved with the weights."""
        return {}

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the trainable parameters for the optimiser, with and without weight decay."""

    @abstractmethod
    def micro_batches(self, first: int) -> Iterator[Any]:
        """Yield this process's shares of the micro-batches from this number on, without end.

        Each depends only on its number and the seed, so a resumed run simply starts at the next number.
        """

    @abstractmethod
    def count(self, batch: Any) -> Counts:
        """Count the contents of a micro-batch."""

    @abstractmethod
    def loss(self, batch: Any, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute this micro-batch's share of the loss of the whole step, and its parts to log.

        Args:
            batch: from `micro_batches`.
            step: counts of the optimiser step, over all micro-steps and processes.
            micro_step: number of the micro-step in the run.
        """

    def check_gradients(self, step: Counts) -> None:  # noqa: B027
        """Look at the gradients of a whole step, before they are clipped; a task may stop a training that cannot learn.

        Args:
            step: counts of the step, over all its micro-steps and processes.
        """

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Compute validation figures, equal in all processes; called without gradients."""

    @abstractmethod
    def better(self, figures: dict[str, float], best: dict[str, float]) -> bool:
        """Tell whether these figures are at least as good as the best so far (empty before the first validation)."""

    def names(self, batch: Any) -> list[str]:
        """Name the samples of a micro-batch, for error messages."""
        return []

    def smaller(self) -> list[str]:
        """Suggest settings that need less memory, besides a smaller batch."""
        return []


@dataclass(frozen=True)
class Plan:
    """Part of a recipe that the loop reads: schedule and intervals.

    Attributes:
        name: shown with the progress.
        seed: seed of dropout and the like.
        optim: optimiser, schedule, number of steps.
        every, patience: steps between validations, and the number of validations without improvement that ends the run.
        checkpoint, log: as in the recipe.
        recipe: the resolved recipe, stored in every checkpoint.
        section: prefix of `optim` in the recipe, with its dot; empty at the top level.
        free: prefixes of the keys that may change when a run is resumed.
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

    def share(self, world: int) -> int:
        """Compute the samples of a micro-step per process.

        Args:
            world: number of processes.

        Raises:
            ConfigError: the batch size is not divisible by the number of processes.
        """
        batch = self.optim.batch
        if batch % world:
            raise ConfigError(
                f"{self.section}optim.batch: {world} processes cannot divide it evenly",
                expected=f"a multiple of {world}: the number of samples of all devices together in a micro-step",
                seen=str(batch),
                hint=f"--set {self.section}optim.batch={world * max(1, round(batch / world))}",
            )
        return batch // world

    def other_settings(self, checkpoint: Path) -> str:
        """Make the hint with the options that continue from a checkpoint with another learning rate."""
        if not self.section:
            how = f"--resume {checkpoint} --set optim.lr=..."
            return f"look at these samples; then go on with other settings: {how}"
        settings = (f"name={self.recipe['name']}-2", f"{self.section}start={checkpoint}", f"{self.section}optim.lr=...")
        return "begin from it with other settings: " + " ".join(f"--set {setting}" for setting in settings)
