"""House styles of reports: what a reader of a few of a hospital's reports can imitate.

A style is a record of independent choices. The same statement is always written alike within a style, so that examples
show the style whole. The sentences are those of `phrases`; `parsing` reads every style back without loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from neuroflamingo.findings import phrases
from neuroflamingo.findings.vocabulary import FOCAL, Finding, FindingClass, report_order
from neuroflamingo.findings.wording import Habit, Page, RenderedReport, compare, conclude, write_classes

if TYPE_CHECKING:
    import numpy as np

    from neuroflamingo.findings.changes import Comparison

_HEADINGS = {
    "upper": ("TECHNIQUE:", "FINDINGS:", "COMPARISON:", "IMPRESSION:"),
    "title": ("Technique:", "Findings:", "Comparison:", "Impression:"),
    "body": ("Protocol:", "Body:", "Comparison:", "Conclusion:"),
}
_MARKS = {"numbers": "{number}.", "dashes": "-", "prose": ""}
_SHORT_SIDES = (("left", "Lt"), ("right", "Rt"))


@dataclass(frozen=True)
class HouseStyle:
    """How one house writes its reports; every choice is independent of the others.

    Attributes:
        name: of the style, for people.
        wording: which of the sentences of `phrases` are used.
        headings: "FINDINGS:", "Findings:", or "Body:" with "Conclusion:".
        sentences: whole, or without verbs and articles.
        units: of sizes: whole millimetres, or centimetres with one decimal.
        negatives: absent classes denied together, each by itself, or all in "No other findings."
        order: of statements in FINDINGS: class by class, what is absent first or last, or diffuse changes before focal
            ones. The impression follows the same order of classes.
        impression: a numbered list, a list with dashes, or sentences.
        sides: "left" or "Lt".
    """

    name: str
    wording: Literal[0, 1, 2, 3, 4, 5] = 0
    headings: Literal["upper", "title", "body"] = "upper"
    sentences: Literal["whole", "brief"] = "whole"
    units: Literal["mm", "cm"] = "mm"
    negatives: Literal["joined", "each", "no other"] = "joined"
    order: Literal["classes", "absent first", "absent last", "diffuse first"] = "classes"
    impression: Literal["numbers", "dashes", "prose"] = "numbers"
    sides: Literal["long", "short"] = "long"

    @property
    def choices(self) -> dict[str, Any]:
        """All choices by name."""
        return {name: getattr(self, name) for name in CHOICES}


CHOICES: dict[str, tuple[Any, ...]] = {
    field.name: get_args(get_type_hints(HouseStyle)[field.name]) for field in fields(HouseStyle) if field.name != "name"
}
"""What can be chosen, by attribute of `HouseStyle`."""

DEFAULT_STYLE = HouseStyle("standard")
TRAINED_STYLES = (
    DEFAULT_STYLE,
    HouseStyle("every negative", wording=1, negatives="each", impression="dashes"),
    HouseStyle("centimetres", wording=2, headings="title", units="cm", impression="prose"),
    HouseStyle("telegram", sentences="brief", negatives="no other", impression="prose", sides="short"),
    HouseStyle("conclusion", wording=3, headings="body", order="absent last"),
    HouseStyle("negatives first", wording=4, headings="title", negatives="each", order="absent first", sides="short"),
    HouseStyle("diffuse first", wording=5, order="diffuse first", impression="dashes", units="cm"),
    HouseStyle("short conclusion", wording=1, headings="body", sentences="brief", impression="prose"),
    HouseStyle("positives only", wording=3, headings="title", negatives="no other", units="cm", sides="short"),
)
"""Some of the styles that are drawn in training."""

UNSEEN_STYLES = (
    HouseStyle(
        "unseen centimetres",
        wording=4,
        headings="body",
        units="cm",
        negatives="each",
        impression="dashes",
        sides="short",
    ),
    HouseStyle(
        "unseen telegram", wording=2, headings="title", sentences="brief", order="diffuse first", impression="numbers"
    ),
)
_HELD_OUT: tuple[dict[str, Any], ...] = (
    {"headings": "body", "units": "cm", "sides": "short"},
    {"headings": "title", "sentences": "brief", "order": "diffuse first"},
)
"""Combinations that are never drawn; each unseen style has one of them."""


def _held_out(choices: dict[str, Any]) -> bool:
    return any(held.items() <= choices.items() for held in _HELD_OUT)


def drawable_styles() -> list[HouseStyle]:
    """Every style that `draw_style` can give."""
    every = (dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values()))
    return [HouseStyle("drawn", **choices) for choices in every if not _held_out(choices)]


def draw_style(rng: np.random.Generator) -> HouseStyle:
    """Draw a style for training: any combination of choices but those kept for `UNSEEN_STYLES`."""
    while True:
        choices = {name: options[int(rng.integers(len(options)))] for name, options in CHOICES.items()}
        if not _held_out(choices):
            return HouseStyle("drawn", **choices)


class _StyledPage(Page):
    """A page that writes sizes and sides as the house does."""

    def __init__(self, style: HouseStyle) -> None:
        super().__init__()
        self.style = style

    def sentence(self, template: str, fields: dict[str, str]) -> None:
        """Append one filled-in template in the style's units and sides."""
        fields = dict(fields)
        if self.style.units == "cm":
            for name in ("size", "was"):
                template = template.replace(f"{{{name}}} mm", f"{{{name}}} cm")
                fields[name] = f"{int(fields[name]) / 10:.1f}" if fields.get(name) else ""
        if self.style.sides == "short":
            for name in ("at", "place"):
                for side, short in _SHORT_SIDES:
                    fields[name] = fields.get(name, "").replace(side, short)
        super().sentence(template, fields)


