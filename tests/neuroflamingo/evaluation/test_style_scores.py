"""Whether a report follows a house style, and what leaks from examples."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.evaluation.style_scores import follows_style, leaked
from neuroflamingo.findings.changes import Comparison, change_between
from neuroflamingo.findings.house_styles import (
    DEFAULT_STYLE,
    TRAINED_STYLES,
    UNSEEN_STYLES,
    HouseStyle,
    alike_styles,
    render_in_style,
)
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side, Signal
from tests.neuroflamingo.findings.finding_strategies import finding_lists

NAMED = TRAINED_STYLES + UNSEEN_STYLES
MASS = Finding(kind=FindingClass.MASS, side=Side.LEFT, region=Region.FRONTAL, size_mm=25, signal=Signal.LOW)
RIGHT = MASS.model_copy(update={"side": Side.RIGHT})
GRADED = Finding(kind=FindingClass.VENTRICULAR_ENLARGEMENT, side=Side.BILATERAL, region=Region.VENTRICLES, grade=2)
FINDINGS = [MASS, GRADED]
COMPARISON = Comparison(
    same_head=True,
    changes=(change_between(MASS.model_copy(update={"size_mm": 15.0}), MASS), change_between(None, GRADED)),
)


@settings(max_examples=60, deadline=None)
@given(finding_lists(), st.sampled_from(NAMED))
def test_a_style_follows_itself(findings: list[Finding], style: HouseStyle) -> None:
    assert follows_style(render_in_style(findings, style).text, style)


@pytest.mark.parametrize("style", NAMED, ids=lambda style: style.name)
def test_each_named_style_follows_itself_only(style: HouseStyle) -> None:
    for comparison in (None, COMPARISON, Comparison(same_head=False)):
        text = render_in_style(FINDINGS, style, comparison).text
        assert [other.name for other in NAMED if follows_style(text, other)] == [style.name]
        assert follows_style(text.replace("\n", " \n\n"), style)


def test_sizes_that_are_alike_once_written_may_come_in_either_order() -> None:
    """25.4 and 24.6 mm are both written as 25 mm, the larger first, whatever their regions."""
    one, other = (
        MASS.model_copy(update={"size_mm": size, "region": region})
        for size, region in ((25.4, Region.INSULA), (24.6, Region.FRONTAL))
    )
    comparison = Comparison(same_head=True, changes=(change_between(None, one), change_between(None, other)))
    for style in NAMED:
        assert follows_style(render_in_style([one, other], style, comparison).text, style), style.name


def test_what_is_no_style() -> None:
    text = render_in_style(FINDINGS, DEFAULT_STYLE).text
    assert not follows_style("", DEFAULT_STYLE)
    assert not follows_style("infarct.", DEFAULT_STYLE)
    assert not follows_style(text.replace("FINDINGS", "Findings"), DEFAULT_STYLE)
    assert not follows_style(text.replace("25 mm", "2.5 cm"), DEFAULT_STYLE)
    assert not follows_style(text + " No mass.", DEFAULT_STYLE)


def test_another_finding_in_the_impression_is_no_fault_of_style() -> None:
    text = render_in_style(FINDINGS, DEFAULT_STYLE).text
    other = text.replace("1. Left frontal", "1. Right frontal")
    assert other != text and follows_style(other, DEFAULT_STYLE)
    assert not follows_style(other.replace("1. Right", "- Right"), DEFAULT_STYLE)


@pytest.mark.parametrize(
    ("stated", "truth", "examples", "leaks"),
    [
        ([MASS], [], [MASS], True),
        ([MASS.model_copy(update={"size_mm": 9.0})], [], [MASS], True),
        ([MASS], [MASS], [MASS], False),
        ([RIGHT], [], [MASS], False),
        ([RIGHT], [MASS], [MASS], False),
        ([MASS, RIGHT], [RIGHT], [GRADED, MASS], True),
        ([], [MASS], [MASS], False),
        ([GRADED], [], [MASS, GRADED], True),
    ],
)
def test_leaks(stated: list[Finding], truth: list[Finding], examples: list[Finding], leaks: bool) -> None:
    for style in (DEFAULT_STYLE, *UNSEEN_STYLES):
        assert leaked(render_in_style(stated, style).text, truth, examples) is leaks


def test_what_the_examples_do_not_show_is_free() -> None:
    centimetres = HouseStyle("cm", units="cm")
    in_mm, in_cm = (render_in_style(FINDINGS, style).text for style in (DEFAULT_STYLE, centimetres))
    assert not follows_style(in_cm, DEFAULT_STYLE)
    assert follows_style(in_cm, DEFAULT_STYLE, [[]]) and follows_style(in_mm, DEFAULT_STYLE, [[]])
    assert not follows_style(in_cm, DEFAULT_STYLE, [[], FINDINGS])
    other = render_in_style(FINDINGS, HouseStyle("one", wording=3)).text
    assert not follows_style(other, DEFAULT_STYLE, [[]])  # the words of a normal head show the wording


def test_styles_that_write_examples_alike() -> None:
    assert alike_styles(DEFAULT_STYLE, []) == [DEFAULT_STYLE]
    assert len(alike_styles(DEFAULT_STYLE, [[]])) > 10
    known = alike_styles(DEFAULT_STYLE, [[GRADED, MASS.model_copy(update={"kind": FindingClass.INFARCT})]])
    assert known == [DEFAULT_STYLE]
    for style in NAMED:
        for other in alike_styles(style, [[GRADED], []]):
            assert render_in_style([GRADED], other).text == render_in_style([GRADED], style).text
