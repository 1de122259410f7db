"""Painted cases as stored by a scanner: own grid, thick slices, bias, Rician noise, axis order and flips."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.painting.lattice import grow, hats, rotation
from neuroflamingo.painting.rendering import DEPTH, Slow, gain, paint, slow_fields

if TYPE_CHECKING:
    from jaxtyping import Float32
    from numpy.typing import NDArray

    from neuroflamingo.painting.anatomy import Anatomy
    from neuroflamingo.painting.cases import Blueprint

LATTICE_MM = 4.0
FAR_MM = -1000.0
"""Depth at nodes too far from the head to be computed: outside of everything."""
CHUNK = 1_000_000
"""Number of voxels painted at a time."""


@dataclass(frozen=True)
class Sampling:
    """Sampling of a native scan: spacing (mm), orientation code, tilt of the axes, oversampling of thick slices."""

    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    tilt: NDArray[np.float64]
    oversample: tuple[int, int, int]


def draw_sampling(rng: np.random.Generator) -> Sampling:
    """Draw a sampling: two thirds nearly isotropic (1.0 to 1.5 mm), one third with thick slices (2.5 to 5 mm)."""
    spacing = np.full(3, rng.uniform(1.0, 1.5))
    oversample = np.ones(3, dtype=int)
    if rng.random() < 0.33:
        thick = rng.integers(3)
        spacing[thick] = rng.uniform(2.5, 5.0)
        oversample[thick] = 2 if spacing[thick] < 3.6 else 3
    axes, flips = rng.permutation(3), rng.random(3) < 0.5
    tilt = rotation(rng.normal(0, 4.0, 3)) if rng.random() < 0.4 else np.eye(3)
    return Sampling(
        tuple(float(s) for s in spacing),  # type: ignore[arg-type]
        tuple(int(a) for a in axes),  # type: ignore[arg-type]
        tuple(bool(f) for f in flips),  # type: ignore[arg-type]
        tilt,
        tuple(int(n) for n in oversample),  # type: ignore[arg-type]
    )


def _native_grid(blueprint: Blueprint, sampling: Sampling) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Affine (voxel to head world, RAS mm) and shape of a box around the head, before the axes are permuted."""
    corners = np.array([[x, y, z] for x in (-78, 78) for y in (-112, 80) for z in (-76, 88)], dtype=np.float64)
    if blueprint.scanner.skull:
        corners *= 1.12
    head = corners @ blueprint.to_head[:3, :3].T + blueprint.to_head[:3, 3]
    own = head @ sampling.tilt
    low, high = own.min(0) - 4.0, own.max(0) + 4.0
    spacing = np.asarray(sampling.spacing_mm)
    shape = np.ceil((high - low) / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = sampling.tilt @ np.diag(spacing)
    affine[:3, 3] = sampling.tilt @ low
    return affine, tuple(int(n) for n in shape)  # type: ignore[return-value]


def render_native(
    blueprint: Blueprint, anatomy: Anatomy, sampling: Sampling | None = None
) -> tuple[Float32[np.ndarray, "x y z"], NDArray[np.float64]]:
    """Render a scan as stored by a scanner: voxels (arbitrary units) and their affine to RAS world millimetres."""
    rng = np.random.default_rng([blueprint.seed, 2])
    sampling = sampling or draw_sampling(rng)
    affine, shape = _native_grid(blueprint, sampling)
    lattice = _lattice(blueprint, anatomy, np.linalg.inv(blueprint.to_head) @ affine, shape)
    volume = torch.zeros(shape)
    offsets = [np.linspace(-0.5, 0.5, 2 * n + 1)[1::2] for n in sampling.oversample]
    for shift in product(*offsets):
        _add_signal(volume, blueprint, anatomy, lattice, shift)
    volume[lattice.head] *= gain(blueprint.scanner, shape, lattice.head) / float(np.prod(sampling.oversample))
    voxels = _rician(volume.numpy(), blueprint.scanner.noise, rng)
    voxels *= np.float32(rng.uniform(300, 3000))
    return _stored(voxels, affine, sampling)


def _rician(signal: NDArray[np.float32], level: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Replace the signal, in place, by the magnitude of a complex signal with Gaussian noise in both parts."""
    noise = np.empty_like(signal)
    for add in (np.add, np.hypot):
        rng.standard_normal(out=noise, dtype=np.float32)
        noise *= np.float32(level)
        add(signal, noise, out=signal)
    return signal


@dataclass(frozen=True)
class Lattice:
    """Slowly varying fields at nodes about 4 mm apart, from the outer face of the first voxel to that of the last.

    Attributes:
        slow: its parts are `[part, x, y, z]` nodes.
        head: range of voxels that may contain the head, along each axis.
        density: nodes per voxel, along each axis.
    """

    slow: Slow
    head: tuple[slice, ...]
    density: tuple[float, ...]

    def along(self, axis: int, voxels: slice, shift: float) -> Float32[Tensor, "voxel node"]:
        """Weights of the nodes at voxel centres, or at an offset of `shift` voxels."""
        places = (torch.arange(voxels.start, voxels.stop) + (0.5 + shift)) * self.density[axis]
        return hats(places, self.slow.depth.shape[axis + 1])


def _lattice(
    blueprint: Blueprint, anatomy: Anatomy, to_template: NDArray[np.float64], shape: tuple[int, int, int]
) -> Lattice:
    steps = np.linalg.norm(to_template[:3, :3], axis=0)
    nodes = [max(2, int(np.ceil(n * step / LATTICE_MM)) + 1) for n, step in zip(shape, steps, strict=True)]
    index = torch.cartesian_prod(*(torch.linspace(-0.5, n - 0.5, m) for n, m in zip(shape, nodes, strict=True)))
    matrix, start = (torch.tensor(part, dtype=torch.float32) for part in (to_template[:3, :3].T, to_template[:3, 3]))
    points = index @ matrix + start
    reach = 2 * LATTICE_MM + (sum(blueprint.scanner.skull_mm) if blueprint.scanner.skull else 1.5)
    warped = float(blueprint.warp.image.norm(dim=1).max())
    near = torch.nonzero(anatomy.fields(points, DEPTH)[0] > -reach - warped)[:, 0]

    def spread(part: Tensor) -> Tensor:
        return part.new_full((len(part), len(points)), FAR_MM).index_copy(1, near, part).reshape(-1, *nodes)

    slow = slow_fields(blueprint, anatomy, points[near]).map(spread)
    inside = slow.depth[0] > -reach
    density = tuple((m - 1) / n for n, m in zip(shape, nodes, strict=True))
    head = []
    for axis in range(3):
        held = torch.nonzero(inside.amax(dim=[a for a in range(3) if a != axis]))
        first, last = (int(end) / density[axis] for end in (held.min(), held.max()))
        head.append(slice(max(0, int(first) - 1), min(shape[axis], int(last) + 2)))
    return Lattice(slow, tuple(head), density)


def _add_signal(
    volume: Tensor, blueprint: Blueprint, anatomy: Anatomy, lattice: Lattice, shift: tuple[float, float, float]
) -> None:
    """Add the signal at the voxels' shifted centres, slab by slab: slow fields from the lattice, tissue from maps."""
    (begin, end), across = (lattice.head[0].start, lattice.head[0].stop), lattice.head[1:]
    to_y, to_z = (lattice.along(axis, lattice.head[axis], shift[axis]) for axis in (1, 2))
    thick = max(1, CHUNK // (len(to_y) * len(to_z)))
    for first in range(begin, end, thick):
        slab = slice(first, min(first + thick, end))
        along = lattice.along(0, slab, shift[0]), to_y, to_z
        slow = lattice.slow.map(lambda part, along=along: grow(part, *along).flatten(1))
        signal, _ = paint(blueprint, anatomy, slow, fine=True)
        volume[(slab, *across)] += signal.reshape(-1, len(to_y), len(to_z))


def _stored(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], sampling: Sampling
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Permute and flip the voxel axes, and the affine accordingly, so that world positions stay the same."""
    for axis, flip in enumerate(sampling.flips):
        if flip:
            affine = affine.copy()
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    order = list(sampling.axes)
    affine = affine[:, [*order, 3]]
    return np.ascontiguousarray(voxels.transpose(order)), affine
