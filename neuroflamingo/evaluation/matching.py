"""Matching of predicted to true findings: the optimal assignment within each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from neuroflamingo.findings.vocabulary import Finding, FindingClass

SIDE_WEIGHT, REGION_WEIGHT, SIZE_WEIGHT = 0.4, 0.4, 0.2


class HasClass(Protocol):
    """What can be matched: it has the class of a finding."""

    @property
    def kind(self) -> FindingClass:
        """The class."""
        ...


TrueT = TypeVar("TrueT", bound=HasClass)


@dataclass(frozen=True)
class Matching:
    """Matched pairs (index in truth, index in predicted), and unmatched indices."""

    pairs: tuple[tuple[int, int], ...]
    missed: tuple[int, ...]
    invented: tuple[int, ...]


def size_similarity(true_mm: float | None, predicted_mm: float | None) -> float:
    """Similarity of sizes: 1 if equal or if the truth has none, decreasing to 0 with relative error; 0 if unstated."""
    if true_mm is None:
        return 1.0
    if predicted_mm is None:
        return 0.0
    largest = max(true_mm, predicted_mm)
    return 1.0 if largest <= 0 else 1.0 - abs(true_mm - predicted_mm) / largest


def match_cost(true: Finding, predicted: Finding) -> float:
    """Matching cost, 1 - (.4 side + .4 region + .2 size): 0 for a perfect match, 1 if only the class is right."""
    credit = SIDE_WEIGHT * (true.side == predicted.side) + REGION_WEIGHT * (true.region == predicted.region)
    return 1.0 - credit - SIZE_WEIGHT * size_similarity(true.size_mm, predicted.size_mm)


def match_findings(
    truth: Sequence[TrueT], predicted: Sequence[Finding], cost: Callable[[TrueT, Finding], float] = match_cost
) -> Matching:
    """Assign predicted findings to true ones of the same class at minimum total cost.

    Within a class as many pairs as possible are matched, however wrong their attributes: the class was found, and
    errors in its attributes are measured on the pair.

    Args:
        truth: findings, or anything else with a `kind`.
        predicted: findings of a report.
        cost: of a pair.
    """
    from scipy.optimize import linear_sum_assignment

    pairs: list[tuple[int, int]] = []
    for kind in FindingClass:
        rows = [at for at, finding in enumerate(truth) if finding.kind is kind]
        columns = [at for at, finding in enumerate(predicted) if finding.kind is kind]
        if rows and columns:
            costs = np.array([[cost(truth[row], predicted[column]) for column in columns] for row in rows])
            assigned = zip(*linear_sum_assignment(costs), strict=True)
            pairs += [(rows[row], columns[column]) for row, column in assigned]
    answered, used = {row for row, _ in pairs}, {column for _, column in pairs}
    return Matching(
        pairs=tuple(sorted(pairs)),
        missed=tuple(at for at in range(len(truth)) if at not in answered),
        invented=tuple(at for at in range(len(predicted)) if at not in used),
    )
