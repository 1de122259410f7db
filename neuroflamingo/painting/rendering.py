"""Rendering of a blueprint: signal at any points, and on the model grid; `scanner_space` has a scan's own grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.findings.vocabulary import FindingClass
from neuroflamingo.painting.anatomy import WALL_REACH_MM, Volume
from neuroflamingo.painting.cases import (
    TEMPLATE_SIGNAL,
    Blueprint,
    Scanner,
)
from neuroflamingo.painting.lattice import draw_lattice, grow, hats, lattice_affine, rotation
from neuroflamingo_preprocessing.structural.intensity import filled, match_to_template
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, grid_affine, load_template

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32
    from numpy.typing import NDArray

    from neuroflamingo.painting.anatomy import Anatomy
    from neuroflamingo.painting.lesions import Lesion

WHITE_MATTER_REACH_MM = {1: 4.0, 2: 7.5, 3: 13.0}
TO_VENTRICLE, DEPTH, WITHOUT_LOBES = slice(0, 1), slice(4, 5), slice(0, 8)
"""Indices into `Anatomy.fields`."""
VENTRICLE_DEPTH_MM = 2.5
"""Enlarging takes fluid from this far inside the ventricle, never from beyond its middle."""
LEAST_REAL_TEXTURE = 0.7
"""Share of its own texture that a real head keeps at least."""
LEFT_OVER_SHARE, LEFT_OVER_MM = 0.25, 6.0
"""Share of heads of which skull is left over after extraction, and how far it reaches."""
ATROPHY_MM = 9.0
"""Distance by which the surface of a lobe recedes in the most severe atrophy."""


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
    """Original position of the tissue at each point (mm), and the severity of atrophy there."""
    to_ventricle, toward, depth, outward = fields[0], fields[1:4], fields[4], fields[5:8]
    source = points.clone()
    for lesion in blueprint.lesions:
        if lesion.push:
            near = _near(points.T, lesion)
            source[near] = lesion.source(source[near])
    push = blueprint.ventricle_push_mm * torch.exp(-to_ventricle.clamp(min=0) / WALL_REACH_MM)
    push = torch.minimum(push, (to_ventricle + VENTRICLE_DEPTH_MM).clamp(min=0))
    source += (push * toward).T
    atrophy = torch.zeros_like(depth)
    for field, severity in blueprint.atrophy.items():
        atrophy = torch.maximum(atrophy, severity * fields[8 + field])
    source += (ATROPHY_MM * atrophy * torch.exp(-depth.clamp(min=0) / 25.0) * outward).T
    return source, atrophy


def _tissue(blueprint: Blueprint, maps: Tensor, atrophy: Tensor, real: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Signal of healthy tissue, and fractions of white matter and of any tissue."""
    t1, grey, white, mask, near_fluid = maps
    threshold = 0.2 - 0.11 * atrophy
    widening = (blueprint.sulci + 1.1 * atrophy).clamp(max=1.0) * torch.sigmoid((near_fluid - threshold) / 0.04)
    fluid, grey_signal, white_signal = blueprint.scanner.signal
    grey, white = grey * (1 - widening), white * (1 - widening)
    t1 = t1 + (1 - mask) * (TEMPLATE_SIGNAL[0] - t1)
    t1 = t1 + widening * (TEMPLATE_SIGNAL[0] - t1).clamp(max=0)
    mixture = fluid + grey * (grey_signal - fluid) + white * (white_signal - fluid)
    share = max(blueprint.scanner.texture, LEAST_REAL_TEXTURE) if real else blueprint.scanner.texture
    return share * _remap(t1, blueprint.scanner) + (1 - share) * mixture, white, grey + white


def _paint_focal(
    lesion: Lesion, scanner: Scanner, level: Tensor, signal: Tensor, white: Tensor, tissue: Tensor
) -> tuple[Tensor, Tensor]:
    """Signal with the lesion painted in, and the lesion fraction, at points near it."""
    fluid, grey, whitest = scanner.signal
    share = lesion.inside(level)
    reference = 0.5 * (grey + whitest)
    k = lesion.contrast
    core = torch.sigmoid((lesion.core - level) / 0.08) if lesion.core else torch.zeros(())
    halo = torch.sigmoid((1.0 + lesion.halo - level) / 0.12) * white * (1 - share) if lesion.halo else torch.zeros(())
    if lesion.kind is FindingClass.INFARCT:
        share = share * (1.6 * tissue).clamp(max=1.0)
        scarred = signal - halo * 0.3 * k * (whitest - fluid)
        return scarred + share * k * 0.95 * (fluid - scarred).clamp(max=0), share
    if lesion.kind is FindingClass.MASS:
        wall = reference - k * lesion.wall * (reference - fluid)
        target = wall + core * (fluid + (1 - k) * 0.6 * (reference - fluid) - wall)
        blended = signal + share * (0.9 * (target - signal))
        return blended - halo * 0.35 * k * (whitest - fluid), share
    share = share * (2.0 * tissue).clamp(max=1.0)
    rim = torch.exp(-((level - 1.08) ** 2) / (2 * 0.06**2)) * tissue
    target = whitest + k * 0.7 * (whitest - fluid) * (1 - 0.6 * core)
    edge = rim * 0.15 * k * (grey - fluid) + halo * 0.25 * k * (whitest - fluid)
    return signal + share * (target - signal) - edge, share


