"""From a blueprint to voxels: the same drawing on a patient's native grid or straight on the model grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from torch import Tensor

from neuroflamingo.findings.schema import FindingClass
from neuroflamingo.painting.anatomy import Anatomy
from neuroflamingo.painting.cases import TEMPLATE_SIGNAL, Blueprint, Scanner, rotation
from neuroflamingo.painting.lesions import Lesion
from neuroflamingo_preprocessing.intensity import match_to_template
from neuroflamingo_preprocessing.template import GRID_SHAPE, grid_affine, load_template

WHITE_MATTER_REACH_MM = {1: 4.0, 2: 7.5, 3: 13.0}
VENTRICLE_DEPTH_MM = 2.5
"""Enlarging takes fluid from this far inside the ventricle, never from beyond its middle."""
ATROPHY_MM = 9.0
"""How far the surface of a lobe recedes in the severest atrophy."""
LATTICE_MM = 4.0
CHUNK = 1_000_000


@dataclass(frozen=True)
class OnGrid:
    """A case on the model grid.

    Attributes:
        volume: normalised, `[56, 64, 56]`.
        lesions: shares of infarct, mass, hematoma and white matter lesion, `[4, 56, 64, 56]`.
        centres: of the focal lesions, in the order of `Blueprint.lesions`, grid mm, `[lesion, 3]`.
    """

    volume: Float32[np.ndarray, "x y z"]
    lesions: Float32[np.ndarray, "kind x y z"]
    centres: Float32[np.ndarray, "lesion 3"]


def _remap(t1: Tensor, scanner: Scanner) -> Tensor:
    """The template's signal in this scanner's contrast (piecewise linear through the three tissues)."""
    fluid, grey, white = scanner.signal
    a, b, c = TEMPLATE_SIGNAL
    out = t1 * (fluid / a)
    out = out + (t1 - a).clamp(min=0) * ((grey - fluid) / (b - a) - fluid / a)
    out = out + (t1 - b).clamp(min=0) * ((white - grey) / (c - b) - (grey - fluid) / (b - a))
    return out


def _displaced(blueprint: Blueprint, points: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tissue now at each point came from (mm), and the severity of atrophy there."""
    to_ventricle, toward, depth, outward = fields[0], fields[1:4], fields[4], fields[5:8]
    source = points.clone()
    for lesion in blueprint.lesions:
        if lesion.push:
            near = _near(points.T, lesion)
            source[near] = lesion.source(source[near])
    push = blueprint.ventricle_push_mm * torch.exp(-to_ventricle.clamp(min=0) / 12.0)
    push = torch.minimum(push, (to_ventricle + VENTRICLE_DEPTH_MM).clamp(min=0))
    source += (push * toward).T
    atrophy = torch.zeros_like(depth)
    for field, severity in blueprint.atrophy.items():
        atrophy = torch.maximum(atrophy, severity * fields[8 + field])
    source += (ATROPHY_MM * atrophy * torch.exp(-depth.clamp(min=0) / 25.0) * outward).T
    return source, atrophy


