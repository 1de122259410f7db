"""Heads that differ from the others of their folder in one place: perhaps no healthy ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.findings.regions import region_of, side_of
from neuroflamingo.findings.vocabulary import FOCAL_REGIONS
from neuroflamingo.painting.anatomy import FIELD_SPACING_MM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo.painting.anatomy import Anatomy

FEWEST_HEADS = 6
"""Number of heads below which nothing can be called unusual."""
UNUSUAL, LEAST_SPREAD = 4.0, 0.05
"""Robust z-score of a voxel that is unusual, and the least spread of a voxel over heads (painted signal)."""
LEAST_ML, LEAST_DEPTH_MM = 6.0, 6.0
"""Volume of the largest unusual part that is worth a look, and its least depth below the surface (sulci differ)."""


class HeadsSeen:
    """Signal of heads at 4 mm, for comparing each with all others and their mirror images."""

    def __init__(self) -> None:
        self._signals: dict[str, NDArray[np.float32]] = {}
        self._depth: NDArray[np.float32] | None = None
        self._affine = np.eye(4)

    def add(self, anatomy: Anatomy) -> None:
        """Remember a head, once."""
        from scipy.ndimage import gaussian_filter

        if anatomy.name in self._signals:
            return
        t1, depth = anatomy.coarse.data[0], anatomy.fields.data[4]
        every = (slice(None, None, 2),) * 3
        signal = gaussian_filter(t1, 1.5)[every]
        shape = tuple(slice(0, min(pair)) for pair in zip(signal.shape, depth.shape, strict=True))
        self._signals[anatomy.name] = signal[shape]
        self._affine = anatomy.fields.affine
        self._depth = depth[shape] if self._depth is None else np.minimum(self._depth, depth[shape])

    def unlike_the_others(self) -> list[str]:
        """A sentence for each head that is unusual in one place; none if there are fewer than six heads."""
        from scipy.ndimage import center_of_mass, label

        if len(self._signals) < FEWEST_HEADS or self._depth is None:
            return []
        heads = np.stack(list(self._signals.values()))
        both = np.concatenate([heads, heads[:, ::-1]])
        usual = np.median(both, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(both - usual), axis=0), LEAST_SPREAD)
        said = []
        for name, head in self._signals.items():
            parts, count = label((np.abs(head - usual) / spread > UNUSUAL) & (self._depth > LEAST_DEPTH_MM))
            sizes_ml = np.bincount(parts.reshape(-1), minlength=count + 1)[1:] * FIELD_SPACING_MM**3 / 1000.0
            if count and sizes_ml.max() >= LEAST_ML:
                place = self._affine @ np.append(center_of_mass(parts == 1 + int(sizes_ml.argmax())), 1.0)
                region = FOCAL_REGIONS[int(region_of(place[None, :3])[0])]
                said.append(
                    f"{name}: {sizes_ml.max():.0f} ml about the {side_of(place[0])} {region} are unlike the other "
                    "heads; look at it, a healthy head is expected"
                )
        return said
