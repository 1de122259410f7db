"""Geometry of volumes: canonical orientation, corners, block means, and the entries of the geometry log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

if TYPE_CHECKING:
    from numpy.typing import NDArray

Affine = Float64[np.ndarray, "4 4"]


@dataclass(frozen=True)
class GeometryStep:
    """One change of geometry: an entry of the log that goes into every report.

    Attributes:
        name: name of the change.
        before, after: voxel-to-world affine (RAS mm) before and after, as nested tuples.
        interpolation: `none` where voxels are only permuted or cropped.
        reason: why it was done.
        shape_before, shape_after: numbers of voxels.
    """

    name: str
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    interpolation: str
    reason: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "before": [list(row) for row in self.before],
            "after": [list(row) for row in self.after],
            "interpolation": self.interpolation,
            "reason": self.reason,
            "shape_before": list(self.shape_before),
            "shape_after": list(self.shape_after),
        }


def as_rows(affine: NDArray[Any]) -> tuple[tuple[float, ...], ...]:
    """An affine as nested tuples, for the log."""
    return tuple(tuple(float(value) for value in row) for row in affine)


def orientation_codes(affine: Affine) -> str:
    """The nearest anatomical direction of each voxel axis, for instance `RAS` or `LPI`."""
    codes = ["", "", ""]
    for voxel_axis, (world_axis, sign) in enumerate(_nearest_axes(affine)):
        codes[voxel_axis] = ("RAS" if sign > 0 else "LPI")[world_axis]
    return "".join(codes)


def _nearest_axes(affine: Affine) -> list[tuple[int, int]]:
    """Nearest world axis and sign of each voxel axis.

    One-to-one even near 45 degrees, where two voxel axes may have the same nearest world axis: an assignment decides.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearness = np.abs(directions)
    world, voxel = nearness.argmax(axis=0), np.arange(3)
    _, second, first = np.sort(nearness, axis=0)
    clear = len(set(world)) == 3 and (first - second).min() > 1e-6
    if not clear:
        from scipy.optimize import (
            linear_sum_assignment,  # importing it takes a third of a second, and hardly any scan needs it
        )

        world, voxel = linear_sum_assignment(-nearness)
    pairs = {int(v): (int(w), 1 if directions[w, v] >= 0 else -1) for w, v in zip(world, voxel, strict=True)}
    return [pairs[axis] for axis in range(3)]


def to_canonical(voxels: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine]:
    """Permute and flip the voxel axes so that they run nearest to right, anterior, superior.

    No interpolation: each voxel keeps its value and its world position.

    Returns:
        A view of the voxels, and its affine.
    """
    axes = _nearest_axes(affine)
    order = [next(v for v in range(3) if axes[v][0] == world) for world in range(3)]
    flips = np.zeros((4, 4))
    flips[3, 3] = 1
    slices = []
    for new_axis, old_axis in enumerate(order):
        sign = axes[old_axis][1]
        flips[old_axis, new_axis] = sign
        if sign < 0:
            flips[old_axis, 3] = voxels.shape[old_axis] - 1
        slices.append(slice(None, None, sign))
    return voxels.transpose(order)[tuple(slices)], affine @ flips


def corners(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Outer corners of a volume in voxel coordinates, `[8, 3]`."""
    ends = [(-0.5, n - 0.5) for n in shape]
    return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)


def apply(affine: NDArray[Any], points: NDArray[Any]) -> NDArray[np.float64]:
    """Apply a 4 x 4 affine to points `[n, 3]`."""
    return points @ affine[:3, :3].T + affine[:3, 3]


def block_mean(voxels: NDArray[Any], affine: Affine, factors: tuple[int, int, int]) -> tuple[NDArray[Any], Affine]:
    """Average blocks of voxels, the cheapest anti-aliasing filter; voxels left over at the upper ends are cut off."""
    if factors == (1, 1, 1):
        return voxels, affine
    shape = [n // f for n, f in zip(voxels.shape, factors, strict=True)]
    voxels = voxels[tuple(slice(n * f) for n, f in zip(shape, factors, strict=True))]
    total = np.zeros(shape, dtype=np.float32)
    for i in range(factors[0]):
        for j in range(factors[1]):
            for k in range(factors[2]):
                total += voxels[i :: factors[0], j :: factors[1], k :: factors[2]]
    total /= np.float32(np.prod(factors))
    to_fine = np.diag([*map(float, factors), 1.0])
    to_fine[:3, 3] = [(f - 1) / 2 for f in factors]
    return total, affine @ to_fine
