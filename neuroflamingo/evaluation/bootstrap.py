"""Bootstrap percentile intervals over cases, vectorised for metrics that are ratios of per-case sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def resampled_sums(
    counts: Float[np.ndarray, "case column"], resamples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "resample column"]:
    """Column sums over cases drawn with replacement, as many as there are.

    Drawing n cases with replacement gives each a multinomial number of copies, so one matrix product does it all.
    """
    cases = len(counts)
    if cases == 0:
        return np.zeros((resamples, counts.shape[1]))
    copies = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1.0 / cases), size=resamples)
    return copies.astype(np.float64) @ counts


def interval(values: Float[np.ndarray, " resample"], level: float = 0.95) -> tuple[float, float] | None:
    """Central percentile interval of the defined values; None if there are none."""
    defined = values[np.isfinite(values)]
    if len(defined) == 0:
        return None
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
