"""Scores of stated changes, on constructed reports whose scores are known."""

from __future__ import annotations

import pytest

from neuroflamingo.evaluation.change_scores import reversed_share, score_changes
from neuroflamingo.findings.changes import Change, ChangeKind, Comparison, change_between, reverse_changes
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side
from neuroflamingo.findings.wording import render_report
from neuroflamingo_preprocessing.errors import UsageError


def mass(size: float, side: Side = Side.LEFT, region: Region = Region.FRONTAL) -> Finding:
    return Finding(kind=FindingClass.MASS, side=side, region=region, size_mm=size)


def ventricles(grade: int) -> Finding:
    return Finding(
        kind=FindingClass.VENTRICULAR_ENLARGEMENT, side=Side.BILATERAL, region=Region.VENTRICLES, grade=grade
    )


INFARCT = Finding(kind=FindingClass.INFARCT, side=Side.RIGHT, region=Region.INSULA, size_mm=30)
GROWN = change_between(mass(15), mass(25))
CHANGED = Comparison(
    same_head=True, changes=(GROWN, change_between(INFARCT, None), change_between(ventricles(3), ventricles(1)))
)
NEW = Comparison(same_head=True, changes=(change_between(None, mass(20, Side.RIGHT)),))
STILL = Comparison(same_head=True, changes=(change_between(mass(15), mass(15)),))
NOTHING = Comparison(same_head=True)
OTHER = Comparison(same_head=False)
TRUTH = [CHANGED, NEW, STILL, NOTHING, OTHER]


def said(comparison: Comparison, findings: list[Finding] | None = None) -> str:
    """A report with this COMPARISON."""
    seen = [change.after for change in comparison.changes if change.after]
    return render_report(seen if findings is None else findings, 3, comparison=comparison).text


def swap(comparison: Comparison) -> Comparison:
    return comparison.model_copy(update={"changes": reverse_changes(comparison.changes)})


def all_unchanged(comparison: Comparison) -> Comparison:
    findings = [change.finding for change in comparison.changes]
    return Comparison(same_head=True, changes=tuple(change_between(f, f) for f in findings))


def test_all_right() -> None:
    scores = score_changes(TRUTH, [said(one) for one in TRUTH])
    ones = (
        "kinds_right",
        "kinds_right_of_found",
        "kinds_right_in_place",
        "moved_kinds_right",
        "different_heads_said",
        "compared",
    )
    zeros = ("size_change_mae_mm", "made_up_other_person", "made_up_no_change", "different_heads_wrongly_said")
    assert [scores[name] for name in ones] == [1.0] * len(ones)
    assert [scores[name] for name in zeros] == [0.0] * len(zeros)
    assert [scores[f"{kind}_right"] for kind in ChangeKind] == [1.0] * 5
    assert scores.kinds_right == 1.0 and scores.intervals["kinds_right"] == (1.0, 1.0)
    assert scores.counts["true"] == 5 and scores.counts["moved"] == 4 and scores.counts["other"] == 1


def test_all_swapped() -> None:
    scores = score_changes(TRUTH, [said(swap(one)) for one in TRUTH])
    assert scores["moved_kinds_right"] == 0.0
    assert scores["kinds_right"] == scores["kinds_right_of_found"] == pytest.approx(1 / 5)  # the one that is unchanged
    assert scores["size_change_mae_mm"] == 20.0  # 10 mm larger, said to be 10 mm smaller
    right = score_changes([swap(one) for one in TRUTH], [said(swap(one)) for one in TRUTH])
    assert right["moved_kinds_right"] == right["kinds_right"] == 1.0


def test_all_unchanged() -> None:
    scores = score_changes(TRUTH, [said(all_unchanged(one)) for one in TRUTH])
    assert scores["moved_kinds_right"] == 0.0 and scores["unchanged_right"] == 1.0
    assert scores["size_change_mae_mm"] == 10.0
    assert scores["made_up_no_change"] == scores["made_up_other_person"] == 0.0
    assert scores["different_heads_said"] == 0.0


def test_made_up_changes() -> None:
    """A change for another person, and where nothing changed; a gone one too."""
    scores = score_changes([STILL, NOTHING, OTHER, OTHER], [said(CHANGED), said(STILL), said(swap(NEW)), said(OTHER)])
    assert scores["made_up_no_change"] == 0.5
    assert scores["made_up_other_person"] == 0.5
    assert scores["different_heads_said"] == 0.5
    assert scores["kinds_right"] == 0.0


def test_different_heads_said_of_one_head() -> None:
    scores = score_changes([CHANGED, STILL], [said(OTHER), said(STILL)])
    assert scores["different_heads_wrongly_said"] == 0.5
    assert scores["kinds_right"] == 0.25 and scores["compared"] == 1.0
    assert scores["kinds_right_of_found"] == 1.0  # what is not stated is not among those found


def test_a_report_without_a_comparison_has_missed_every_change() -> None:
    scores = score_changes([CHANGED], [render_report([mass(25)], 0).text])
    assert scores["kinds_right"] == 0.0 and scores["compared"] == 0.0 and scores["size_change_mae_mm"] is None


def test_a_change_in_the_wrong_place_is_right_in_kind_only() -> None:
    wrong = change_between(mass(15, Side.RIGHT), mass(21, Side.RIGHT))
    scores = score_changes(
        [Comparison(same_head=True, changes=(GROWN,))], [said(Comparison(same_head=True, changes=(wrong,)))]
    )
    assert scores["kinds_right"] == 1.0 and scores["kinds_right_in_place"] == 0.0
    assert scores["size_change_mae_mm"] == 4.0


def test_two_of_a_class_are_matched_by_place() -> None:
    two = Comparison(
        same_head=True,
        changes=(
            GROWN,
            change_between(mass(40, Side.RIGHT, Region.INSULA), None),
            change_between(None, mass(9, Side.RIGHT)),
        ),
    )
    assert score_changes([two], [said(two)])["kinds_right_in_place"] == 1.0


def test_reversed_share() -> None:
    texts = [said(one) for one in TRUTH]
    assert reversed_share(texts, [said(swap(one)) for one in TRUTH]) == 1.0
    assert reversed_share(texts, texts) == 0.0
    assert reversed_share(texts, [said(all_unchanged(one)) for one in TRUTH]) == 0.0
    assert reversed_share([said(STILL)], [said(STILL)]) is None
    one = Change(kind=ChangeKind.SMALLER, before=GROWN.after, after=GROWN.before)
    assert reversed_share(texts[:1], [said(Comparison(same_head=True, changes=(one,)))]) == pytest.approx(1 / 3)


def test_every_case_needs_a_text() -> None:
    with pytest.raises(UsageError, match="texts"):
        score_changes([CHANGED], [])
    with pytest.raises(UsageError, match="swapped"):
        reversed_share(["a"], [])
