"""Which predicted finding answers which true one: the best assignment within each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuroflamingo.findings.vocabulary import Finding, FindingClass

SIDE_WEIGHT, REGION_WEIGHT, SIZE_WEIGHT = 0.4, 0.4, 0.2


@dataclass(frozen=True)
class Matching:
    """Pairs of (index in truth, index in predicted), and the indices that found no partner."""

    pairs: tuple[tuple[int, int], ...]
    missed: tuple[int, ...]
    invented: tuple[int, ...]


def size_similarity(true_mm: float | None, predicted_mm: float | None) -> float:
    """1 for equal sizes or where the truth has none, falling to 0 with the relative error; 0 for an unsaid size."""
    if true_mm is None:
        return 1.0
    if predicted_mm is None:
        return 0.0
    largest = max(true_mm, predicted_mm)
    return 1.0 if largest <= 0 else 1.0 - abs(true_mm - predicted_mm) / largest


def match_cost(true: Finding, predicted: Finding) -> float:
    """1 - (.4 side + .4 region + .2 size): 0 for a perfect answer, 1 for one that is right in the class alone."""
    credit = SIDE_WEIGHT * (true.side == predicted.side) + REGION_WEIGHT * (true.region == predicted.region)
    return 1.0 - credit - SIZE_WEIGHT * size_similarity(true.size_mm, predicted.size_mm)


def match_findings(truth: Sequence[Finding], predicted: Sequence[Finding]) -> Matching:
    """Assign predicted findings to true ones of the same class at the least total cost.

    Within a class as many pairs are made as there can be, however wrong their attributes: the class was found, and
    what was wrong with it is measured on the pair.
    """
    from scipy.optimize import linear_sum_assignment

    pairs: list[tuple[int, int]] = []
    for kind in FindingClass:
        rows = [at for at, finding in enumerate(truth) if finding.kind is kind]
        columns = [at for at, finding in enumerate(predicted) if finding.kind is kind]
        if rows and columns:
            cost = np.array([[match_cost(truth[row], predicted[column]) for column in columns] for row in rows])
            assigned = zip(*linear_sum_assignment(cost), strict=True)
            pairs += [(rows[row], columns[column]) for row, column in assigned]
    answered, used = {row for row, _ in pairs}, {column for _, column in pairs}
    return Matching(
        pairs=tuple(sorted(pairs)),
        missed=tuple(at for at in range(len(truth)) if at not in answered),
        invented=tuple(at for at in range(len(predicted)) if at not in used),
    )
