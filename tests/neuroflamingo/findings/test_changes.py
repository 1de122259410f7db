"""Changes between two scans: what is allowed, naming, reversal, mirroring and order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from neuroflamingo.findings.changes import (
    SAME_MM,
    Change,
    ChangeKind,
    Comparison,
    change_between,
    change_order,
    mirror_changes,
    reverse_changes,
)
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side

MASS = Finding(kind=FindingClass.MASS, side=Side.LEFT, region=Region.FRONTAL, size_mm=15)
LARGE = MASS.model_copy(update={"size_mm": 25.0})
VENTRICLES = Finding(kind=FindingClass.VENTRICULAR_ENLARGEMENT, side=Side.BILATERAL, region=Region.VENTRICLES, grade=1)
CHANGES = (
    Change(kind=ChangeKind.LARGER, before=MASS, after=LARGE),
    Change(kind=ChangeKind.NEW, after=VENTRICLES),
    Change(kind=ChangeKind.GONE, before=LARGE.model_copy(update={"side": Side.RIGHT})),
    Change(kind=ChangeKind.UNCHANGED, before=MASS, after=MASS),
)


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("new", MASS, None),
        ("new", MASS, LARGE),
        ("gone", None, MASS),
        ("gone", None, None),
        ("larger", MASS, None),
        ("unchanged", None, None),
        ("larger", MASS, VENTRICLES),
    ],
)
def test_a_change_that_does_not_fit_its_scans_is_refused(
    kind: str, before: Finding | None, after: Finding | None
) -> None:
    with pytest.raises(ValidationError):
        Change(kind=kind, before=before, after=after)  # type: ignore[arg-type]


def test_different_heads_have_no_changes() -> None:
    assert Comparison(same_head=False).changes == ()
    with pytest.raises(ValidationError, match="two different heads"):
        Comparison(same_head=False, changes=CHANGES)


def test_finding_and_size_change() -> None:
    assert [change.finding.kind for change in CHANGES] == ["mass", "ventricular enlargement", "mass", "mass"]
    assert CHANGES[0].finding is CHANGES[0].after and CHANGES[2].finding is CHANGES[2].before
    assert [change.size_change_mm for change in CHANGES] == [10.0, None, None, 0.0]


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (None, MASS, "new"),
        (MASS, None, "gone"),
        (MASS, LARGE, "larger"),
        (LARGE, MASS, "smaller"),
        (MASS, MASS.model_copy(update={"size_mm": 15 + SAME_MM}), "larger"),
        (MASS, MASS.model_copy(update={"size_mm": 14.9 + SAME_MM}), "unchanged"),
        (MASS, MASS.model_copy(update={"size_mm": None}), "unchanged"),
        (VENTRICLES, VENTRICLES.model_copy(update={"grade": 3}), "larger"),
        (VENTRICLES.model_copy(update={"grade": 3}), VENTRICLES, "smaller"),
        (VENTRICLES, VENTRICLES, "unchanged"),
    ],
)
def test_a_change_is_named_from_its_two_findings(before: Finding | None, after: Finding | None, kind: str) -> None:
    assert change_between(before, after) == Change(kind=ChangeKind(kind), before=before, after=after)


def test_reversed_twice_and_mirrored_twice_is_the_same() -> None:
    back = reverse_changes(CHANGES)
    assert [change.kind.value for change in back] == ["smaller", "gone", "new", "unchanged"]
    assert [change.size_change_mm for change in back] == [-10.0, None, None, 0.0]
    assert reverse_changes(back) == CHANGES
    mirrored = mirror_changes(CHANGES)
    assert [change.finding.side for change in mirrored] == ["right", "bilateral", "left", "right"]
    assert mirrored[0].before is not None and mirrored[0].before.side is Side.RIGHT
    assert mirror_changes(mirrored) == CHANGES


@given(st.permutations((*CHANGES, Change(kind=ChangeKind.NEW, after=MASS))))
def test_order_is_that_of_reports_whatever_it_was(changes: list[Change]) -> None:
    ordered = change_order(changes)
    assert [(change.kind.value, change.finding.size_mm) for change in ordered] == [
        ("larger", 25.0),
        ("gone", 25.0),
        ("new", 15.0),
        ("unchanged", 15.0),
        ("new", None),
    ]
