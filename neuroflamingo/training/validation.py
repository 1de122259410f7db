"""Figures of a model on held-out samples: loss, reliance on the scans, and the findings in its reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neuroflamingo.data.labels import IGNORED
from neuroflamingo.evaluation.scoring import score_reports
from neuroflamingo.training.parallel import inputs_of, is_sharded, reshard, summed
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.data.batches import TrainingBatches
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.recipe.schema import ValidationSettings

SCORES = ("finding_f1", "full_finding_f1", "laterality_accuracy", "size_mae_mm", "hallucination_on_normals")
LESS_IS_BETTER = ("loss", "loss_other_scan", "size_mae_mm", "hallucination_on_normals")


@dataclass(frozen=True)
class Validation:
    """Validation of a recipe.

    Attributes:
        settings: of the recipe.
        batches: the held-out samples.
        accelerator: processes share the work.
    """

    settings: ValidationSettings
    batches: TrainingBatches
    accelerator: Accelerator

    @torch.no_grad()
    def figures(self, runner: nn.Module) -> dict[str, float]:
        """Compute all figures of a model, equal in all processes.

        Returns:
            `loss`, the mean over labelled tokens; if there are scans, `loss_other_scan`, the same with another
            patient's scan, and `reliance`, the difference (0 for a model that ignores its scans); if the data have
            findings, the exact scores of generated reports.
        """
        runner.eval()
        share = (self.settings.samples, self.accelerator.process_index, self.accelerator.num_processes)
        (loss,) = self._losses(runner, ((batch,) for batch in self.batches.validation(*share)), 1)
        own, other = self._losses(runner, self.batches.swapped(*share), 2)
        figures = {"loss": loss}
        if own:
            figures |= {"loss_other_scan": other, "reliance": other - own}
        figures |= self._findings(runner)
        reshard(runner)
        return figures

    def chosen(self, figures: dict[str, float]) -> str:
        """Name the figure by which the best checkpoint is chosen.

        Raises:
            ConfigError: there is no such figure.
        """
        asked = self.settings.choose_by
        if asked == "auto":
            return "full_finding_f1" if "full_finding_f1" in figures else "loss"
        if asked not in figures:
            raise ConfigError(
                f"validation.choose_by: there is no figure '{asked}'", expected=", ".join(figures), seen=asked
            )
        return asked

    def better(self, figures: dict[str, float], best: dict[str, float]) -> bool:
        """Tell whether these figures are as good as the best so far, which may be empty."""
        name = self.chosen(figures)
        if name not in best:
            return True
        return figures[name] <= best[name] if name in LESS_IS_BETTER else figures[name] >= best[name]

    def _losses(self, runner: nn.Module, rows: Iterable[tuple[dict[str, Any], ...]], count: int) -> list[float]:
        """Compute the mean losses over the labelled tokens of each column of batches, over all processes."""
        totals, tokens = [0.0] * count, [0.0] * count
        for row in rows:
            for column, batch in enumerate(row):
                inputs = inputs_of(batch, self.accelerator.device) | {"num_items_in_batch": 1.0}
                inputs.pop("loss_weights")
                with self.accelerator.autocast():
                    totals[column] += float(runner(**inputs).loss)
                tokens[column] += float((batch["labels"][:, 1:] != IGNORED).sum())
        sums = summed(self.accelerator, *totals, *tokens)
        return [total / max(number, 1.0) for total, number in zip(sums[:count], sums[count:], strict=True)]

    def _findings(self, runner: nn.Module) -> dict[str, float]:
        """Score generated reports against known findings; empty if there are none."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        pairs: list[tuple[tuple[Finding, ...], str]] = []
        for batch in self.batches.prompts(self.settings.write, rank, world) if self.settings.write else ():
            texts = self._written(runner, batch)
            pairs += zip(batch["findings"], texts[: len(batch["ids"])], strict=True)
        if world > 1:
            from accelerate.utils import gather_object

            pairs = gather_object(pairs)
        if not pairs:
            return {}
        scores = score_reports([truth for truth, _ in pairs], [text for _, text in pairs])
        names = SCORES if any(truth for truth, _ in pairs) else ("hallucination_on_normals",)
        return {name: float(value) for name in names if (value := scores[name]) is not None}

    def _written(self, runner: nn.Module, batch: dict[str, Any]) -> list[str]:
        """Generate greedy answers to the prompts of a batch."""
        model: Any = runner.module if isinstance(runner, nn.parallel.DistributedDataParallel) else runner
        device = self.accelerator.device
        inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        with self.accelerator.autocast():
            ids = model.generate(
                **inputs,
                max_new_tokens=self.settings.max_new_tokens,
                do_sample=False,
                synced_gpus=is_sharded(model),
            )
        tokenizer = self.batches.tokenizer
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
