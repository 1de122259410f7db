"""Tissue shares of a brain from its signal alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TISSUE_SIGNAL = (0.28, 0.65, 0.82)
"""Fluid, grey and white matter in the template, to which other heads are scaled."""
PARTIAL_VOXELS = 0.7

Maps = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]
"""T1, grey, white and mask (0 to 1), and their affine."""


def segment(signal: NDArray[np.float32], mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Maps:
    """Scale a brain to the template's tissue signals and estimate tissue shares of each voxel."""
    from scipy.ndimage import gaussian_filter

    means = three_means(signal[mask & (signal > 0)])
    fluid, grey, white = TISSUE_SIGNAL
    t1 = np.interp(signal, (0.0, *means), (0.0, *TISSUE_SIGNAL)).astype(np.float32)
    above = signal > means[2]
    t1[above] = white * signal[above] / np.float32(means[2])
    t1[mask] = np.maximum(t1[mask], np.float32(fluid))
    white_share = np.clip((t1 - grey) / (white - grey), 0, 1) * mask
    grey_share = np.clip((t1 - fluid) / (grey - fluid), 0, 1) * mask - white_share
    smooth: list[Any] = [
        gaussian_filter(np.asarray(share, np.float32), PARTIAL_VOXELS) for share in (grey_share, white_share)
    ]
    return t1 * mask, smooth[0], smooth[1], mask.astype(np.float32), affine


def three_means(values: NDArray[np.float32]) -> tuple[float, float, float]:
    """Fluid, grey and white signal by one-dimensional k-means, started from quantiles."""
    sample = np.sort(values)[:: max(1, len(values) // 200_000)]
    means = np.quantile(sample, [0.05, 0.4, 0.85])
    for _ in range(30):
        nearest = np.abs(sample[:, None] - means).argmin(1)
        means = np.array([sample[nearest == k].mean() for k in range(3)])
    return float(means[0]), float(means[1]), float(means[2])
