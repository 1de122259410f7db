"""Artefacts of a volume: blur, ghosts of a head that moved, and spikes, measured in the scan's own voxels.

Thresholds lie between what 81 real heads and painted ones show and what the same damage, made by rule, does to them:
tests/neuroflamingo/painting/test_damaged_heads.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.geometry import Affine, block_mean

if TYPE_CHECKING:
    from jaxtyping import Float32
    from numpy.typing import NDArray

MASK_MM, HEAD_SHARE = 3.0, 0.15
"""Resolution of the head's mask; share of the range of values above which it is head."""
NEAR_MM, FAR_MM = 2.0, 12.0
"""Distances between which the growth of differences says how sharp a scan is."""
LEAST_PLACES = 100
BLURRED, GHOSTS, SPIKES = 1.3, 0.033, 10.0
SLOWEST, LEAST_AMPLITUDE = 0.06, 0.02
"""Stripes: fewest periods for each voxel, and smallest amplitude as a share of the head's level."""


@dataclass(frozen=True)
class Artefacts:
    """Measures of artefacts; None where one cannot be taken.

    Attributes:
        smoothness: exponent with which squared differences between voxels grow from 2 to 12 mm, of the worst axis: some
            0.2 to 1.1 in sharp scans (1: edges, 0: noise), towards 2 in blurred ones.
        ghosts: signal in the air beside the head along one axis, above that in the corners (subtracted as power, since
            noise is), on the emptier of both sides and as a share of the head's; the phase-encoding ghosts of a head
            that moves lie there.
        spikes: height of the most isolated peak of the spectrum of slices over its surroundings; a spike in k-space
            makes stripes, which are one such peak.
    """

    smoothness: float | None = None
    ghosts: float | None = None
    spikes: float | None = None


def measure_artefacts(voxels: Float32[np.ndarray, "x y z"], affine: Affine) -> Artefacts:
    """Measure the artefacts of a head.

    Args:
        voxels: `[x, y, z]`, in any orientation.
        affine: voxel index to world, RAS mm.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (max(1, round(MASK_MM / s)) for s in spacing)
    small, _ = block_mean(voxels, affine, (x, y, z))
    head = _head(small)
    if not head.any():
        return Artefacts()
    level = float(np.median(small[head]))
    return Artefacts(
        _smoothness(voxels, _inside(head), (x, y, z), spacing),
        _ghosts(small, head, level),
        _spikes(voxels, level, spacing),
    )


def judge_artefacts(found: Artefacts, warnings: list[str]) -> None:
    """Warn about artefacts.

    Args:
        found: see `measure_artefacts`.
        warnings: extended in place.
    """
    if found.smoothness is not None and found.smoothness > BLURRED:
        warnings.append(f"the scan is blurred, at least along one axis (smoothness {found.smoothness:.2f})")
    if found.ghosts is not None and found.ghosts > GHOSTS:
        warnings.append(f"there are ghosts beside the head ({found.ghosts:.1%} of its signal): it may have moved")
    if found.spikes is not None and found.spikes > SPIKES:
        warnings.append("regular stripes run through the scan (a spike in its raw data)")


def _head(small: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask of the head on a coarse grid: the largest bright part, without holes."""
    from scipy import ndimage

    low, high = np.percentile(small, (2, 98))
    bright = ndimage.binary_opening(small > low + HEAD_SHARE * (high - low))
    parts, count = ndimage.label(bright)
    if not count:
        return np.zeros(small.shape, bool)
    largest = parts == 1 + np.argmax(ndimage.sum_labels(bright, parts, range(1, count + 1)))
    return ndimage.binary_fill_holes(ndimage.binary_closing(largest, iterations=3))


