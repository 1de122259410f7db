"""The table of labels: by hand on a few cases."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflamingo.evaluation.label_table import label_cells, label_figures, label_table

TRUTH = np.array([[1, 0], [1, 0], [0, 0], [0, 1]], dtype=bool)
SAID = np.array([[1, 0], [0, 1], [0, 0], [1, 1]], dtype=bool)


def test_figures_by_hand() -> None:
    table = label_table(["mass", "infarct"], label_cells(TRUTH, SAID), resamples=200)
    mass, infarct = table.labels["mass"], table.labels["infarct"]
    assert [mass[name] for name in ("true_positive", "false_positive", "true_negative", "false_negative")] == [
        1,
        1,
        1,
        1,
    ]
    assert mass["sensitivity"] == mass["specificity"] == mass["ppv"] == mass["npv"] == mass["f1"] == 0.5
    assert infarct["sensitivity"] == 1.0 and infarct["specificity"] == pytest.approx(2 / 3)
    assert infarct["ppv"] == 0.5 and infarct["npv"] == 1.0 and infarct["f1"] == pytest.approx(2 / 3)
    assert infarct["balanced_accuracy"] == pytest.approx(5 / 6)
    assert table.overall["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert table.overall["micro_f1"] == pytest.approx(4 / 7)
    assert table.overall["exact_match"] == 0.5
    low, high = table.intervals["micro_f1"] or (1.0, 0.0)
    assert low <= 4 / 7 <= high


def test_crg_weighs_a_true_finding_by_its_rarity() -> None:
    """A = 3 of T = 8 labels are true, so w = 5/6; s = 2 w - 1 w - 2."""
    weight = 5 / 6
    value = label_figures(label_cells(TRUTH, SAID).sum(0))["crg"]
    assert value == pytest.approx(3 * weight / (2 * 3 * weight - (2 * weight - weight - 2)))
    assert label_figures(label_cells(TRUTH, TRUTH).sum(0))["crg"] == pytest.approx(1.0)
    assert label_figures(label_cells(TRUTH, np.zeros_like(TRUTH)).sum(0))["crg"] == pytest.approx(1 / 3)


def test_a_label_that_never_occurs_has_no_sensitivity_and_is_left_out_of_the_mean() -> None:
    truth, said = np.array([[1, 0], [0, 0]], dtype=bool), np.array([[1, 0], [0, 0]], dtype=bool)
    table = label_table(["mass", "infarct"], label_cells(truth, said), resamples=200)
    assert table.labels["infarct"]["sensitivity"] is None and table.labels["infarct"]["f1"] is None
    assert table.overall["macro_f1"] == 1.0 and table.overall["macro_specificity"] == 1.0


def test_no_case_at_all() -> None:
    table = label_table(["mass"], label_cells(np.zeros((0, 1), dtype=bool), np.zeros((0, 1), dtype=bool)))
    assert table.overall["micro_f1"] is None and table.intervals["micro_f1"] is None
