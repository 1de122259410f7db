"""Fusion stage: resampler and gated blocks between the frozen encoder and the frozen language model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo.evaluation.greedy import write_greedily
from neuroflamingo.evaluation.readout import SIDES
from neuroflamingo.evaluation.scoring import score_reports
from neuroflamingo.findings.unreadable import unreadable_report
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, LOBES, Finding, FindingClass, Side, mirror
from neuroflamingo.findings.wording import RenderedReport, render_report
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo.training.embedded.language_model_stage import BLANK_SHARE, Texts, encode_reports
from neuroflamingo.training.embedded.stage import StageTask, plan_of
from neuroflamingo.training.scan_gradients import ScanGradients
from neuroflamingo.training.task import Counts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from numpy.typing import NDArray
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, FusionStageSettings
    from neuroflamingo.training.embedded.painted_pool import CasePool
    from neuroflamingo.training.embedded.token_cache import TokenCache
    from neuroflamingo_encoders.contract import BrainEncoder

FOCAL_SLOTS = len(FOCAL) * len(FOCAL_REGIONS) * len(SIDES)
SLOTS = FOCAL_SLOTS + 2 * 3 + len(LOBES) * 2
VALIDATION_BATCH = 64


def presence_targets(findings: tuple[Finding, ...]) -> Tensor:
    """Encode which findings are present as 0 or 1: (class, region, side), grades, lobe and side of atrophy: `[95]`."""
    out = torch.zeros(SLOTS)
    for f in findings:
        if f.kind in FOCAL:
            place = FOCAL_REGIONS.index(f.region) * len(SIDES) + SIDES.index(f.side)  # type: ignore[arg-type]
            out[FOCAL.index(f.kind) * len(FOCAL_REGIONS) * len(SIDES) + place] = 1
        elif f.kind is FindingClass.ATROPHY:
            for k, side in enumerate((Side.LEFT, Side.RIGHT)):
                if f.side in (side, Side.BILATERAL):
                    out[FOCAL_SLOTS + 6 + 2 * LOBES.index(f.region) + k] = 1  # type: ignore[arg-type]
        else:
            first = 0 if f.kind is FindingClass.WHITE_MATTER_LESIONS else 3
            out[FOCAL_SLOTS + first + (f.grade or 1) - 1] = 1
    return out


def stated_sizes(
    findings: tuple[Finding, ...], jitter_mm: float, step_mm: float, rng: np.random.Generator
) -> list[Finding]:
    """Round diameters to the steps that a report states, at least one step, after adding Gaussian noise."""
    noise = rng.normal(0.0, jitter_mm, len(findings))
    return [
        f if f.size_mm is None else f.model_copy(update={"size_mm": step_mm * max(1, round((f.size_mm + n) / step_mm))})
        for f, n in zip(findings, noise.tolist(), strict=True)
    ]


def drawn_reports(
    truths: list[tuple[Finding, ...]],
    blank: NDArray[np.bool_],
    pool: CasePool,
    settings: FusionStageSettings,
    rng: np.random.Generator,
) -> tuple[list[RenderedReport], list[int]]:
    """Draw the report of each scan, and the rows with another head's report, in which only the impression is learnt."""
    copied = np.flatnonzero(~blank & (rng.random(len(truths)) < settings.copied_share)).tolist()
    written = list(truths)
    for row in copied:
        written[row] = pool[int(rng.integers(len(pool)))].findings
    reports = [
        unreadable_report(settings.style)
        if none
        else render_report(stated_sizes(t, settings.size_jitter_mm, settings.size_step_mm, rng), 0, settings.style)
        for t, none in zip(written, blank, strict=True)
    ]
    return reports, copied


class FusionBatch(NamedTuple):
    """Tokens of scans `[batch, 1, token, width]`, their reports, and the presence of findings `[batch, slot]`."""

    tokens: Tensor
    texts: Texts
    present: Tensor

    def to(self, device: torch.device) -> FusionBatch:
        """The same batch on a device."""
        return FusionBatch(self.tokens.to(device), self.texts.to(device), self.present.to(device))

    def weight(self) -> float:
        """Sum of the loss weights of the tokens with labels."""
        return float(self.texts.weights[:, 1:].sum())


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
        logits = torch.logsumexp(self.presence(out.latents[:, 0]).float(), dim=1)
        presence = F.binary_cross_entropy_with_logits(logits, batch.present, reduction="sum") / len(logits)
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
    }
    return NeuroFlamingo.assemble(
        encoder,
        language_model,
        tokenizer,
        cross_attn_every_n_layers=settings.every_n_layers,
        resampler=resampler,
        gate=float(np.arctanh(settings.gate)),
        heads=settings.heads,
        dim_head=settings.dim_head,
    )


