"""Every figure on cases small enough to count by hand; intervals, tables and the constant report."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo.evaluation.bootstrap import interval, resampled_sums
from neuroflamingo.evaluation.constant_report import best_constant_report
from neuroflamingo.evaluation.scoring import METRICS, score_exchanged, score_findings, score_reports
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side, Signal
from neuroflamingo.findings.wording import render_report
from neuroflamingo_preprocessing.errors import OutputError, UsageError

MASS = Finding(kind=FindingClass.MASS, side=Side.LEFT, region=Region.FRONTAL, size_mm=20, signal=Signal.LOW)
BLEED = Finding(kind=FindingClass.HEMATOMA, side=Side.RIGHT, region=Region.INSULA, size_mm=10, signal=Signal.HIGH)
STEM = Finding(kind=FindingClass.INFARCT, side=Side.MIDLINE, region=Region.BRAINSTEM, size_mm=9, signal=Signal.LOW)
WHITE = Finding(kind=FindingClass.WHITE_MATTER_LESIONS, side=Side.BILATERAL, region=Region.WHITE_MATTER, grade=2)
PUBLISHED_KEYS = [
    "finding_f1",
    "full_finding_f1",
    "laterality_accuracy",
    "wrong_side_rate",
    "region_accuracy",
    "size_mae_mm",
    "hallucination_on_normals",
    "omission_rate",
    "parse_coverage",
]


def but(finding: Finding, **changes: object) -> Finding:
    return finding.model_copy(update=changes)


def test_by_hand() -> None:
    truth = [[MASS, WHITE], [BLEED], [], [], [STEM]]
    predicted = [
        [but(MASS, side=Side.RIGHT, size_mm=26.0), but(WHITE, grade=3)],  # wrong side, wrong size, wrong grade
        [but(BLEED, region=Region.TEMPORAL, signal=Signal.LOW, size_mm=None), MASS],  # wrong region; one invented
        [],
        [BLEED],  # hallucinated on a normal case
        [],  # missed
    ]
    scores = score_findings(truth, predicted)
    assert scores["finding_precision"] == pytest.approx(3 / 5)
    assert scores["finding_recall"] == pytest.approx(3 / 4)
    assert scores["finding_f1"] == pytest.approx(6 / 9)
    assert scores["full_finding_f1"] == pytest.approx(2 / 9)  # the white matter lesions alone
    assert scores["laterality_accuracy"] == pytest.approx(1 / 2)
    assert scores["wrong_side_rate"] == pytest.approx(1 / 2)
    assert scores["region_accuracy"] == pytest.approx(1 / 2)
    assert scores["size_mae_mm"] == pytest.approx(6.0)
    assert scores["size_within_tolerance"] == pytest.approx(0.0)
    assert scores["signal_accuracy"] == pytest.approx(1 / 2)
    assert scores["grade_accuracy"] == pytest.approx(0.0)
    assert scores["hallucination_on_normals"] == pytest.approx(1 / 2)
    assert scores["hallucinations_per_case"] == pytest.approx(2 / 5)
    assert scores["omission_rate"] == pytest.approx(1 / 4)
    # mass: class, certainty, region, signal of 6; white matter: all but the grade of 5; bleed: 3 of 6
    assert scores["detail_f1"] == pytest.approx(2 * (4 / 6 + 4 / 5 + 3 / 6) / 9)
    assert scores["parse_coverage"] is None
    assert scores.by_class["mass"] == {
        "precision": 1 / 2, "recall": 1.0, "f1": pytest.approx(2 / 3), "matched": 1, "true": 1, "predicted": 2
    }  # fmt: skip
    assert scores.by_class["lobar atrophy"]["f1"] is None
    assert scores.macro_f1 == pytest.approx((0 + 2 / 3 + 2 / 3 + 1) / 4)


def test_an_unsaid_side_is_not_the_wrong_side() -> None:
    scores = score_findings([[MASS]], [[but(MASS, side=None)]])
    assert scores["laterality_accuracy"] == 0.0
    assert scores["wrong_side_rate"] == 0.0


def test_rendered_reports_score_perfectly() -> None:
    truth = [[MASS, WHITE], [BLEED, STEM], []]
    scores = score_reports(truth, [render_report(findings, seed).text for seed, findings in enumerate(truth)])
    for name in ("finding_f1", "full_finding_f1", "detail_f1", "parse_coverage", "impression_agreement"):
        assert scores[name] == 1.0, name
    for name in ("wrong_side_rate", "omission_rate", "size_mae_mm", "contradiction_rate", "false_negation_rate"):
        assert scores[name] == 0.0, name


def test_figures_of_texts() -> None:
    normal = render_report([], 0).text
    scores = score_reports([[MASS], [MASS]], [normal, "Gibberish. FINDINGS: A mass. Xyz. IMPRESSION: Normal MRI."])
    assert scores["false_negation_rate"] == pytest.approx(1 / 2)
    assert scores["impression_agreement"] == pytest.approx(1 / 2)
    assert scores["contradiction_rate"] == pytest.approx(1 / 2)
    assert scores["parse_coverage"] == pytest.approx((1 + 1 / 3) / 2)


def test_json_has_the_published_keys_and_no_nan() -> None:
    written = score_findings([[MASS]], [[]]).to_json()
    assert list(written)[: len(PUBLISHED_KEYS)] == PUBLISHED_KEYS
    assert written["wrong_side_rate"] is None
    json.dumps(written, allow_nan=False)
    assert score_findings([], [])["finding_f1"] is None


def test_lengths_must_agree() -> None:
    with pytest.raises(UsageError, match="every case"):
        score_reports([[MASS]], [])
    with pytest.raises(UsageError, match="every case"):
        score_findings([[MASS]], [[], []])


def test_reports_of_other_patients_by_hand() -> None:
    """Two of three cases share their finding: of six exchanged pairs, two match."""
    truth = [[MASS], [MASS], [BLEED]]
    texts = [render_report(findings, 0).text for findings in truth]
    exchanged = score_exchanged(truth, texts)
    assert len(exchanged.cases) == 6
    assert exchanged["finding_f1"] == exchanged["full_finding_f1"] == pytest.approx(1 / 3)
    (first, *_) = score_exchanged(truth, texts, patients=1).cases
    assert first.truth == (BLEED,) and [finding.kind for finding in first.predicted] == [FindingClass.MASS]
    with pytest.raises(UsageError, match="texts"):
        score_exchanged(truth, texts[:2])


def test_table_of_cases(tmp_path: Path) -> None:
    scores = score_reports([[MASS], []], [render_report([MASS], 1).text, "No mass."])
    scores.write_csv(tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert float(rows[0]["matched"]) == float(rows[0]["true"]) == 1.0
    assert rows[0]["true_findings"] == rows[0]["predicted_findings"] == "left frontal lobe mass 20 mm low"
    assert rows[1]["text"] == "No mass."
    with pytest.raises(OutputError):
        scores.write_csv(tmp_path / "missing" / "cases.csv")
    with pytest.raises(OutputError):
        scores.write_csv(tmp_path / "cases.csv", overwrite=False)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        counts = np.stack([rng.random(150) < 0.3, np.ones(150)], axis=1).astype(float)
        sums = resampled_sums(counts, 300, seed)
        bounds = interval(sums[:, 0] / sums[:, 1])
        assert bounds is not None
        inside += bounds[0] <= 0.3 <= bounds[1]
    assert 0.87 <= inside / 100 <= 1.0


def test_intervals_of_scores() -> None:
    rng = random.Random(0)
    truth = [[MASS] for _ in range(200)]
    predicted = [[MASS] if rng.random() < 0.5 else [] for _ in range(200)]
    scores = score_findings(truth, predicted)
    for name in ("finding_f1", "omission_rate"):
        low, high = scores.intervals[name] or (1.0, 0.0)
        assert low < (scores[name] or 0.0) < high
        assert 0.05 < high - low < 0.25
    assert scores.intervals["laterality_accuracy"] == (1.0, 1.0)
    assert scores.intervals["hallucination_on_normals"] is None
    assert set(scores.intervals) == set(METRICS)
    assert interval(np.array([np.nan])) is None


def test_best_constant_report() -> None:
    truth = [[MASS], [but(MASS, size_mm=30.0)], [but(MASS, size_mm=32.0), BLEED], [], [WHITE]]
    constant = best_constant_report(truth)
    assert constant.findings == (but(MASS, size_mm=30.0),)
    scores = score_reports(truth, [constant.text] * len(truth))
    assert scores["finding_f1"] == pytest.approx(constant.finding_f1) == pytest.approx(2 * 3 / (5 + 5))
    assert best_constant_report([[], []]).findings == ()
    assert best_constant_report([[MASS, MASS], [MASS, MASS]]).findings == (MASS, MASS)
