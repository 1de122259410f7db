"""Rank correlation of stated grades with painted volumes."""

from __future__ import annotations

import pytest

from neuroflamingo.evaluation.grade_ranks import grade_ranks, graded_volumes
from neuroflamingo.findings.vocabulary import Finding, FindingClass
from neuroflamingo.findings.wording import render_report
from neuroflamingo.painting.case import paint_case
from neuroflamingo.painting.cases import VENTRICLES_ML

VENTRICLES, WHITE_MATTER = FindingClass.VENTRICULAR_ENLARGEMENT, FindingClass.WHITE_MATTER_LESIONS
PLACES = {VENTRICLES: "lateral ventricles", WHITE_MATTER: "cerebral white matter"}


def graded(kind: FindingClass, grade: int) -> Finding:
    return Finding.model_validate({"kind": kind, "side": "bilateral", "region": PLACES[kind], "grade": grade})


def report(*findings: Finding) -> str:
    return render_report(list(findings), 0).text


def test_grades_in_the_order_of_volumes_agree_and_those_turned_round_do_not() -> None:
    volumes = [{VENTRICLES: ml} for ml in (30.0, 52.0, 80.0)] + [{}]
    texts = [*(report(graded(VENTRICLES, grade)) for grade in (1, 2, 3)), report(graded(VENTRICLES, 3))]
    assert grade_ranks(volumes, texts) == {VENTRICLES: pytest.approx(1.0), WHITE_MATTER: None}
    turned = [*texts[2::-1], texts[3]]
    assert grade_ranks(volumes, turned)[VENTRICLES] == pytest.approx(-1.0)


def test_a_missed_finding_has_grade_nought() -> None:
    volumes = [{WHITE_MATTER: ml} for ml in (3.0, 20.0, 50.0)]
    texts = [report(), report(graded(WHITE_MATTER, 2)), report(graded(WHITE_MATTER, 3))]
    assert grade_ranks(volumes, texts)[WHITE_MATTER] == pytest.approx(1.0)
    assert grade_ranks(volumes, [texts[2], texts[1], texts[0]])[WHITE_MATTER] == pytest.approx(-1.0)


def test_without_differences_there_is_no_correlation() -> None:
    texts = [report(graded(VENTRICLES, 2))] * 3
    assert grade_ranks([{VENTRICLES: ml} for ml in (50.0, 52.0, 55.0)], texts)[VENTRICLES] is None
    assert grade_ranks([{VENTRICLES: 50.0}] * 2, texts[:2])[VENTRICLES] is None


def test_painted_volumes_follow_the_painted_grades() -> None:
    volumes = {grade: graded_volumes(paint_case(7, findings=[graded(VENTRICLES, grade)])) for grade in (1, 2, 3)}
    for grade, painted in volumes.items():
        low, high = VENTRICLES_ML[grade]
        assert set(painted) == {VENTRICLES} and low - 1 <= painted[VENTRICLES] <= high + 1
    white = [graded_volumes(paint_case(7, findings=[graded(WHITE_MATTER, grade)]))[WHITE_MATTER] for grade in (1, 2, 3)]
    assert 1.0 < white[0] < white[1] < white[2] < 150.0
