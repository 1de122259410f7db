"""Tables of labels: sensitivity, specificity, predictive values, F1 and balanced accuracy of each, and over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.evaluation.bootstrap import interval, resampled_sums

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

CELLS = ("true_positive", "false_positive", "true_negative", "false_negative")
FIGURES = ("sensitivity", "specificity", "ppv", "npv", "f1", "balanced_accuracy")
OVERALL = tuple(f"{how}_{name}" for how in ("macro", "micro") for name in FIGURES)

Row = dict[str, float | None]


@dataclass(frozen=True)
class LabelTable:
    """Figures of labels, with 95 % intervals; what has no denominator is None.

    Attributes:
        labels: for each label its figures, the four counts, and under `intervals` the bounds.
        overall: macro (mean over the labels that have the figure), micro (of the summed counts), `crg`, and
            `exact_match`, the share of cases with all labels right.
        intervals: of `overall`.
    """

    labels: dict[str, dict[str, object]]
    overall: Row
    intervals: dict[str, tuple[float, float] | None]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {"labels": self.labels, "overall": self.overall, "intervals": self.intervals}


def label_cells(
    truth: Bool[np.ndarray, "case label"], predicted: Bool[np.ndarray, "case label"]
) -> Float[np.ndarray, "case cell"]:
    """The four counts of each label, side by side, then whether all labels of the case are right, and a one."""
    cells = np.stack([truth & predicted, ~truth & predicted, ~truth & ~predicted, truth & ~predicted], axis=-1)
    right = (truth == predicted).all(axis=1, keepdims=True)
    flat = cells.reshape(len(truth), len(CELLS) * truth.shape[1])
    return np.concatenate([flat, right, np.ones((len(truth), 1))], axis=1).astype(np.float64)


def label_figures(sums: Float[np.ndarray, "*draw cell"]) -> dict[str, np.ndarray]:
    """Figures of summed counts: those of `FIGURES` for each label `[*draw, label]`, those over all `[*draw]`; else NaN.

    `crg` is the score of Hamamci et al. 2025 (arXiv 2505.17167), where a true finding weighs more the rarer it is: 1 is
    perfect, a third that of saying nothing.
    """
    cells = sums[..., :-2].reshape(*sums.shape[:-1], -1, len(CELLS))
    found = _figures(cells)
    with_means = dict(found)
    for name in FIGURES:
        defined = np.isfinite(found[name])
        total = np.where(defined, found[name], 0.0).sum(-1)
        with_means[f"macro_{name}"] = _ratio(total, defined.sum(-1))
    pooled = cells.sum(-2)
    with_means |= {f"micro_{name}": values for name, values in _figures(pooled).items()}
    tp, fp, tn, fn = np.moveaxis(pooled, -1, 0)
    weight = _ratio(tn + fp, 2 * (tp + fn))
    most = (tp + fn) * weight
    with_means["crg"] = _ratio(most, 2 * most - (tp * weight - fn * weight - fp))
    with_means["exact_match"] = _ratio(sums[..., -2], sums[..., -1])
    return with_means


def _figures(cells: np.ndarray) -> dict[str, np.ndarray]:
    tp, fp, tn, fn = np.moveaxis(cells, -1, 0)
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    bottom = np.asarray(bottom, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)


def known(value: np.ndarray | float) -> float | None:
    """A number; None for NaN."""
    return float(value) if np.isfinite(value) else None


def label_table(
    names: Sequence[str], cells: Float[np.ndarray, "case cell"], resamples: int = 1000, seed: int = 0
) -> LabelTable:
    """The table of labels.

    Args:
        names: of the labels.
        cells: of `label_cells`; or sums of these over the scans of a person, so that persons are drawn.
        resamples: number of draws for the intervals.
        seed: of the draws.
    """
    sums = cells.sum(0) if len(cells) else np.zeros(len(CELLS) * len(names) + 2)
    figures, drawn = label_figures(sums), label_figures(resampled_sums(cells, resamples, seed))
    counts = sums[:-2].reshape(len(names), len(CELLS))
    labels: dict[str, dict[str, object]] = {}
    for at, name in enumerate(names):
        labels[name] = {figure: known(figures[figure][at]) for figure in FIGURES}
        labels[name] |= {cell: int(count) for cell, count in zip(CELLS, counts[at], strict=True)}
        labels[name]["intervals"] = {figure: interval(drawn[figure][:, at]) for figure in FIGURES}
    over = (*OVERALL, "crg", "exact_match")
    return LabelTable(
        labels, {name: known(figures[name]) for name in over}, {name: interval(drawn[name]) for name in over}
    )
