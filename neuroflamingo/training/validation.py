"""Figures of a model on held-out samples: the loss, how far it rests on the scans, and the findings of its reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neuroflamingo.training.labels import IGNORED
from neuroflamingo.training.parallel import is_sharded, summed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.data.batches import TrainingBatches
    from neuroflamingo.data.manifest import Sample
    from neuroflamingo.training.recipe import Recipe

SCORES = ("finding_f1", "full_finding_f1", "laterality_accuracy", "size_mae_mm", "hallucination_on_normals")


@dataclass(frozen=True)
class Validation:
    """What is measured at each validation.

    Attributes:
        recipe: its `validation` section.
        held_out: the samples, and how they become batches.
        accelerator: processes share the work.
    """

    recipe: Recipe
    held_out: TrainingBatches
    accelerator: Accelerator

    @property
    def samples(self) -> list[Sample]:
        """In order, as many as the recipe says."""
        return self.held_out.samples[: self.recipe.validation.samples]

    @torch.no_grad()
    def figures(self, runner: nn.Module) -> dict[str, float]:
        """`loss`; `loss_other_scan`, the same with another patient's scans, and `reliance`, how much worse that is;
        where the data have findings, the exact scores of written reports.

        A model that does not look has a reliance of 0.
        """
        runner.eval()
        samples = self.samples
        paired = [(one, other) for one in samples if (other := partner(one, samples)) is not None]
        figures = {"loss": self._loss(runner, samples)}
        if paired:
            known = figures["loss"] if len(paired) == len(samples) else self._loss(runner, [one for one, _ in paired])
            swapped = [one.model_copy(update={"scans": other.scans}) for one, other in paired]
            figures["loss_other_scan"] = self._loss(runner, swapped)
            figures["reliance"] = figures["loss_other_scan"] - known
        return figures | self._findings(runner)

    def chosen(self, figures: dict[str, float]) -> str:
        """The name of the figure by which the best checkpoint is chosen.

        Raises:
            ConfigError: there is no such figure.
        """
        from neuroflamingo_preprocessing.errors import ConfigError

        asked = self.recipe.validation.choose_by
        if asked == "auto":
            return "full_finding_f1" if "full_finding_f1" in figures else "loss"
        if asked not in figures:
            raise ConfigError(
                f"validation.choose_by: there is no figure {asked}", expected=", ".join(figures), seen=asked
            )
        return asked

    def _loss(self, runner: nn.Module, samples: Sequence[Sample]) -> float:
        """Mean over learnt tokens of all samples, shared among processes."""
        from neuroflamingo.training.loop import inputs_of

        total = tokens = 0.0
        for chunk, counts in self._shares(samples):
            batch = self.held_out.collated(chunk)
            learnt = float((batch["labels"][:, 1:] != IGNORED).sum())
            inputs = inputs_of(batch, self.accelerator.device) | {"num_items_in_batch": 1.0}
            inputs.pop("label_weights")
            with self.accelerator.autocast():
                loss = float(runner(**inputs).loss)
            total, tokens = total + counts * loss, tokens + counts * learnt
        total, tokens = summed(self.accelerator, total, tokens)
        return total / max(tokens, 1.0)

    def _shares(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], float]]:
        """This process's batches, and 1.0; all processes get the same number, the spare ones with 0.0."""
        size = max(1, self.recipe.optim.batch // self.accelerator.num_processes)
        chunks = [samples[first : first + size] for first in range(0, len(samples), size)]
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for first in range(0, len(chunks), world):
            mine = first + rank
            yield (chunks[mine], 1.0) if mine < len(chunks) else (chunks[0], 0.0)

    def _findings(self, runner: nn.Module) -> dict[str, float]:
        """Scores of written reports against known findings; nothing where there are none."""
        from neuroflamingo.evaluation.scoring import score_reports

        known = [one for one in self.samples if one.findings is not None and one.kind == "pairs"]
        known = known[: self.recipe.validation.write]
        if not known:
            return {}
        truth = [one.findings or () for one in known]
        size = max(1, self.recipe.optim.batch)
        texts = [
            text for first in range(0, len(known), size) for text in self._written(runner, known[first : first + size])
        ]
        scores = score_reports(truth, texts)
        return {name: float(scores[name] or 0.0) for name in SCORES}

    def _written(self, runner: nn.Module, samples: Sequence[Sample]) -> list[str]:
        """Greedy reports. Every process writes all of them: how long they get is not known beforehand."""
        model: Any = runner.module if isinstance(runner, nn.parallel.DistributedDataParallel) else runner
        prompts = self.held_out.prompts(samples)
        inputs = {name: value.to(self.accelerator.device) for name, value in prompts.items()}
        tokenizer = self.held_out.tokenizer
        with self.accelerator.autocast():
            ids = model.generate(
                **inputs,
                max_new_tokens=self.recipe.validation.max_new_tokens,
                do_sample=False,
                synced_gpus=is_sharded(model),
            )
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def partner(sample: Sample, samples: Sequence[Sample]) -> Sample | None:
    """Another patient's sample with as many scans, the next one in the list; None: there is none."""
    if not sample.scans:
        return None
    place = next(n for n, one in enumerate(samples) if one is sample)
    for other in (*samples[place + 1 :], *samples[:place]):
        same = other.subject == sample.subject if sample.subject is not None else other.scans == sample.scans
        if not same and len(other.scans) == len(sample.scans):
            return other
    return None
