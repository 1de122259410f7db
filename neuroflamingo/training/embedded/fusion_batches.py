"""Batches of the fusion stage: tokens of scans, their reports in the forms of prompts, and what is to be found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.evaluation.readout import SIDES
from neuroflamingo.findings.changes import Change, ChangeKind, Comparison, mirror_changes, reverse_changes
from neuroflamingo.findings.house_styles import DEFAULT_STYLE, HouseStyle, draw_style, render_in_style
from neuroflamingo.findings.unreadable import unreadable_report
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, LOBES, Finding, FindingClass, Side, mirror
from neuroflamingo.training.embedded.documents import Document, Part, Texts, encode_documents
from neuroflamingo.training.embedded.imagined import BLANK_SHARE, draw_example_count, draw_form

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from neuroflamingo.recipe.embedded_recipe import FusionStageSettings
    from neuroflamingo.training.embedded.token_cache import TokenCache

FOCAL_SLOTS = len(FOCAL) * len(FOCAL_REGIONS) * len(SIDES)
SLOTS = FOCAL_SLOTS + 2 * 3 + len(LOBES) * 2
Findings = tuple[Finding, ...]


@dataclass(frozen=True)
class FusionCases:
    """Cached tokens of painted cases: single scans, and baselines with their follow-ups where these are learnt."""

    single: TokenCache
    pairs: TokenCache | None = None


class FusionBatch(NamedTuple):
    """Scans and their reports.

    Attributes:
        tokens: of the encoder, `[batch, scan, token, width]`.
        texts: reports in the form of the batch.
        present: which findings each scan has, `[batch, scan, slot]`.
    """

    tokens: Tensor
    texts: Texts
    present: Tensor

    def to(self, device: torch.device) -> FusionBatch:
        """The same batch on a device."""
        return FusionBatch(self.tokens.to(device), self.texts.to(device), self.present.to(device))

    def rows(self, rows: slice) -> FusionBatch:
        """Select some of the rows."""
        return FusionBatch(self.tokens[rows], self.texts.rows(rows), self.present[rows])

    def weight(self) -> float:
        """Sum of the loss weights of the tokens with labels."""
        return float(self.texts.weights[:, 1:].sum())

    def scans(self) -> float:
        """Number of scans."""
        return float(self.tokens.shape[0] * self.tokens.shape[1])


class _Draw(NamedTuple):
    """Rows of a batch before they are encoded: their documents, tokens, and the findings of each scan."""

    documents: list[Document]
    tokens: Tensor
    truths: list[Sequence[Findings]]


def presence_targets(findings: Findings) -> Tensor:
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


def stated_sizes(findings: Findings, jitter_mm: float, step_mm: float, rng: np.random.Generator) -> list[Finding]:
    """Round diameters to the steps that a report states, at least one step, after adding Gaussian noise."""
    noise = rng.normal(0.0, jitter_mm, len(findings))
    return [_stated(f, float(n), step_mm) for f, n in zip(findings, noise, strict=True)]


def _stated(finding: Finding, noise: float, step_mm: float, least: float = 1.0) -> Finding:
    if finding.size_mm is None:
        return finding
    steps = max(least, float(round((finding.size_mm + noise) / step_mm)))
    return finding.model_copy(update={"size_mm": step_mm * steps})


def stated_changes(
    changes: Sequence[Change], jitter_mm: float, step_mm: float, rng: np.random.Generator
) -> tuple[Change, ...]:
    """Round the diameters of changes likewise; both of a change are off alike, and differ if it is one of size."""
    made: list[Change] = []
    for change, noise in zip(changes, rng.normal(0.0, jitter_mm, len(changes)).tolist(), strict=True):
        before, after = (None if f is None else _stated(f, noise, step_mm) for f in (change.before, change.after))
        if before and after and before.size_mm and before.size_mm == after.size_mm:
            grown = {"size_mm": before.size_mm + step_mm}
            if change.kind is ChangeKind.LARGER:
                after = after.model_copy(update=grown)
            elif change.kind is ChangeKind.SMALLER:
                before = before.model_copy(update=grown)
        made.append(Change(kind=change.kind, before=before, after=after))
    return tuple(made)


def own_style(settings: FusionStageSettings) -> HouseStyle:
    """House style of reports without examples."""
    return dataclasses.replace(DEFAULT_STYLE, wording=settings.style)


def draw_batch(
    cases: FusionCases, tokenizer: PreTrainedTokenizerFast, settings: FusionStageSettings, seed: int, micro_step: int
) -> FusionBatch:
    """Draw a whole micro-batch of one form; half of the heads are mirrored, a few are blank."""
    rng = np.random.default_rng([seed, 5, micro_step])
    form = draw_form(settings.prompts, rng)
    if form == "follow-up":
        assert cases.pairs is not None
        draw = _draw_follow_ups(cases.pairs, settings, rng)
    elif form == "few-shot":
        draw = _draw_few_shot(cases.single, settings, draw_example_count(settings.prompts, rng), rng)
    else:
        draw = _draw_single(cases.single, settings, rng)
    present = torch.stack([torch.stack([presence_targets(f) for f in row]) for row in draw.truths])
    return FusionBatch(draw.tokens, encode_documents(tokenizer, draw.documents, settings.finding_weight), present)


def _drawn_scans(cache: TokenCache, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Tensor, NDArray[Any]]:
    """Tokens of single scans `[*shape, token, width]`, and their findings, an array of that shape."""
    chosen, flips = rng.integers(len(cache.pool), size=shape), rng.integers(2, size=shape)
    tokens = cache[flips.reshape(-1), chosen.reshape(-1)][:, 0]
    truths = np.empty(shape, dtype=object)
    for place in np.ndindex(*shape):
        findings = cache.pool[int(chosen[place])].findings
        truths[place] = mirror(findings) if flips[place] else findings
    return tokens.unflatten(0, shape), truths


def drawn_part(
    findings: Findings,
    blank: bool,
    style: HouseStyle,
    cache: TokenCache,
    settings: FusionStageSettings,
    rng: np.random.Generator,
) -> Part:
    """Report of a scan; a share of them has another head's findings, and only the impression is learnt."""
    if blank:
        return Part(unreadable_report(settings.style))
    copied = rng.random() < settings.copied_share
    written = cache.pool[int(rng.integers(len(cache.pool)))].findings if copied else findings
    sizes = stated_sizes(written, settings.size_jitter_mm, settings.size_step_mm, rng)
    return Part(render_in_style(sizes, style), learnt="impression" if copied else "all")