def _kinds(style: HouseStyle, findings: Sequence[Finding]) -> list[FindingClass]:
    """Classes in the style's order."""
    present = {finding.kind for finding in findings}
    later = {
        "classes": set[FindingClass](),
        "absent first": present,
        "absent last": set(FindingClass) - present,
        "diffuse first": set(FOCAL),
    }[style.order]
    return sorted(FindingClass, key=lambda kind: kind in later)


def render_in_style(
    findings: Sequence[Finding], style: HouseStyle, comparison: Comparison | None = None
) -> RenderedReport:
    """Render findings as a report of one house.

    Args:
        findings: any number of findings, in any order; sizes are written in whole millimetres (or their tenth in cm),
            missing attributes are omitted.
        style: of the house.
        comparison: with an earlier scan, if the report is of a follow-up.

    Returns:
        The ASCII text and the character ranges that carry findings. The same statement is always written alike.
    """
    habit = Habit(style.wording, joined=style.negatives == "joined")
    brief = style.sentences == "brief"
    denials = Habit(0, joined=habit.joined) if brief else habit
    technique, body, compared, conclusion = _HEADINGS[style.headings]
    ordered, kinds = report_order(list(findings)), _kinds(style, findings)
    if style.negatives == "no other":
        kinds = [kind for kind in kinds if any(finding.kind is kind for finding in ordered)]
    page = _StyledPage(style)
    page.add(f"{technique} {habit.choice(phrases.TECHNIQUES)}\n{body}")
    write_classes(page, ordered, kinds, habit, denials, brief)
    if style.negatives == "no other":
        page.add(" ")
        page.sentence(phrases.NOTHING_ELSE if ordered else phrases.NOTHING_AT_ALL, {})
    if comparison is not None:
        page.add(f"\n{compared}")
        compare(page, comparison, habit, brief)
    page.add(f"\n{conclusion}")
    conclude(page, sorted(ordered, key=lambda finding: kinds.index(finding.kind)), habit, _MARKS[style.impression])
    return RenderedReport(page.text, tuple(page.spans))


def alike_styles(style: HouseStyle, examples: Sequence[Sequence[Finding]]) -> list[HouseStyle]:
    """Styles that write all examples exactly as a style does: what the examples do not show is open.

    Args:
        style: of the examples.
        examples: findings of each; a normal head, say, shows neither units nor sides.

    Returns:
        The styles, `style` itself first; only itself without examples.
    """
    shown = [render_in_style(findings, style).text for findings in examples]

    def alike(other: HouseStyle) -> bool:
        return bool(shown) and [render_in_style(findings, other).text for findings in examples] == shown

    open_to = {
        name: [option for option in options if alike(replace(style, **{name: option}))]
        for name, options in CHOICES.items()
    }
    others = (replace(style, **dict(zip(open_to, values, strict=True))) for values in product(*open_to.values()))
    return [style, *(other for other in others if other != style and alike(other))]
