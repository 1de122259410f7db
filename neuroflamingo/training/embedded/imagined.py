"""Documents about findings that are drawn but not painted, for the language model: any form, any house style."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroflamingo.findings.changes import Change, ChangeKind, Comparison, change_order
from neuroflamingo.findings.house_styles import DEFAULT_STYLE, HouseStyle, draw_style, render_in_style
from neuroflamingo.findings.unreadable import unreadable_report
from neuroflamingo.findings.vocabulary import FOCAL, Finding
from neuroflamingo.painting.cases import draw_wishes
from neuroflamingo.painting.follow_up import (
    LEAST_MM,
    LEAST_SHARE,
    NORMAL_SHARE,
    OTHER_SHARE,
    draw_diffuse_change,
    draw_focal_kind,
)
from neuroflamingo.painting.placing import SIZE_MM
from neuroflamingo.training.embedded.documents import Document, Part

if TYPE_CHECKING:
    import numpy as np

    from neuroflamingo.findings.wording import RenderedReport
    from neuroflamingo.model.prompt_forms import PromptForm
    from neuroflamingo.recipe.embedded_recipe import PromptSettings

BLANK_SHARE = 0.02
"""Share of blank texts (and of blank scans in the fusion stage)."""
DEFAULT_STYLE_SHARE = 0.5
"""Share of single reports in the style of a prompt without examples."""


def draw_form(prompts: PromptSettings, rng: np.random.Generator) -> PromptForm:
    """Draw the form of a batch's prompts by their shares."""
    number = rng.random()
    if number < prompts.few_shot:
        return "few-shot"
    return "follow-up" if number < prompts.few_shot + prompts.follow_up else "one scan"


def draw_example_count(prompts: PromptSettings, rng: np.random.Generator) -> int:
    """Draw the number of examples of a few-shot batch."""
    return int(rng.integers(1, prompts.examples + 1))


def draw_any_style(rng: np.random.Generator) -> HouseStyle:
    """Draw a house style: the default one, or any that training may show."""
    return DEFAULT_STYLE if rng.random() < DEFAULT_STYLE_SHARE else draw_style(rng)


def imagined_document(form: PromptForm, examples: int, rng: np.random.Generator) -> Document:
    """Draw findings as for painting (sizes as drawn, any location) and write their document.

    Args:
        form: of the prompt.
        examples: number of examples of a few-shot prompt.
        rng: the source of all choices.
    """
    if form == "few-shot":
        style = draw_style(rng)
        return tuple(Part(_imagined_report(style, rng)) for _ in range(examples + 1))
    if form == "follow-up":
        findings, comparison = _imagined_comparison(rng)
        return (Part(render_in_style(findings, DEFAULT_STYLE, comparison), scans=2),)
    return (Part(_imagined_report(draw_any_style(rng), rng)),)


def _imagined_report(style: HouseStyle, rng: np.random.Generator) -> RenderedReport:
    if rng.random() < BLANK_SHARE:
        return unreadable_report(int(rng.integers(1000)))
    return render_in_style(draw_wishes(rng), style)


def _imagined_comparison(rng: np.random.Generator) -> tuple[list[Finding], Comparison]:
    """Findings of a follow-up, and what changed since its baseline, in the shares of painted pairs."""
    if rng.random() < OTHER_SHARE:
        return draw_wishes(rng), Comparison(same_head=False)
    normal = rng.random() < NORMAL_SHARE
    wishes: list[Finding] = []
    while not (normal or wishes):
        wishes = draw_wishes(rng)
    drawn = [_focal_change(rng, f) if f.kind in FOCAL else draw_diffuse_change(rng, f) for f in wishes]
    changes = change_order(drawn)
    return [c.after for c in changes if c.after], Comparison(same_head=True, changes=changes)


def _focal_change(rng: np.random.Generator, finding: Finding) -> Change:
    """Change of a focal finding; one that is too small to have been smaller still is unchanged."""
    kind = draw_focal_kind(rng)
    size = finding.size_mm or 0.0
    largest = min(size - LEAST_MM, size * (1.0 - LEAST_SHARE))
    if kind in (ChangeKind.NEW, ChangeKind.GONE):
        new = kind is ChangeKind.NEW
        return Change(kind=kind, before=None if new else finding, after=finding if new else None)
    if kind is ChangeKind.UNCHANGED or largest < SIZE_MM[0]:
        return Change(kind=ChangeKind.UNCHANGED, before=finding, after=finding)
    small = finding.model_copy(update={"size_mm": float(rng.uniform(SIZE_MM[0], largest))})
    before, after = (small, finding) if kind is ChangeKind.LARGER else (finding, small)
    return Change(kind=kind, before=before, after=after)