def _white_matter_lesions(grade: int, distance: Tensor, noise: Tensor, white: Tensor) -> Tensor:
    """Fraction of white matter lesion: caps and bands around the ventricles, and scattered foci, by grade."""
    reach = WHITE_MATTER_REACH_MM[grade]
    near = torch.exp(-distance.clamp(min=0) / reach)
    foci = {1: 2.6, 2: 2.1, 3: 1.7}[grade]
    caps = torch.sigmoid((1.15 * near + 0.35 * noise - 0.62) / 0.06)
    scattered = torch.sigmoid((noise - foci) / 0.15) * torch.exp(-distance.clamp(min=0) / 30.0)
    deep = torch.sigmoid((white - 0.55) / 0.1)
    return torch.maximum(caps, scattered) * deep


@dataclass(frozen=True)
class Slow:
    """Slowly varying fields over the head, computed on a coarse lattice; None: not needed for the case.

    Attributes:
        depth: below the brain's surface, mm, negative outside, `[1, point]`.
        source: original position of the tissue at each point, mm, `[3, point]`.
        anatomical: position before tissue was displaced, mm, `[3, point]`; lesions need it.
        atrophy: severity, 0 to 1, `[1, point]`.
        white_matter: at the source, distance from the ventricles (mm) and noise, `[2, point]`; their lesions need it.
    """

    depth: Tensor
    source: Tensor
    anatomical: Tensor | None = None
    atrophy: Tensor | None = None
    white_matter: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Slow:
        """Apply a function to all fields that are not None."""
        return Slow(**{name: change(part) for name, part in vars(self).items() if part is not None})


def slow_fields(blueprint: Blueprint, anatomy: Anatomy, points: Float32[Tensor, "point 3"]) -> Slow:
    """Compute the slowly varying fields at points of template space (mm)."""
    anatomical = points + blueprint.warp(points).T
    fields = anatomy.fields(anatomical, slice(None) if blueprint.atrophy else WITHOUT_LOBES)
    source, atrophy = _displaced(blueprint, anatomical, fields)
    white_matter = None
    if blueprint.white_matter_grade:
        distance = anatomy.fields(source, TO_VENTRICLE)
        white_matter = torch.cat([distance, blueprint.white_matter_noise(source)])
    return Slow(
        fields[DEPTH],
        source.T,
        anatomical.T if blueprint.lesions else None,
        atrophy[None] if blueprint.atrophy else None,
        white_matter,
    )


def paint(
    blueprint: Blueprint, anatomy: Anatomy, slow: Slow, fine: bool
) -> tuple[Float32[Tensor, " point"], Float32[Tensor, "kind point"]]:
    """Signal (no noise, no bias) and lesion shares at points whose `slow_fields` are given.

    Args:
        fine: from the 1 mm maps (scans) rather than from those smoothed for the model grid.
    """
    depth = slow.depth[0]
    brain = torch.nonzero(depth > -1.5)[:, 0]
    signal = _skull(blueprint.scanner, -depth) if blueprint.scanner.skull else torch.zeros_like(depth)
    shares = torch.zeros(4, len(depth))
    within = slow.map(lambda part: part.index_select(1, brain))
    maps = (anatomy.fine if fine else anatomy.coarse)(within.source.T)
    atrophy = torch.zeros(()) if within.atrophy is None else within.atrophy[0]
    inner, white, tissue = _tissue(blueprint, maps, atrophy, anatomy.real)
    if within.white_matter is not None:
        distance, noise = within.white_matter
        share = _white_matter_lesions(blueprint.white_matter_grade, distance, noise, white)
        inner = inner + share * blueprint.white_matter_contrast * (blueprint.scanner.signal[0] - inner).clamp(max=0)
        shares[3, brain] = share
    kinds = list(FindingClass)
    for lesion in blueprint.lesions:
        assert within.anatomical is not None
        near = torch.nonzero(_near(within.anatomical, lesion))[:, 0]
        level = lesion.level(lesion.own_frame(within.anatomical[:, near].T))
        inner[near], share = _paint_focal(lesion, blueprint.scanner, level, inner[near], white[near], tissue[near])
        row, place = kinds.index(lesion.kind), brain[near]
        shares[row, place] = torch.maximum(shares[row, place], share)
    surface = torch.sigmoid(within.depth[0] / 0.6)
    signal[brain] = surface * inner + (1 - surface) * signal[brain]
    return signal.clamp(min=0) ** blueprint.scanner.gamma, shares