def _draw_single(cache: TokenCache, settings: FusionStageSettings, rng: np.random.Generator) -> _Draw:
    """Scans without examples, in the own style."""
    tokens, truths = _drawn_scans(cache, (settings.optim.batch, 1), rng)
    blank = rng.random(len(tokens)) < BLANK_SHARE
    for row in np.flatnonzero(blank):
        tokens[row], truths[row, 0] = cache.blank, ()
    style = own_style(settings)
    rows = zip(truths[:, 0], blank.tolist(), strict=True)
    return _Draw([(drawn_part(f, none, style, cache, settings, rng),) for f, none in rows], tokens, truths.tolist())


def _draw_few_shot(cache: TokenCache, settings: FusionStageSettings, examples: int, rng: np.random.Generator) -> _Draw:
    """Examples and a scan, each row in one house style; the first report shows it, the others are learnt.

    The scan of a share of examples is exchanged or blank, and then its report is not learnt.
    """
    tokens, truths = _drawn_scans(cache, (settings.optim.batch, examples + 1), rng)
    documents: list[Document] = []
    for row in range(len(tokens)):
        style = draw_style(rng)
        unlike = rng.random(examples) < settings.unlike_examples
        parts: list[Part] = []
        for n in range(examples):  # the first has sizes to the millimetre, as users' reports have
            jitter, step = (settings.size_jitter_mm, settings.size_step_mm) if n else (0.0, 1.0)
            sizes = stated_sizes(truths[row, n], jitter, step, rng)
            learnt = "all" if n and not unlike[n] else "nothing"
            parts.append(Part(render_in_style(sizes, style), learnt=learnt))
            if unlike[n]:
                tokens[row, n], truths[row, n] = _other_scan(cache, rng)
        blank = bool(rng.random() < BLANK_SHARE)
        if blank:
            tokens[row, -1], truths[row, -1] = cache.blank[0], ()
        parts.append(drawn_part(truths[row, -1], blank, style, cache, settings, rng))
        documents.append(tuple(parts))
    return _Draw(documents, tokens, truths.tolist())


def _other_scan(cache: TokenCache, rng: np.random.Generator) -> tuple[Tensor, Findings]:
    """A blank scan, or any."""
    if rng.random() < 0.5:
        return cache.blank[0], ()
    number = int(rng.integers(len(cache.pool)))
    return cache[np.array([0]), np.array([number])][0, 0], cache.pool[number].findings


def _draw_follow_ups(cache: TokenCache, settings: FusionStageSettings, rng: np.random.Generator) -> _Draw:
    """Baseline and follow-up, in half of the rows the other way round, in a few the same scan twice."""
    size = settings.optim.batch
    chosen, (flips, turned) = rng.integers(len(cache.pool), size=size), rng.integers(2, size=(2, size))
    same = rng.random(size) < settings.same_scan
    tokens = cache[flips, chosen].clone()
    documents: list[Document] = []
    truths: list[Sequence[Findings]] = []
    for row in range(size):
        case: Any = cache.pool[int(chosen[row])]
        before, after, comparison = case.baseline, case.findings, case.comparison
        if flips[row]:
            before, after = mirror(before), mirror(after)
            comparison = Comparison(same_head=comparison.same_head, changes=mirror_changes(comparison.changes))
        if turned[row]:
            before, after, tokens[row] = after, before, tokens[row].flip(0)
            comparison = Comparison(same_head=comparison.same_head, changes=reverse_changes(comparison.changes))
        if same[row]:
            before, tokens[row, 0], comparison = after, tokens[row, 1], unchanged(after)
        documents.append((follow_up_part(after, comparison, settings, rng),))
        truths.append((before, after))
    return _Draw(documents, tokens, truths)


def unchanged(findings: Findings) -> Comparison:
    """Comparison of a scan with itself."""
    changes = (Change(kind=ChangeKind.UNCHANGED, before=f, after=f) for f in findings)
    return Comparison(same_head=True, changes=tuple(changes))


def follow_up_part(
    findings: Findings, comparison: Comparison, settings: FusionStageSettings, rng: np.random.Generator
) -> Part:
    """Report of a follow-up: its findings have the sizes that the comparison states."""
    jitter, step = settings.size_jitter_mm, settings.size_step_mm
    if not comparison.same_head:
        sizes = stated_sizes(findings, jitter, step, rng)
    else:
        comparison = Comparison(same_head=True, changes=stated_changes(comparison.changes, jitter, step, rng))
        sizes = [change.after for change in comparison.changes if change.after is not None]
    return Part(render_in_style(sizes, own_style(settings), comparison), scans=2)