def _tissue(blueprint: Blueprint, maps: Tensor, atrophy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signal of the healthy tissue, and shares of white and of any tissue."""
    t1, grey, white, mask, near_fluid = maps
    threshold = 0.2 - 0.11 * atrophy
    widening = (blueprint.sulci + 1.1 * atrophy).clamp(max=1.0) * torch.sigmoid((near_fluid - threshold) / 0.04)
    fluid, grey_signal, white_signal = blueprint.scanner.signal
    grey, white = grey * (1 - widening), white * (1 - widening)
    t1 = t1 + (1 - mask) * (TEMPLATE_SIGNAL[0] - t1)
    t1 = t1 + widening * (TEMPLATE_SIGNAL[0] - t1).clamp(max=0)
    mixture = fluid + grey * (grey_signal - fluid) + white * (white_signal - fluid)
    share = blueprint.scanner.texture
    return share * _remap(t1, blueprint.scanner) + (1 - share) * mixture, white, grey + white


def _paint_focal(lesion: Lesion, scanner: Scanner, level: Tensor, signal: Tensor, white: Tensor, tissue: Tensor):
    """Signal with the lesion painted in, and the share of lesion, at points near it."""
    fluid, grey, whitest = scanner.signal
    share = lesion.inside(level)
    reference = 0.5 * (grey + whitest)
    k = lesion.contrast
    if lesion.kind is FindingClass.INFARCT:
        share = share * (1.6 * tissue).clamp(max=1.0)
        return signal + share * k * 0.95 * (fluid - signal).clamp(max=0), share
    if lesion.kind is FindingClass.MASS:
        core = torch.sigmoid((0.5 - level) / 0.12)
        halo = torch.sigmoid((1.5 - level) / 0.15) * white * (1 - share)
        target = reference - k * 0.8 * (reference - fluid) * (1 + 0.3 * core)
        blended = signal + share * (0.85 * (target - signal) + 0.15 * k * (fluid - signal))
        return blended - halo * 0.25 * k * (whitest - fluid), share
    share = share * (2.0 * tissue).clamp(max=1.0)
    rim = torch.exp(-((level - 1.08) ** 2) / (2 * 0.06**2)) * tissue
    target = whitest + k * 0.7 * (whitest - fluid)
    return signal + share * (target - signal) - rim * 0.15 * k * (grey - fluid), share


def _white_matter_lesions(grade: int, noise: Tensor, distance: Tensor, white: Tensor) -> Tensor:
    """Share of white matter lesion: caps and bands around the ventricles and scattered foci, more with the grade."""
    reach = WHITE_MATTER_REACH_MM[grade]
    near = torch.exp(-distance.clamp(min=0) / reach)
    foci = {1: 2.6, 2: 2.1, 3: 1.7}[grade]
    caps = torch.sigmoid((1.15 * near + 0.35 * noise - 0.62) / 0.06)
    scattered = torch.sigmoid((noise - foci) / 0.15) * torch.exp(-distance.clamp(min=0) / 30.0)
    deep = torch.sigmoid((white - 0.55) / 0.1)
    return torch.maximum(caps, scattered) * deep


def smooth_fields(
    blueprint: Blueprint, anatomy: Anatomy, points: Float32[Tensor, "point 3"]
) -> Float32[Tensor, "field point"]:
    """Everything at points of template space (mm) that varies slowly, so that it may be computed on a coarse lattice.

    Returns:
        `[10, point]`: anatomical place (3), where the tissue came from (3), depth below the brain's surface, severity
        of atrophy, distance from the ventricles and white matter noise at that source.
    """
    anatomical = points + blueprint.warp(points).T
    fields = anatomy.fields(anatomical)
    source, atrophy = _displaced(blueprint, anatomical, fields)
    if blueprint.white_matter_grade:
        distance, noise = anatomy.fields(source)[:1], blueprint.white_matter_noise(source)
    else:
        distance = noise = torch.zeros(1, len(points))
    return torch.cat([anatomical.T, source.T, fields[4:5], atrophy[None], distance, noise])


def paint(
    blueprint: Blueprint, anatomy: Anatomy, smooth: Float32[Tensor, "field point"], fine: bool
) -> tuple[Float32[Tensor, " point"], Float32[Tensor, "kind point"]]:
    """Signal (no noise, no bias) and lesion shares at points whose `smooth_fields` are given.

    Args:
        fine: from the 1 mm maps (scans) rather than from those smoothed for the model grid.
    """
    depth = smooth[6]
    brain = depth > -1.5
    shares = torch.zeros(4, len(depth))
    outside = _skull(blueprint.scanner, -depth) if blueprint.scanner.skull else torch.zeros_like(depth)
    within = smooth[:, brain]
    anatomical, source, atrophy, distance, noise = within[:3].T, within[3:6].T, within[7], within[8], within[9]
    maps = (anatomy.fine if fine else anatomy.coarse)(source)
    inner, white, tissue = _tissue(blueprint, maps, atrophy)
    found = torch.zeros(4, len(inner))
    if blueprint.white_matter_grade:
        share = _white_matter_lesions(blueprint.white_matter_grade, noise, distance, white)
        inner = inner + share * blueprint.white_matter_contrast * (blueprint.scanner.signal[0] - inner).clamp(max=0)
        found[3] = share
    kinds = list(FindingClass)
    for lesion in blueprint.lesions:
        near = _near(within[:3], lesion)
        if not near.any():
            continue
        level = lesion.level(lesion.own_frame(anatomical[near]))
        inner[near], share = _paint_focal(lesion, blueprint.scanner, level, inner[near], white[near], tissue[near])
        row = kinds.index(lesion.kind)
        found[row, near] = torch.maximum(found[row, near], share)
    surface = torch.sigmoid(depth[brain] / 0.6)
    signal = outside.clone()
    signal[brain] = surface * inner + (1 - surface) * outside[brain]
    shares[:, brain] = found
    return signal, shares


def _near(coordinates: Float32[Tensor, "3 point"], lesion: Lesion) -> Bool[Tensor, " point"]:
    """Points within the lesion's reach (three passes over contiguous rows are far faster than a norm over 3 values)."""
    x, y, z = (row - float(c) for row, c in zip(coordinates, lesion.centre, strict=True))
    return x * x + y * y + z * z < lesion.reach_mm**2


def _skull(scanner: Scanner, outside_mm: Tensor) -> Tensor:
    """Fluid, dark bone and bright scalp around the brain, so that heads with skull are no surprise."""
    gap, bone, scalp = scanner.skull_mm
    fluid, _, white = scanner.signal
    shell = torch.where(outside_mm < gap, fluid, torch.where(outside_mm < gap + bone, 0.08, 0.9 * white))
    return torch.where(outside_mm < gap + bone + scalp, shell, 0.0) * (outside_mm < 90)


@lru_cache(maxsize=1)
def _grid_points() -> tuple[Tensor, Tensor]:
    """Points of the model grid within 2 voxels of the template brain (mm) and their flat indices."""
    from scipy.ndimage import binary_dilation

    near = binary_dilation(load_template().grid_mask, iterations=1).reshape(-1)
    index = np.indices(GRID_SHAPE).reshape(3, -1)
    affine = grid_affine()
    points = (affine[:3, :3] @ index + affine[:3, 3:]).T.astype(np.float32)
    return torch.from_numpy(points[near]), torch.from_numpy(np.flatnonzero(near))


def draw_misalignment(rng: np.random.Generator, amount: float = 1.0) -> NDArray[np.float64]:
    """What affine alignment leaves over (about 1.5 degrees, 1.5 mm, 2 % of size): model grid to template, 4 x 4."""
    left = np.eye(4)
    left[:3, :3] = rotation(rng.normal(0, 1.3 * amount, 3)) @ np.diag(np.exp(rng.normal(0, 0.015 * amount, 3)))
    left[:3, 3] = rng.normal(0, 1.2 * amount, 3)
    return left


def render_on_model_grid(blueprint: Blueprint, anatomy: Anatomy) -> OnGrid:
    """The case as the preparation would deliver it (registration error drawn, not computed; 30 times faster)."""
    rng = np.random.default_rng([blueprint.seed, 1])
    left = draw_misalignment(rng)
    points, index = _grid_points()
    moved = points @ torch.tensor(left[:3, :3].T, dtype=torch.float32) + torch.tensor(left[:3, 3], dtype=torch.float32)
    signal, shares = paint(blueprint, anatomy, smooth_fields(blueprint, anatomy, moved), fine=False)
    volume = torch.zeros(int(np.prod(GRID_SHAPE)))
    volume[index] = signal
    volume = volume.reshape(GRID_SHAPE) * _gain(blueprint.scanner, GRID_SHAPE)
    noise = rng.standard_normal(GRID_SHAPE, dtype=np.float32) * np.float32(blueprint.scanner.noise * 0.3)
    out = torch.zeros(4, int(np.prod(GRID_SHAPE)))
    out[:, index] = shares
    volume = match_to_template(volume.numpy() + noise)
    return OnGrid(volume, out.reshape(4, *GRID_SHAPE).numpy(), _centres_on_grid(blueprint, left))


def _centres_on_grid(blueprint: Blueprint, left: NDArray[np.float64]) -> NDArray[np.float32]:
    """Where the lesions' centres appear: the warp inverted by fixed-point iteration, then the misalignment."""
    if not blueprint.lesions:
        return np.zeros((0, 3), dtype=np.float32)
    wanted = torch.from_numpy(np.stack([lesion.centre for lesion in blueprint.lesions]))
    points = wanted.clone()
    for _ in range(6):
        points = wanted - blueprint.warp(points).T
    back = np.linalg.inv(left)
    return (points.numpy() @ back[:3, :3].T + back[:3, 3]).astype(np.float32)


def _gain(scanner: Scanner, shape: tuple[int, ...]) -> Tensor:
    grown = torch.nn.functional.interpolate(scanner.bias, size=tuple(shape), mode="trilinear", align_corners=True)
    return torch.exp(grown[0, 0])


@dataclass(frozen=True)
class Sampling:
    """How a native scan is stored: spacing (mm), orientation code, tilt of the axes, oversampling of thick slices."""

    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    tilt: NDArray[np.float64]
    oversample: tuple[int, int, int]


def draw_sampling(rng: np.random.Generator) -> Sampling:
    """Two thirds nearly isotropic (1.0 to 1.5 mm), one third with thick slices (2.5 to 5 mm) along one axis."""
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
    """The scan as a scanner would store it: voxels (arbitrary units) and their affine to RAS world millimetres."""
    rng = np.random.default_rng([blueprint.seed, 2])
    sampling = sampling or draw_sampling(rng)
    affine, shape = _native_grid(blueprint, sampling)
    to_template = np.linalg.inv(blueprint.to_head) @ affine
    volume = torch.zeros(shape)
    offsets = [np.linspace(-0.5, 0.5, 2 * n + 1)[1::2] for n in sampling.oversample]
    combos = [(a, b, c) for a in offsets[0] for b in offsets[1] for c in offsets[2]]
    for shift in combos:
        volume += _render_dense(blueprint, anatomy, to_template, shape, shift) / len(combos)
    volume = volume * _gain(blueprint.scanner, shape)
    level = np.float32(blueprint.scanner.noise)
    real = volume.numpy() + level * rng.standard_normal(shape, dtype=np.float32)
    voxels = np.hypot(real, level * rng.standard_normal(shape, dtype=np.float32)) * np.float32(rng.uniform(300, 3000))
    return _stored(voxels, affine, sampling)


def _render_dense(
    blueprint: Blueprint,
    anatomy: Anatomy,
    to_template: NDArray[np.float64],
    shape: tuple[int, int, int],
    shift: tuple[float, float, float],
) -> Tensor:
    """Signal on a dense grid: slow fields on a 4 mm lattice, grown slab by slab, the rest voxel by voxel."""
    steps = np.linalg.norm(to_template[:3, :3], axis=0)
    lattice = [max(2, int(np.ceil(n * step / LATTICE_MM)) + 1) for n, step in zip(shape, steps, strict=True)]
    axes = [torch.linspace(0, n - 1, m) + float(o) for n, m, o in zip(shape, lattice, shift, strict=True)]
    index = torch.cartesian_prod(*axes)
    matrix, start = (torch.tensor(part, dtype=torch.float32) for part in (to_template[:3, :3].T, to_template[:3, 3]))
    smooth = smooth_fields(blueprint, anatomy, index @ matrix + start).reshape(1, -1, *lattice)
    smooth = torch.nn.functional.interpolate(
        smooth, size=(shape[0], *lattice[1:]), mode="trilinear", align_corners=True
    )
    out = torch.zeros(shape)
    reach = -(sum(blueprint.scanner.skull_mm) if blueprint.scanner.skull else 1.5)
    slab = max(1, CHUNK // (shape[1] * shape[2]))
    for first in range(0, shape[0], slab):
        part = smooth[0, :, first : first + slab]
        grown = torch.nn.functional.interpolate(part, size=shape[1:], mode="bilinear", align_corners=True).flatten(1)
        head = grown[6] > reach
        values = torch.zeros(grown.shape[1])
        values[head] = paint(blueprint, anatomy, grown[:, head], fine=True)[0]
        out[first : first + slab] = values.reshape(-1, shape[1], shape[2])
    return out


def _stored(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], sampling: Sampling
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Permute and flip the voxel axes and the affine with them: the same place in the world."""
    for axis, flip in enumerate(sampling.flips):
        if flip:
            affine = affine.copy()
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    order = list(sampling.axes)
    affine = affine[:, [*order, 3]]
    return np.ascontiguousarray(voxels.transpose(order)), affine
