"""Fusion stage: resampler and gated blocks between the frozen encoder and the frozen language model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo.evaluation.change_scores import score_changes
from neuroflamingo.evaluation.greedy import write_greedily
from neuroflamingo.evaluation.scoring import score_reports
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo.training.embedded.fusion_batches import SLOTS, FusionBatch, FusionCases, draw_batch
from neuroflamingo.training.embedded.stage import StageTask, plan_of
from neuroflamingo.training.scan_gradients import ScanGradients
from neuroflamingo.training.task import Counts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from neuroflamingo.findings.changes import Comparison
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, FusionStageSettings
    from neuroflamingo.training.embedded.token_cache import TokenCache
    from neuroflamingo_encoders.contract import BrainEncoder

VALIDATION_BATCH = 64


class Fusion(nn.Module):
    """Model in training, with an auxiliary head that is discarded afterwards.

    The head takes the smooth maximum over latents, so a single latent can indicate a finding.
    """

    def __init__(self, model: NeuroFlamingo, width: int) -> None:
        super().__init__()
        self.model = model
        self.presence = nn.Linear(width, SLOTS)
        nn.init.constant_(self.presence.bias, -7.5)

    def forward(self, batch: FusionBatch) -> tuple[Tensor, Tensor]:
        """Compute the mean losses of the batch: of the text, and of the presence of findings."""
        ids, mask, labels, weights = batch.texts
        out = self.model(
            input_ids=ids, attention_mask=mask, scan_tokens=batch.tokens, labels=labels, loss_weights=weights
        )
        logits = torch.logsumexp(self.presence(out.latents).float(), dim=2)
        presence = F.binary_cross_entropy_with_logits(logits, batch.present, reduction="sum") / batch.scans()
        return out.loss, presence


def assemble(
    encoder: BrainEncoder,
    language_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: FusionStageSettings,
) -> tuple[NeuroFlamingo, NeuroFlamingoProcessor]:
    """Build the untrained model of a recipe."""
    resampler = {
        "dim": encoder.card.output.width,
        "depth": settings.resampler_depth,
        "num_latents": settings.latents,
        "heads": settings.heads,
        "dim_head": settings.dim_head,
        "max_num_media": settings.prompts.scans if settings.prompts.scans > 1 else None,
    }
    return NeuroFlamingo.assemble(
        encoder,
        language_model,
        tokenizer,
        cross_attn_every_n_layers=settings.every_n_layers,
        only_attend_immediate_media=settings.only_attend_immediate_media,
        resampler=resampler,
        gate=float(np.arctanh(settings.gate)),
        heads=settings.heads,
        dim_head=settings.dim_head,
    )


class FusionTask(StageTask):
    """Task of the fusion stage: reports of scans that the encoder has not seen; encoder and language model are frozen.

    Weights are selected by the full-finding F1 of parsed greedy reports, and by how many changes follow-ups name right
    where these are learnt; never by the loss.
    """

    model: Fusion
    choose_by = "score"

    def __init__(
        self,
        recipe: EmbeddedRecipe,
        model: NeuroFlamingo,
        tokenizer: PreTrainedTokenizerFast,
        cases: FusionCases,
        validation: FusionCases,
        accelerator: Accelerator,
    ) -> None:
        torch.manual_seed(recipe.seed)
        fusion = Fusion(model, model.config.resampler["dim"]).to(accelerator.device)
        super().__init__(fusion, plan_of(recipe, "fusion"), accelerator)
        self.settings, self.tokenizer = recipe.fusion, tokenizer
        self.cases, self.validation = cases, validation
        self.run_in(fusion)
        self.scan_gradients = ScanGradients(fusion, accelerator)

    @cached_property
    def truth(self) -> list[tuple[Finding, ...]]:
        """Findings of the validation cases."""
        pool = self.validation.single.pool
        return [pool[i].findings for i in range(len(pool))]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """True changes of the validation pairs."""
        assert self.validation.pairs is not None
        pool = self.validation.pairs.pool
        compared = (pool[i].comparison for i in range(len(pool)))
        return [one for one in compared if one is not None]

    def micro_batches(self, first: int) -> Iterator[FusionBatch]:
        """Draw scans and newly worded reports, from the given number on."""
        for number in count(first):
            yield draw_batch(self.cases, self.tokenizer, self.settings, self.plan.seed, number).rows(self.rows)

    def count(self, batch: FusionBatch) -> Counts:
        """Count the scans and labelled tokens of a micro-batch, and the divisors of its two losses."""
        scans = batch.scans()
        return Counts(float(len(batch.tokens)), scans, batch.texts.learnt(), (batch.weight(), scans))

    def loss(self, batch: FusionBatch, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute the losses of the text and of the presence of findings."""
        weight, scans = step.divisors
        text, presence = self.runner(batch.to(self.accelerator.device))
        text, presence = text * (batch.weight() / weight), presence * (batch.scans() / scans)
        parts = {"text": float(text.detach()), "presence": float(presence.detach())}
        return text + self.settings.presence_weight * presence, parts

    def check_gradients(self, step: Counts) -> None:
        """Stop a training in which the scans have no part; see `ScanGradients`."""
        self.scan_gradients.check(step.scans)

    def figures(self) -> dict[str, float]:
        """Score greedy reports; each process writes its share."""
        scores = score_reports(self.truth, self._texts(self.validation.single, IMAGE))
        keys = ("finding_f1", "full_finding_f1", "laterality_accuracy", "size_mae_mm", "hallucination_on_normals")
        figures = {key: scores[key] or 0.0 for key in (*keys, "impression_agreement", "parse_coverage")}
        figures["score"] = figures["full_finding_f1"]
        if self.validation.pairs is not None:
            texts = self._texts(self.validation.pairs, IMAGE * 2)
            figures["change_kinds_right"] = score_changes(self.comparisons, texts).kinds_right or 0.0
            figures["score"] = 0.5 * (figures["score"] + figures["change_kinds_right"])
        return figures

    def _texts(self, cache: TokenCache, prompt: str) -> list[str]:
        """Greedy reports of cached scans."""
        cases = np.asarray(self.own_share(len(cache.pool)), dtype=int)
        if not len(cases):
            return self.gathered([])
        tokens = cache[np.zeros_like(cases), cases]
        return self.gathered(write_greedily(self.model.model, self.tokenizer, prompt, tokens, batch=VALIDATION_BATCH))
