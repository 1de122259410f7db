"""Resampler and gated blocks between the frozen encoder and the frozen language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.evaluation.greedy import write_greedily
from neuroflamingo.evaluation.readout import SIDES
from neuroflamingo.evaluation.scoring import score_reports
from neuroflamingo.findings.unreadable import unreadable_report
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, LOBES, Finding, FindingClass, Side, mirror
from neuroflamingo.findings.wording import RenderedReport, render_report
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo.training.embedded.language_model_stage import BLANK_SHARE, encode_reports
from neuroflamingo.training.embedded.painted_pool import CasePool
from neuroflamingo.training.embedded.stage_loop import run_stage
from neuroflamingo.training.embedded.stage_settings import BridgeSettings
from neuroflamingo.training.embedded.token_cache import TokenCache
from neuroflamingo_encoders.contract import BrainEncoder

FOCAL_SLOTS = len(FOCAL) * len(FOCAL_REGIONS) * len(SIDES)
SLOTS = FOCAL_SLOTS + 2 * 3 + len(LOBES) * 2
VALIDATION_BATCH = 64


def presence_targets(findings: tuple[Finding, ...]) -> Tensor:
    """Which findings there are, as 0 or 1 by (class, region, side), grade, and lobe and side of atrophy: `[95]`."""
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
    """The findings with diameters as a report states them: with normal noise, rounded to steps, one step at least."""
    noise = rng.normal(0.0, jitter_mm, len(findings))
    return [
        f if f.size_mm is None else f.model_copy(update={"size_mm": step_mm * max(1, round((f.size_mm + n) / step_mm))})
        for f, n in zip(findings, noise.tolist(), strict=True)
    ]


def drawn_reports(
    truths: list[tuple[Finding, ...]],
    blank: NDArray[np.bool_],
    pool: CasePool,
    settings: BridgeSettings,
    rng: np.random.Generator,
) -> tuple[list[RenderedReport], list[int]]:
    """The report of each scan, and the rows that have one of another head, of which only the impression is learnt."""
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


class Bridge(nn.Module):
    """The model in training with the auxiliary head, which is thrown away afterwards.

    The head reads every latent and takes the smooth maximum, so a single latent may say that a finding is there.
    """

    def __init__(self, model: NeuroFlamingo, width: int) -> None:
        super().__init__()
        self.model = model
        self.presence = nn.Linear(width, SLOTS)
        nn.init.constant_(self.presence.bias, -7.5)

    def presence_loss(self, latents: Tensor, targets: Tensor) -> Tensor:
        logits = torch.logsumexp(self.presence(latents[:, 0]).float(), dim=1)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)

    def state_dict(self, *args, **kwargs):
        """Without the frozen parts: they are on disk already."""
        state = super().state_dict(*args, **kwargs)
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in state.items() if name in trained}

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):  # type: ignore[override]
        own = dict(self.named_parameters())
        wanted = {name for name, p in own.items() if p.requires_grad}
        if strict and wanted != set(state_dict):
            raise KeyError(f"trained parameters differ: {sorted(wanted ^ set(state_dict))[:5]}")
        with torch.no_grad():
            for name, value in state_dict.items():
                own[name].copy_(value)
        return nn.modules.module._IncompatibleKeys([], [])


def assemble_bridge(
    encoder: BrainEncoder,
    language_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: BridgeSettings,
) -> tuple[NeuroFlamingo, NeuroFlamingoProcessor]:
    """The untrained model of a recipe."""
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


def write_texts(model: NeuroFlamingo, tokenizer: PreTrainedTokenizerFast, tokens: Tensor) -> list[str]:
    """Greedy reports for ready tokens `[case, 1, token, width]`."""
    prompt = torch.tensor([[tokenizer.convert_tokens_to_ids(IMAGE)]])
    return write_greedily(model, tokenizer, prompt, tokens, batch=VALIDATION_BATCH)


def train_bridge(
    folder: Path,
    settings: BridgeSettings,
    model: NeuroFlamingo,
    tokenizer: PreTrainedTokenizerFast,
    cache: TokenCache,
    validation: TokenCache,
    seed: int,
    quiet: bool = False,
) -> dict[str, float]:
    """Train; the weights with the best full-finding F1 of parsed greedy reports are kept (never by loss)."""
    torch.manual_seed(seed)
    device = model.device
    bridge = Bridge(model, model.config.resampler["dim"]).to(device)
    count = len(cache.pool)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, 5, step])
        chosen, flips = rng.integers(count, size=settings.batch), rng.integers(2, size=settings.batch)
        truths = [
            mirror(cache.pool[i].findings) if flip else cache.pool[i].findings
            for i, flip in zip(chosen.tolist(), flips.tolist(), strict=True)
        ]
        blank = rng.random(settings.batch) < BLANK_SHARE
        truths = [() if none else t for t, none in zip(truths, blank, strict=True)]
        reports, copied = drawn_reports(truths, blank, cache.pool, settings, rng)
        tokens = cache[flips, chosen]
        tokens[torch.from_numpy(blank)] = cache.blank
        batch = encode_reports(tokenizer, reports, settings.finding_weight, copied)
        ids, mask, labels, weights = (part.to(device) for part in batch)
        out = model(
            input_ids=ids,
            attention_mask=mask,
            scan_tokens=tokens.to(device),
            labels=labels,
            label_weights=weights,
        )
        presence = bridge.presence_loss(out.latents, torch.stack([presence_targets(t) for t in truths]).to(device))
        figures = {"text": float(out.loss.detach()), "presence": float(presence.detach())}
        return out.loss + settings.presence_weight * presence, figures

    truth = [validation.pool[i].findings for i in range(len(validation.pool))]
    plain = validation[np.zeros(len(truth), dtype=int), np.arange(len(truth))]

    def validate(module: nn.Module) -> dict[str, float]:
        texts = write_texts(model, tokenizer, plain)
        scores = score_reports(truth, texts)
        keys = ("finding_f1", "full_finding_f1", "laterality_accuracy", "size_mae_mm", "hallucination_on_normals")
        return {key: scores[key] or 0.0 for key in (*keys, "impression_agreement", "parse_coverage")}

    return run_stage("bridge", folder, bridge, settings, loss_of, validate, "full_finding_f1", quiet=quiet)
