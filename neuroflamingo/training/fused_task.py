"""`FusedTask`: train a fused model on the next token of texts about scans, by a `Recipe`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.data.labels import IGNORED
from neuroflamingo.recipe.schema import KINDS, Recipe
from neuroflamingo.training.checkpoints import FREE
from neuroflamingo.training.parallel import inputs_of, runner_of
from neuroflamingo.training.scan_gradients import STEPS, ScanGradients
from neuroflamingo.training.task import Counts, Plan, Task
from neuroflamingo.training.trainable import parameter_groups
from neuroflamingo.training.validation import Validation

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.data.batches import TrainingBatches
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor


def plan_of(recipe: Recipe) -> Plan:
    """Make the plan of a recipe."""
    return Plan(
        name=recipe.name,
        seed=recipe.seed,
        optim=recipe.optim,
        every=recipe.validation.every,
        patience=recipe.validation.patience,
        checkpoint=recipe.checkpoint,
        log=recipe.log,
        recipe=recipe.model_dump(mode="json"),
        free=FREE,
    )


class FusedTask(Task):
    """Task of predicting the next token of reports, documents and conversations about scans.

    Args:
        recipe: see `Recipe`.
        model: frozen but for its trainable parts; it is moved to this process's device, and sharded with FSDP.
        processor: its tokenizer and preprocessing.
        batches: the micro-batches, by number.
        accelerator: devices, precision, other processes.
    """

    model: NeuroFlamingo

    def __init__(
        self,
        recipe: Recipe,
        model: NeuroFlamingo,
        processor: NeuroFlamingoProcessor,
        batches: TrainingBatches,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.model, self.processor = recipe, model, processor
        self.batches, self.accelerator = batches, accelerator
        self.runner = runner_of(model, recipe.run, accelerator)
        self.validation = Validation(recipe.validation, batches, accelerator)
        by_chance = recipe.media_placement == "coin"  # half of the micro-steps show no scan to the text after it
        self.scan_gradients = ScanGradients(model, accelerator, STEPS * (4 if by_chance else 1))
        self.validates = bool(batches.held_out)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters for the optimiser, with their weight decay and learning rates."""
        return parameter_groups(self.model, self.recipe.optim)

    def micro_batches(self, first: int) -> Iterator[dict[str, Any]]:
        """Load micro-batches, from the given number on."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return iter(self.batches.loader(first, rank, world, self.recipe.data.workers))

    def count(self, batch: dict[str, Any]) -> Counts:
        """Count a micro-batch; the labelled tokens of each kind are the divisors."""
        learnt = batch["kinds"][:, 1:][batch["labels"][:, 1:] != IGNORED]
        kinds = tuple(float(tokens) for tokens in torch.bincount(learnt, minlength=len(KINDS)).tolist())
        scans = float(batch["scan_mask"].sum()) if "scan_mask" in batch else 0.0
        return Counts(float(len(batch["ids"])), scans, sum(kinds), kinds)

    def loss(self, batch: dict[str, Any], step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of the labelled tokens of a micro-batch, as its share of the step's."""
        return self.runner(**self._inputs(batch, step, micro_step)).loss, {}

    def check_gradients(self, step: Counts) -> None:
        """Stop a training in which the scans have no part; see `ScanGradients`."""
        self.scan_gradients.check(step.scans)

    def figures(self) -> dict[str, float]:
        """Compute the figures of the held-out samples."""
        return self.validation.figures(self.runner)

    def better(self, figures: dict[str, float], best: dict[str, float]) -> bool:
        """Tell whether the figure that the recipe names is better than before."""
        return self.validation.better(figures, best)

    def names(self, batch: dict[str, Any]) -> list[str]:
        """Name the samples of a micro-batch, for messages."""
        return batch["ids"]

    def smaller(self) -> list[str]:
        """Suggest settings that need less memory, for the error when it runs out."""
        tokens = f"or a smaller data.max_tokens (now {self.recipe.data.max_tokens})"
        return ["--set run.gradient_checkpointing=on", tokens]

    def _inputs(self, batch: dict[str, Any], step: Counts, micro_step: int) -> dict[str, Any]:
        """Make the model's arguments; the loss is divided by the step's labelled tokens, or each kind's by its own."""
        inputs, recipe = inputs_of(batch, self.accelerator.device), self.recipe
        total = step.tokens
        if recipe.data.reduction == "kinds":
            each = 1.0 / torch.tensor([*step.divisors, 1.0]).clamp(min=1.0)  # the last one is for padding, number -1
            inputs["loss_weights"] = inputs["loss_weights"] * each[batch["kinds"]].to(inputs["loss_weights"])
            total = 1.0
        inputs["num_items_in_batch"] = total
        if recipe.optim.label_smoothing:
            inputs["smoothing"] = recipe.optim.label_smoothing
        if recipe.media_placement == "coin":
            rng = np.random.default_rng([recipe.seed, 11, micro_step])
            inputs["media_shift"] = "previous" if rng.random() < 0.5 else "next"
        return inputs