def draw_batch(
    cache: TokenCache, tokenizer: PreTrainedTokenizerFast, settings: FusionStageSettings, seed: int, micro_step: int
) -> FusionBatch:
    """Draw a whole micro-batch; half of the heads are mirrored, a few are blank."""
    rng, size = np.random.default_rng([seed, 5, micro_step]), settings.optim.batch
    chosen, flips = rng.integers(len(cache.pool), size=size), rng.integers(2, size=size)
    truths = [
        mirror(cache.pool[i].findings) if flip else cache.pool[i].findings
        for i, flip in zip(chosen.tolist(), flips.tolist(), strict=True)
    ]
    blank = rng.random(size) < BLANK_SHARE
    truths = [() if none else t for t, none in zip(truths, blank, strict=True)]
    reports, copied = drawn_reports(truths, blank, cache.pool, settings, rng)
    tokens = cache[flips, chosen]
    tokens[torch.from_numpy(blank)] = cache.blank
    texts = encode_reports(tokenizer, reports, settings.finding_weight, copied)
    return FusionBatch(tokens, texts, torch.stack([presence_targets(t) for t in truths]))


class FusionTask(StageTask):
    """Task of the fusion stage: reports of scans that the encoder has not seen; encoder and language model are frozen.

    Weights are selected by the full-finding F1 of parsed greedy reports, never by the loss.
    """

    model: Fusion
    choose_by = "full_finding_f1"

    def __init__(
        self,
        recipe: EmbeddedRecipe,
        model: NeuroFlamingo,
        tokenizer: PreTrainedTokenizerFast,
        cache: TokenCache,
        validation: TokenCache,
        accelerator: Accelerator,
    ) -> None:
        torch.manual_seed(recipe.seed)
        fusion = Fusion(model, model.config.resampler["dim"]).to(accelerator.device)
        super().__init__(fusion, plan_of(recipe, "fusion"), accelerator)
        self.settings, self.tokenizer = recipe.fusion, tokenizer
        self.cache, self.validation = cache, validation
        self.run_in(fusion)
        self.scan_gradients = ScanGradients(fusion, accelerator)

    @cached_property
    def truth(self) -> list[tuple[Finding, ...]]:
        """Findings of the validation cases."""
        return [self.validation.pool[i].findings for i in range(len(self.validation.pool))]

    def micro_batches(self, first: int) -> Iterator[FusionBatch]:
        """Draw scans and newly worded reports, from the given number on."""
        for number in count(first):
            batch = draw_batch(self.cache, self.tokenizer, self.settings, self.plan.seed, number)
            yield FusionBatch(batch.tokens[self.rows], batch.texts.rows(self.rows), batch.present[self.rows])

    def count(self, batch: FusionBatch) -> Counts:
        """Count the scans and labelled tokens of a micro-batch, and the divisors of its two losses."""
        scans = float(len(batch.tokens))
        return Counts(scans, scans, batch.texts.learnt(), (batch.weight(), scans))

    def loss(self, batch: FusionBatch, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        """Compute the losses of the text and of the presence of findings."""
        weight, scans = step.divisors
        text, presence = self.runner(batch.to(self.accelerator.device))
        text, presence = text * (batch.weight() / weight), presence * (len(batch.tokens) / scans)
        parts = {"text": float(text.detach()), "presence": float(presence.detach())}
        return text + self.settings.presence_weight * presence, parts

    def check_gradients(self, step: Counts) -> None:
        """Stop a training in which the scans have no part; see `ScanGradients`."""
        self.scan_gradients.check(step.scans)

    def figures(self) -> dict[str, float]:
        """Score greedy reports; each process writes its share."""
        cases = np.asarray(self.own_share(len(self.truth)), dtype=int)
        tokens = self.validation[np.zeros_like(cases), cases]
        texts = write_texts(self.model.model, self.tokenizer, tokens) if len(cases) else []
        scores = score_reports(self.truth, self.gathered(texts))
        keys = ("finding_f1", "full_finding_f1", "laterality_accuracy", "size_mae_mm", "hallucination_on_normals")
        return {key: scores[key] or 0.0 for key in (*keys, "impression_agreement", "parse_coverage")}


def write_texts(model: NeuroFlamingo, tokenizer: PreTrainedTokenizerFast, tokens: Tensor) -> list[str]:
    """Write greedy reports for precomputed tokens `[case, 1, token, width]`."""
    return write_greedily(model, tokenizer, IMAGE, tokens, batch=VALIDATION_BATCH)
