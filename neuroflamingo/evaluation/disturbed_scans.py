"""Disturbed versions of a scan, as other scanners would have stored it: orientation, pose, thick slices, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.geometry import to_canonical

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.scan import Scan

SEED = 7
TURN_DEGREES = 15.0
THICKER = 1.3
"""A scan is made thicker only from slices thinner than this part of the new ones."""


def _stored_otherwise(scan: Scan, order: tuple[int, int, int], flipped: tuple[int, ...]) -> Scan:
    """The same head with its voxel axes permuted and flipped; every voxel keeps its place in the world."""
    voxels, affine = scan.voxels, scan.affine.copy()
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
        voxels = np.flip(voxels, axis)
    return replace(scan, voxels=np.ascontiguousarray(voxels.transpose(order)), affine=affine[:, [*order, 3]])


def _turned(scan: Scan) -> Scan:
    """The head turned about the vertical axis and nodding, by the affine alone."""
    angle = np.deg2rad(TURN_DEGREES)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.eye(4)
    turn[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return replace(scan, affine=turn @ scan.affine)


def _in_thick_slices(scan: Scan, axis: int, thick_mm: float) -> Scan | None:
    """Slices of that thickness across an axis of the world (0, 1, 2: x, y, z), each the mean of what it covers.

    None if the scan's own slices are nearly as thick.
    """
    voxels, affine = to_canonical(scan.voxels, scan.affine)
    step = float(np.linalg.norm(affine[:3, axis]))
    if thick_mm < THICKER * step:
        return None
    wide = thick_mm / step
    edges = np.arange(0, voxels.shape[axis] + 1e-9, wide)
    sums = np.insert(np.cumsum(voxels, axis=axis, dtype=np.float64), 0, 0.0, axis=axis)
    low = np.minimum(edges.astype(int), voxels.shape[axis] - 1)
    share = (edges - low).reshape([-1 if number == axis else 1 for number in range(3)])
    up_to = sums.take(low, axis) * (1 - share) + sums.take(low + 1, axis) * share
    affine = affine.copy()
    affine[:3, 3] += affine[:3, axis] * (wide - 1) / 2
    affine[:3, axis] *= wide
    return replace(scan, voxels=np.asarray(np.diff(up_to, axis=axis) / wide, np.float32), affine=affine)


def _with_noise(scan: Scan, level: float) -> Scan:
    """Rician noise of that share of the brightest signal (99th percentile), where there is signal at all."""
    there = scan.voxels != 0
    sigma = level * float(np.percentile(scan.voxels[there], 99))
    rng = np.random.default_rng(SEED)
    real, imaginary = (rng.normal(0, sigma, int(there.sum())).astype(np.float32) for _ in range(2))
    voxels = scan.voxels.copy()
    voxels[there] = np.hypot(voxels[there] + real, imaginary)
    return replace(scan, voxels=voxels)


VERSIONS: dict[str, Callable[[Scan], Scan | None]] = {
    "other orientation": lambda scan: _stored_otherwise(scan, (1, 2, 0), (0, 1)),
    "turned": lambda scan: _turned(_stored_otherwise(scan, (2, 0, 1), (2,))),
    "3 mm axial": lambda scan: _in_thick_slices(scan, 2, 3.0),
    "3 mm coronal": lambda scan: _in_thick_slices(scan, 1, 3.0),
    "5.5 mm axial": lambda scan: _in_thick_slices(scan, 2, 5.5),
    "5.5 mm sagittal": lambda scan: _in_thick_slices(scan, 0, 5.5),
    "noise 3 %": lambda scan: _with_noise(scan, 0.03),
    "noise 6 %": lambda scan: _with_noise(scan, 0.06),
}
"""Disturbed versions by name; one that a scan does not allow (its slices are as thick) is None."""
