"""House styles: the default is today's, all read back, unseen ones are new, comparisons stand in their section."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.findings.changes import Comparison, change_between
from neuroflamingo.findings.house_styles import (
    CHOICES,
    DEFAULT_STYLE,
    TRAINED_STYLES,
    UNSEEN_STYLES,
    HouseStyle,
    draw_style,
    drawable_styles,
    render_in_style,
)
from neuroflamingo.findings.parsing import parse_report, place_key
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side, Signal
from neuroflamingo.findings.wording import render_report
from tests.neuroflamingo.findings.finding_strategies import finding_lists

SMALL = Finding(kind=FindingClass.MASS, side=Side.LEFT, region=Region.FRONTAL, size_mm=15, signal=Signal.LOW)
MASS = SMALL.model_copy(update={"size_mm": 25.0})
INFARCT = Finding(kind=FindingClass.INFARCT, side=Side.RIGHT, region=Region.INSULA, size_mm=20, signal=Signal.LOW)
MILD = Finding(kind=FindingClass.VENTRICULAR_ENLARGEMENT, side=Side.BILATERAL, region=Region.VENTRICLES, grade=1)
MODERATE = MILD.model_copy(update={"grade": 2})
LESIONS = Finding(kind=FindingClass.WHITE_MATTER_LESIONS, side=Side.BILATERAL, region=Region.WHITE_MATTER, grade=2)
RICH = [MASS, MODERATE]
STYLES = drawable_styles()
NAMED = TRAINED_STYLES + UNSEEN_STYLES


def section(text: str, heading: str) -> str:
    """What stands after a heading, to the end of its line."""
    return text.partition(f"{heading}: ")[2].partition("\n")[0]


@settings(max_examples=40, deadline=None)
@given(finding_lists(), st.integers(0, 1000))
def test_the_default_style_is_the_first_reporting_style(findings: list[Finding], seed: int) -> None:
    assert render_in_style(findings, DEFAULT_STYLE) == render_report(findings, seed, style=0)


@settings(max_examples=120, deadline=None)
@given(finding_lists(), st.sampled_from([*STYLES, *UNSEEN_STYLES]))
def test_every_style_reads_back_without_loss(findings: list[Finding], style: HouseStyle) -> None:
    text = render_in_style(findings, style).text
    parsed = parse_report(text)
    assert text.isascii()
    assert Counter(parsed.findings) == Counter(findings), text
    assert Counter(map(place_key, parsed.impression)) == Counter(map(place_key, findings)), text
    assert parsed.coverage == 1.0, (text, parsed.unparsed)
    assert not parsed.contradictions, (text, parsed.contradictions)
    absent = set(FindingClass) - {finding.kind for finding in findings}
    assert parsed.denied == (set() if findings and style.negatives == "no other" else absent), text


def test_named_styles_are_enough_and_have_names_and_choices_of_their_own() -> None:
    assert len(TRAINED_STYLES) >= 8 and len(UNSEEN_STYLES) >= 2 and TRAINED_STYLES[0] is DEFAULT_STYLE
    assert len({style.name for style in NAMED}) == len(NAMED)
    drawable = [style.choices for style in STYLES]
    assert all(style.choices in drawable for style in TRAINED_STYLES)
    for name, options in CHOICES.items():
        assert {getattr(style, name) for style in TRAINED_STYLES} == set(options), name


@pytest.mark.parametrize("unseen", UNSEEN_STYLES, ids=lambda style: style.name)
def test_no_drawable_style_writes_like_an_unseen_one(unseen: HouseStyle) -> None:
    text = render_in_style(RICH, unseen).text
    assert text not in {render_in_style(RICH, style).text for style in STYLES}
    for name, choice in unseen.choices.items():
        assert any(getattr(style, name) == choice for style in STYLES)


def test_drawn_styles_are_varied_repeatable_and_never_unseen() -> None:
    drawn = [draw_style(np.random.default_rng(seed)) for seed in range(2000)]
    assert drawn[:9] == [draw_style(np.random.default_rng(seed)) for seed in range(9)]
    assert set(drawn) <= set(STYLES)
    assert len(set(drawn)) > 1000
    for name, options in CHOICES.items():
        assert {getattr(style, name) for style in drawn} == set(options)


def test_every_choice_can_be_seen_in_a_report() -> None:
    """From the default, another value of any one choice changes the text."""
    findings = [INFARCT.model_copy(update={"side": Side.LEFT}), MODERATE]
    text = render_in_style(findings, DEFAULT_STYLE).text
    for name, options in CHOICES.items():
        for option in options:
            other = HouseStyle("other", **(DEFAULT_STYLE.choices | {name: option}))
            assert (render_in_style(findings, other).text == text) == (option == getattr(DEFAULT_STYLE, name)), (
                name,
                option,
            )


def test_what_a_choice_does() -> None:
    def text(**choices: object) -> str:
        return render_in_style(RICH, HouseStyle("one", **choices)).text  # type: ignore[arg-type]

    assert "measuring 2.5 cm" in text(units="cm") and " mm" not in text(units="cm")
    assert "in the Lt frontal lobe" in text(sides="short")
    assert "Body: " in text(headings="body") and "\nConclusion: 1." in text(headings="body")
    assert "FINDINGS: Mass, left frontal lobe, 25 mm, hypointense. " in text(sentences="brief", order="absent last")
    assert "No infarct or hemorrhage." in text(order="absent last") and "No infarct. No hem" in text(
        order="absent last", negatives="each"
    )
    assert section(text(negatives="no other"), "FINDINGS").endswith("enlarged. No other findings.")
    assert section(text(order="diffuse first"), "IMPRESSION").startswith("1. Moderate ventricular enlargement. 2. Left")
    assert section(text(impression="prose"), "IMPRESSION").startswith("Left frontal lobe mass. Moderate")
    normal = render_in_style([], HouseStyle("one", negatives="no other")).text
    assert section(normal, "FINDINGS") == "No abnormal findings."


COMPARISON = Comparison(
    same_head=True,
    changes=(
        change_between(SMALL, MASS),
        change_between(INFARCT, None),
        change_between(MILD, MODERATE),
        change_between(LESIONS, LESIONS),
        change_between(None, INFARCT.model_copy(update={"side": Side.LEFT})),
    ),
)


def test_comparison_in_the_default_style() -> None:
    text = render_in_style(RICH, DEFAULT_STYLE, COMPARISON).text
    assert [line.partition(":")[0] for line in text.splitlines()] == [
        "TECHNIQUE",
        "FINDINGS",
        "COMPARISON",
        "IMPRESSION",
    ]
    assert section(text, "COMPARISON") == (
        "The chronic infarct in the left insula is new. "
        "The chronic infarct in the right insula is no longer seen, previously 20 mm. "
        "The mass in the left frontal lobe is larger: 25 mm, previously 15 mm. "
        "White matter lesions are unchanged. "
        "Ventricular enlargement has increased from mild to moderate."
    )
    assert text == render_report(RICH, 5, style=0, comparison=COMPARISON).text
    nothing = render_in_style([], DEFAULT_STYLE, Comparison(same_head=True)).text
    assert section(nothing, "COMPARISON") == "No change since the previous scan."
    others = render_in_style(RICH, DEFAULT_STYLE, Comparison(same_head=False)).text
    assert section(others, "COMPARISON") == "The two scans show different heads; no comparison is made."


def test_comparison_in_short_sides_and_centimetres() -> None:
    style = HouseStyle("one", units="cm", sides="short", sentences="brief")
    text = section(render_in_style(RICH, style, COMPARISON).text, "COMPARISON")
    assert "Lt frontal lobe mass: larger, 2.5 cm, previously 1.5 cm." in text
    assert "Rt insula chronic infarct: gone, previously 2.0 cm." in text


@settings(max_examples=40, deadline=None)
@given(finding_lists(), st.sampled_from(STYLES))
def test_a_comparison_leaves_the_findings_as_they_were(findings: list[Finding], style: HouseStyle) -> None:
    with_it, without = (parse_report(render_in_style(findings, style, c).text) for c in (COMPARISON, None))
    assert (with_it.findings, with_it.impression, with_it.denied) == (
        without.findings,
        without.impression,
        without.denied,
    )
    assert with_it.coverage == 1.0


def test_spans_of_a_comparison_hold_what_changed() -> None:
    for style in NAMED:
        report = render_in_style(RICH, style, COMPARISON)
        assert all(0 <= a < b <= len(report.text) for a, b in report.spans)
        assert all(b < c for (_, b), (c, _) in pairwise(report.spans))
        carried = " ".join(report.text[a:b] for a, b in report.spans).lower()
        wanted = (
            {"unchanged", "stable"},
            {"larger", "grown"},
            {"new", "seen before"},
            {"gone", "resolved", "longer seen"},
        )
        for words in wanted:
            assert any(word in carried for word in words), (style.name, words)
        for size in ("15", "25", "20") if style.units == "mm" else ("1.5", "2.5", "2.0"):
            assert any(report.text[a:b].endswith(size) or f" {size}" in report.text[a:b] for a, b in report.spans)


def test_wordings_of_changes_by_seed() -> None:
    texts = {section(render_report(RICH, seed, comparison=COMPARISON).text, "COMPARISON") for seed in range(60)}
    assert len(texts) > 30
