"""Assignment of predicted to true findings."""

from __future__ import annotations

import itertools
import random

import pytest

from neuroflamingo.evaluation.matching import match_cost, match_findings, size_similarity
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, Finding, FindingClass, Region, Side


def focal(kind: FindingClass, side: Side, region: Region, size: float | None) -> Finding:
    return Finding(kind=kind, side=side, region=region, size_mm=size)


def random_findings(rng: random.Random) -> list[Finding]:
    sides, regions = (Side.LEFT, Side.RIGHT), FOCAL_REGIONS[:3]
    return [
        focal(rng.choice(FOCAL[:2]), rng.choice(sides), rng.choice(regions), float(rng.randint(8, 45)))
        for _ in range(rng.randint(0, 4))
    ]


def test_only_within_a_class() -> None:
    mass = focal(FindingClass.MASS, Side.LEFT, Region.FRONTAL, 20)
    infarct = focal(FindingClass.INFARCT, Side.LEFT, Region.FRONTAL, 20)
    matching = match_findings([mass], [infarct])
    assert matching.pairs == ()
    assert matching.missed == (0,)
    assert matching.invented == (0,)


def test_costs() -> None:
    true = focal(FindingClass.MASS, Side.LEFT, Region.FRONTAL, 20)
    assert match_cost(true, true) == pytest.approx(0.0)
    assert match_cost(true, true.model_copy(update={"side": Side.RIGHT})) == pytest.approx(0.4)
    assert match_cost(true, true.model_copy(update={"region": Region.INSULA})) == pytest.approx(0.4)
    assert match_cost(true, true.model_copy(update={"size_mm": 40.0})) == pytest.approx(0.1)
    assert match_cost(true, Finding(kind=FindingClass.MASS)) == pytest.approx(1.0)


def test_size_similarity() -> None:
    assert size_similarity(None, None) == size_similarity(None, 12.0) == 1.0
    assert size_similarity(12.0, None) == 0.0
    assert size_similarity(10.0, 20.0) == pytest.approx(0.5)
    assert size_similarity(0.0, 0.0) == 1.0


def test_greedy_order_would_be_wrong() -> None:
    """Two masses described in the other order, the first near to both: the whole assignment decides."""
    left, right = (focal(FindingClass.MASS, side, Region.FRONTAL, 20) for side in (Side.LEFT, Side.RIGHT))
    assert match_findings([left, right], [right, left]).pairs == ((0, 1), (1, 0))


def test_equals_the_best_of_all_assignments() -> None:
    rng = random.Random(0)
    for _ in range(200):
        truth, predicted = random_findings(rng), random_findings(rng)
        pairs = match_findings(truth, predicted).pairs
        cost = sum(match_cost(truth[row], predicted[column]) for row, column in pairs)
        best = 0.0
        for kind in FOCAL:
            rows = [f for f in truth if f.kind is kind]
            columns = [f for f in predicted if f.kind is kind]
            if len(rows) > len(columns):
                choices = (zip(picked, columns, strict=True) for picked in itertools.permutations(rows, len(columns)))
            else:
                choices = (zip(rows, picked, strict=True) for picked in itertools.permutations(columns, len(rows)))
            best += min(sum(match_cost(a, b) for a, b in choice) for choice in choices)
        assert cost == pytest.approx(best)
