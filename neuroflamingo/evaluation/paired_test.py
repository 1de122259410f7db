"""`differences`: the paired bootstrap test between two systems that wrote reports on the same scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.evaluation.bootstrap import interval
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.evaluation.text_scores import TextScores


@dataclass(frozen=True)
class Difference:
    """One figure of a system minus that of another.

    Attributes:
        value: the difference.
        interval: 95 % interval of it, from drawing the same persons for both.
        p: two-sided, by the share of draws on the other side of no difference; at least 2 / (draws + 1).
    """

    value: float
    interval: tuple[float, float] | None
    p: float


def differences(one: TextScores, other: TextScores) -> dict[str, Difference | None]:
    """Paired bootstrap of two systems on the same cases; None where one of them has no figure.

    Raises:
        UsageError: not the same cases.
    """
    if [pair.id for pair in one.pairs] != [pair.id for pair in other.pairs] or one.resamples != other.resamples:
        raise UsageError("two systems are compared on the same cases", hint="score both against the same references")
    found: dict[str, Difference | None] = {}
    for name, value in one.values.items():
        base = other.values.get(name)
        if value is None or base is None:
            found[name] = None
            continue
        drawn = one.draws[name] - other.draws[name]
        drawn = drawn[np.isfinite(drawn)]
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
        found[name] = Difference(value - base, interval(drawn), p)
    return found