def _inside(head: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    return ndimage.binary_erosion(head, iterations=2)


def _smoothness(
    voxels: NDArray[np.float32], inside: NDArray[np.bool_], factors: tuple[int, int, int], spacing: NDArray[Any]
) -> float | None:
    """Largest exponent of the three axes; on every third line along an axis, which are enough."""
    exponents = []
    for axis in range(3):
        lines = tuple(
            slice(None) if other == axis else slice(factor // 2, None, factor) for other, factor in enumerate(factors)
        )
        count = tuple(
            n * f if other == axis else n for other, (n, f) in enumerate(zip(inside.shape, factors, strict=True))
        )
        values = np.moveaxis(voxels[lines][: count[0], : count[1], : count[2]], axis, 0)
        within = np.moveaxis(inside.repeat(factors[axis], axis=axis), axis, 0)
        steps = [max(1, round(mm / spacing[axis])) for mm in (NEAR_MM, FAR_MM)]
        near, far = (_difference(values, within, step) for step in steps)
        if near and far and steps[0] < steps[1]:
            exponents.append(float(np.log(near / far) / np.log(steps[0] / steps[1])))
    return max(exponents, default=None)


def _difference(values: NDArray[np.float32], within: NDArray[np.bool_], step: int) -> float:
    """Mean squared difference of voxels `step` apart along the first axis; the largest hundredth is cut off."""
    both = within[step:] & within[:-step]
    if both.sum() < LEAST_PLACES:
        return 0.0
    apart = np.abs((values[step:] - values[:-step])[both])
    return float(np.square(np.minimum(apart, np.percentile(apart, 99)), dtype=np.float64).mean())


def _ghosts(small: NDArray[np.float32], head: NDArray[np.bool_], level: float) -> float | None:
    from scipy import ndimage

    air = ~ndimage.binary_dilation(head, iterations=3)
    beside = [np.broadcast_to(head.any(axis=axis, keepdims=True), head.shape) for axis in range(3)]
    corners = small[air & ~beside[0] & ~beside[1] & ~beside[2]]
    if len(corners) < LEAST_PLACES or level <= 0:
        return None
    noise, found = float(np.median(corners)), []
    for axis in range(3):
        others = beside[axis - 1] | beside[axis - 2]
        place = air & beside[axis] & ~others
        first = np.cumsum(head, axis=axis) == 0
        sides = [small[place & first], small[place & ~first]]
        if min(map(len, sides)) >= LEAST_PLACES:
            signal = min(float(np.median(side)) for side in sides)
            found.append(np.sqrt(max(signal**2 - noise**2, 0.0)) / level)
    return float(max(found)) if found else None


def _spikes(voxels: NDArray[np.float32], level: float, spacing: NDArray[Any]) -> float:
    """The most isolated peak of the slices: of all along a thick axis, else of a dozen along each axis.

    A spike in the raw data of a volume makes stripes in all of its slices, one in those of a slice only there.
    """
    thick = int(np.argmax(spacing))
    alone = spacing[thick] > 1.5 * np.median(spacing)
    slices = [(thick, 1)] if alone else [(axis, max(1, voxels.shape[axis] // 12)) for axis in range(3)]
    return max(
        _isolation(np.moveaxis(voxels, axis, 0)[number], level)
        for axis, step in slices
        for number in range(0, voxels.shape[axis], step)
    )


def _isolation(picture: NDArray[np.float32], level: float) -> float:
    """Height of the highest peak of a slice's spectrum, apart from slow changes, over its surroundings."""
    from scipy import fft

    rows, columns = picture.shape
    if min(rows, columns) < 16 or not np.ptp(picture):
        return 0.0
    window = np.outer(np.hanning(rows), np.hanning(columns)).astype(np.float32)
    spectrum = np.abs(fft.rfft2((picture - picture.mean()) * window))
    speed = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)[None])
    peak = np.unravel_index(int(np.argmax(spectrum * np.where(speed > SLOWEST, speed**2, 0))), spectrum.shape)
    if 2 * spectrum[peak] / window.sum() < LEAST_AMPLITUDE * level:
        return 0.0
    row, column = np.arange(peak[0] - 5, peak[0] + 6), np.arange(peak[1] - 5, peak[1] + 6)
    around = spectrum[np.ix_(row % rows, np.clip(np.abs(column), 0, spectrum.shape[1] - 1))].copy()
    around[3:8, 3:8] = 0
    return float(spectrum[peak] / around.max())