def _near(coordinates: Float32[Tensor, "3 point"], lesion: Lesion) -> Bool[Tensor, " point"]:
    """Points within the lesion's reach (three passes over contiguous rows are far faster than a norm over 3 values)."""
    x, y, z = (row - float(c) for row, c in zip(coordinates, lesion.centre, strict=True))
    return x * x + y * y + z * z < lesion.reach_mm**2


def _skull(scanner: Scanner, outside_mm: Tensor) -> Tensor:
    """Fluid, dark bone and bright scalp around the brain, so that training includes heads with skull."""
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
    """Draw a residual alignment error (about 1.5 degrees, 1.5 mm, 2 % of size): model grid to template, 4 x 4."""
    left = np.eye(4)
    left[:3, :3] = rotation(rng.normal(0, 1.3 * amount, 3)) @ np.diag(np.exp(rng.normal(0, 0.015 * amount, 3)))
    left[:3, 3] = rng.normal(0, 1.2 * amount, 3)
    return left


def draw_brain_edge(rng: np.random.Generator) -> Volume:
    """Draw how far inside the surface a found brain mask ends (mm), by place.

    0.5 mm, give or take 1.2 mm; in a quarter of heads patches of the skull are left over after extraction.
    """
    edge = draw_lattice(rng, 1, 16.0, 1.0) * 1.2 + rng.normal(0.5, 0.8)
    if rng.random() < LEFT_OVER_SHARE:
        edge -= LEFT_OVER_MM * np.clip(draw_lattice(rng, 1, 16.0, 1.0) - 1.0, 0, None)
    return Volume(edge.astype(np.float32), lattice_affine(16.0))


def render_on_model_grid(blueprint: Blueprint, anatomy: Anatomy, extracted: bool = False) -> OnGrid:
    """Render a case as preprocessing would return it (registration error drawn, not computed; some 20 times faster).

    Args:
        blueprint: the case.
        anatomy: the head.
        extracted: what lies outside a drawn brain mask is filled, as `fill_outside_brain` does.
    """
    rng = np.random.default_rng([blueprint.seed, 1])
    left = draw_misalignment(rng)
    points, index = _grid_points()
    moved = points @ torch.tensor(left[:3, :3].T, dtype=torch.float32) + torch.tensor(left[:3, 3], dtype=torch.float32)
    slow = slow_fields(blueprint, anatomy, moved)
    signal, shares = paint(blueprint, anatomy, slow, fine=False)
    volume = torch.zeros(int(np.prod(GRID_SHAPE)))
    volume[index] = signal
    volume = volume.reshape(GRID_SHAPE) * gain(blueprint.scanner, GRID_SHAPE)
    noise = rng.standard_normal(GRID_SHAPE, dtype=np.float32) * np.float32(blueprint.scanner.noise * 0.3)
    out = torch.zeros(4, int(np.prod(GRID_SHAPE)))
    out[:, index] = shares
    volume = volume.numpy() + noise
    if extracted:
        inside = np.zeros(int(np.prod(GRID_SHAPE)), bool)
        edge = draw_brain_edge(np.random.default_rng([blueprint.seed, 3]))
        inside[index.numpy()] = (slow.depth[0] > edge(moved)[0]).numpy()
        volume = filled(volume, inside.reshape(GRID_SHAPE))
    volume = match_to_template(volume)
    return OnGrid(volume, out.reshape(4, *GRID_SHAPE).numpy(), _centres_on_grid(blueprint, left))


def _centres_on_grid(blueprint: Blueprint, left: NDArray[np.float64]) -> NDArray[np.float32]:
    """Positions of lesion centres on the grid: the warp inverted by fixed-point iteration, then the misalignment."""
    if not blueprint.lesions:
        return np.zeros((0, 3), dtype=np.float32)
    wanted = torch.from_numpy(np.stack([lesion.centre for lesion in blueprint.lesions]))
    points = wanted.clone()
    for _ in range(6):
        points = wanted - blueprint.warp(points).T
    back = np.linalg.inv(left)
    return (points.numpy() @ back[:3, :3].T + back[:3, 3]).astype(np.float32)


def gain(scanner: Scanner, shape: tuple[int, ...], part: tuple[slice, ...] = (slice(None),) * 3) -> Tensor:
    """Bias field over a grid, or over a part of it."""
    along = (hats(torch.linspace(0, 3, n)[voxels], 4) for n, voxels in zip(shape, part, strict=True))
    return torch.exp(grow(scanner.bias[0], *along)[0])
