"""Blueprint of a painted case: findings, pose, warp and scanner, all drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.findings.regions import region_of
from neuroflamingo.findings.vocabulary import (
    FOCAL,
    FOCAL_REGIONS,
    LOBES,
    SIGNAL_OF,
    Finding,
    FindingClass,
    Region,
    Side,
    report_order,
)
from neuroflamingo.painting.anatomy import Anatomy, Volume
from neuroflamingo.painting.lesions import BORDER_LATTICE, Lesion, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

NORMAL_SHARE = 0.34
FOCAL_COUNTS = {0: 0.22, 1: 0.44, 2: 0.24, 3: 0.10}
CROWDED_COUNTS = {2: 0.3, 3: 0.35, 4: 0.35}
CROWDED_DIFFUSE = 0.35
DIFFUSE_SHARE = {FindingClass.WHITE_MATTER_LESIONS: 0.28, FindingClass.VENTRICULAR_ENLARGEMENT: 0.24}
ATROPHY_SHARE = 0.22
SIZE_MM = (8.0, 45.0)
LARGEST_MM = {Region.INSULA: 26.0, Region.BASAL_GANGLIA: 28.0, Region.THALAMUS: 22.0, Region.BRAINSTEM: 20.0}
LACUNE_MM = 15.0
FAINT_SHARE, FAINT, CLEAR = 0.08, (0.12, 0.3), (0.3, 1.0)
REGION_WEIGHT = {Region.BRAINSTEM: 0.6, Region.INSULA: 0.7, Region.THALAMUS: 0.7}
VENTRICLE_PUSH_MM = {0: (-0.8, 1.0), 1: (2.2, 3.4), 2: (4.6, 6.0), 3: (7.2, 9.5)}


@dataclass(frozen=True)
class Scanner:
    """T1-like signal of fluid, grey and white matter, share of the template's own texture, noise and bias."""

    signal: tuple[float, float, float]
    texture: float
    noise: float
    bias: Tensor
    """Log gain on a coarse lattice, `[1, 1, 4, 4, 4]`."""
    skull: bool
    skull_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Blueprint:
    """All parameters of rendering; a pure function of (seed, anatomy, requested findings)."""

    seed: int
    findings: tuple[Finding, ...]
    lesions: tuple[Lesion, ...]
    lesion_findings: tuple[Finding, ...]
    """The finding of each lesion, in the same order."""
    ventricle_push_mm: float
    white_matter_grade: int
    white_matter_contrast: float
    white_matter_noise: Volume
    atrophy: dict[int, float]
    """Severity 0 to 1 by lobe field (4 lobes x left, right)."""
    sulci: float
    to_head: NDArray[np.float64]
    warp: Volume
    scanner: Scanner


def draw_lattice(rng: np.random.Generator, channels: int, spacing_mm: float, scale: float) -> NDArray[np.float32]:
    """Draw normal values at nodes so far apart over the template, `[channel, x, y, z]`."""
    shape = (channels, *(int(np.ceil(n / spacing_mm)) + 1 for n in (196, 232, 188)))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def lattice_affine(spacing_mm: float) -> NDArray[np.float64]:
    """Node index of such a lattice to MNI mm."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = (-98, -134, -72)
    return affine


def draw_warp(rng: np.random.Generator, amount: float = 1.0) -> Volume:
    """A smooth displacement (mm): a coarse field of about 4 mm and a finer one of about 2 mm, on an 8 mm lattice."""
    fine = draw_lattice(rng, 3, 8.0, 0.0)
    total = torch.zeros(1, *fine.shape)
    for spacing, scale in ((48.0, 4.0), (24.0, 2.2)):
        coarse = torch.from_numpy(draw_lattice(rng, 3, spacing, scale * amount))[None]
        total += torch.nn.functional.interpolate(coarse, size=fine.shape[1:], mode="trilinear", align_corners=True)
    smooth = torch.nn.functional.avg_pool3d(total, 3, stride=1, padding=1, count_include_pad=False)
    return Volume(smooth[0].numpy(), lattice_affine(8.0))


def rotation(angles_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix from angles about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(angles_deg)), np.sin(np.deg2rad(angles_deg))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def draw_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    """MNI-to-head affine: pose (10 degrees, 12 mm), head size and shape (9 %), shear (2 %)."""
    pose = np.eye(4)
    stretch = np.diag(np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.035, 3)))
    shear = np.eye(3) + np.triu(rng.normal(0, 0.02, (3, 3)), 1)
    pose[:3, :3] = rotation(rng.normal(0, 7.0, 3).clip(-18, 18)) @ shear @ stretch
    pose[:3, 3] = rng.normal(0, 12.0, 3).clip(-30, 30)
    return pose


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw tissue contrast, texture, noise, bias field and skull of one scan."""
    fluid = rng.uniform(0.12, 0.4)
    grey = rng.uniform(max(0.48, fluid + 0.2), 0.74)
    white = grey + rng.uniform(0.1, 0.3)
    bias = torch.from_numpy(rng.normal(0, 0.16, (1, 1, 4, 4, 4)).astype(np.float32))
    skull_mm = (rng.uniform(1.0, 3.0), rng.uniform(3.0, 7.0), rng.uniform(3.0, 8.0))
    noise = float(np.exp(rng.uniform(np.log(0.01), np.log(0.06))))
    return Scanner((fluid, grey, white), rng.uniform(0.2, 1.0), noise, bias, bool(rng.random() < 0.4), skull_mm)


TEMPLATE_SIGNAL = (0.28, 0.65, 0.82)
"""Signals of fluid, grey and white matter in the template."""
THE_TEMPLATES = Scanner(TEMPLATE_SIGNAL, 1.0, 0.01, torch.zeros(1, 1, 4, 4, 4), False, (2.0, 5.0, 5.0))


def _push(rng: np.random.Generator, grade: int) -> float:
    return float(rng.uniform(*VENTRICLE_PUSH_MM[grade]))


def _border(rng: np.random.Generator) -> Tensor:
    lattice = rng.standard_normal((1, 1) + (BORDER_LATTICE,) * 3).astype(np.float32)
    return torch.from_numpy(lattice)


def _contrast(rng: np.random.Generator) -> float:
    low, high = FAINT if rng.random() < FAINT_SHARE else CLEAR
    return float(rng.uniform(low, high))


def _shape(
    rng: np.random.Generator, kind: FindingClass, wedge: bool, centre: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """The lesion's frame: random rotation and elongation; a wedge points from the ventricle to the cortex."""
    if wedge:
        deep = np.array([np.sign(centre[0]) * 18.0, -12.0, 18.0])
        first = centre - deep
        first = first / (np.linalg.norm(first) + 1e-6)
        helper = np.eye(3)[np.argmin(np.abs(first))]
        second = np.cross(first, helper)
        second /= np.linalg.norm(second)
        frame = np.stack([first, second, np.cross(first, second)])
        semi = radius * np.array([1.0, rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0)])
    else:
        frame = rotation(rng.uniform(0, 360, 3))
        spread = 0.12 if kind is FindingClass.MASS else 0.25
        semi = radius * np.exp(rng.normal(0, spread, 3))
    return (frame / semi[:, None]).astype(np.float32)


def _draw_lesion(
    rng: np.random.Generator, anatomy: Anatomy, to_head: NDArray[np.float64], wanted: Finding, others: list[Lesion]
) -> tuple[Lesion, Finding] | None:
    """Try to place a lesion of the requested class, side and region; None if the position is unsuitable."""
    assert wanted.region is not None and wanted.side is not None
    region = FOCAL_REGIONS.index(wanted.region)
    places = anatomy.candidates[region, wanted.side]
    if not len(places):
        return None
    centre = places[rng.integers(len(places))] + rng.uniform(-1, 1, 3).astype(np.float32)
    target = wanted.size_mm or 20.0
    lobar = wanted.region in LOBES or wanted.region in (Region.CEREBELLUM, Region.INSULA)
    wedge = wanted.kind is FindingClass.INFARCT and lobar
    mass = wanted.kind is FindingClass.MASS
    push = {FindingClass.MASS: rng.uniform(0.25, 0.5), FindingClass.HEMATOMA: rng.uniform(0.0, 0.2)}
    parts = dict(
        kind=wanted.kind,
        centre=centre,
        wedge=wedge,
        border=_border(rng),
        roughness=float(rng.uniform(0.06, 0.14) if mass else rng.uniform(0.1, 0.22)),
        edge=float(rng.uniform(0.04, 0.16)),
        contrast=_contrast(rng),
        push=float(push.get(wanted.kind, 0.0)),
    )
    base = _shape(rng, wanted.kind, wedge, centre, 1.0)
    radius = target / 2.2
    for _ in range(3):
        lesion = Lesion(shape=base / np.float32(radius), **parts)  # type: ignore[arg-type]
        size, points = measure(lesion, anatomy, to_head[:3, :3])
        if size < 1.0:
            return None
        radius *= float(np.clip(target / size, 0.5, 2.0))
    if not SIZE_MM[0] - 0.5 <= size <= SIZE_MM[1] + 0.5 or abs(size - target) > 0.25 * target:
        return None
    return _settle(lesion, wanted, size, points.numpy(), others)


def _settle(
    lesion: Lesion, wanted: Finding, size: float, points: NDArray[np.float32], others: list[Lesion]
) -> tuple[Lesion, Finding] | None:
    """Accept the lesion if most of it lies in the stated region and apart from the others."""
    region = FOCAL_REGIONS.index(wanted.region)  # type: ignore[arg-type]
    if (region_of(points) == region).mean() < 0.6:
        return None
    x = points[:, 0]
    side = {Side.LEFT: (x < 0).mean(), Side.RIGHT: (x > 0).mean(), Side.MIDLINE: float(abs(x.mean()) < 3)}
    if side[wanted.side] < 0.9:  # type: ignore[index]
        return None
    for other in others:
        if np.linalg.norm(other.centre - lesion.centre) < 0.5 * size + other.reach_mm / 2.0 + 6.0:
            return None
    return lesion, wanted.model_copy(update={"size_mm": round(size, 1), "signal": SIGNAL_OF[wanted.kind]})


def _draw_focal_wish(rng: np.random.Generator) -> Finding:
    kind = FOCAL[rng.integers(len(FOCAL))]
    weights = np.array([REGION_WEIGHT.get(r, 1.0) for r in FOCAL_REGIONS])
    region = FOCAL_REGIONS[rng.choice(len(FOCAL_REGIONS), p=weights / weights.sum())]
    side = Side.LEFT if rng.random() < 0.5 else Side.RIGHT
    if region is Region.BRAINSTEM:
        side = Side.MIDLINE
    largest = LARGEST_MM.get(region, SIZE_MM[1])
    if kind is FindingClass.INFARCT and region in (Region.BASAL_GANGLIA, Region.THALAMUS, Region.BRAINSTEM):
        largest = LACUNE_MM
    size = float(rng.uniform(SIZE_MM[0] + 0.5, largest))
    return Finding(kind=kind, side=side, region=region, size_mm=size)


def draw_wishes(rng: np.random.Generator, crowded: bool = False) -> list[Finding]:
    """Draw the findings of a case: none in 34 % of cases, otherwise 0 to 3 focal and the diffuse ones.

    Args:
        crowded: 2 to 4 focal findings and each diffuse one in 35 %, for training an encoder, never for testing.
    """
    if not crowded and rng.random() < NORMAL_SHARE:
        return []
    wishes: list[Finding] = []
    counts = CROWDED_COUNTS if crowded else FOCAL_COUNTS
    while not wishes:
        count = int(rng.choice(list(counts), p=list(counts.values())))
        wishes = [_draw_focal_wish(rng) for _ in range(count)]
        for kind, share in DIFFUSE_SHARE.items():
            if rng.random() < (CROWDED_DIFFUSE if crowded else share):
                region = Region.WHITE_MATTER if kind is FindingClass.WHITE_MATTER_LESIONS else Region.VENTRICLES
                grade = int(rng.integers(1, 4))
                wishes.append(Finding(kind=kind, side=Side.BILATERAL, region=region, grade=grade))
        if rng.random() < (CROWDED_DIFFUSE if crowded else ATROPHY_SHARE):
            side = (Side.LEFT, Side.RIGHT, Side.BILATERAL)[rng.integers(3)]
            wishes.append(Finding(kind=FindingClass.ATROPHY, side=side, region=LOBES[rng.integers(4)]))
    return wishes


def _place(
    rng: np.random.Generator, anatomy: Anatomy, to_head: NDArray[np.float64], wishes: list[Finding], asked: bool
) -> tuple[list[Lesion], list[Finding]]:
    """Place the focal findings; returns lesions and measured findings, dropping drawn findings that do not fit."""
    lesions: list[Lesion] = []
    painted: list[Finding] = []
    for wish in wishes:
        tries = (_draw_lesion(rng, anatomy, to_head, wish, lesions) for _ in range(40))
        placed = next((one for one in tries if one), None)
        if placed:
            lesions.append(placed[0])
            painted.append(placed[1])
        elif asked:
            raise ValueError(f"no room for {wish.kind} of {wish.size_mm} mm in the {wish.side} {wish.region}")
    return lesions, painted


def _draw_atrophy(rng: np.random.Generator, findings: list[Finding]) -> dict[int, float]:
    """Severity by lobe field."""
    return {
        2 * LOBES.index(f.region) + k: float(rng.uniform(0.55, 1.0))
        for f in findings
        if f.kind is FindingClass.ATROPHY and f.region
        for k, side in enumerate((Side.LEFT, Side.RIGHT))
        if f.side in (side, Side.BILATERAL)
    }


def draw_blueprint(
    seed: int, anatomy: Anatomy, wishes: list[Finding] | None = None, crowded: bool = False, still: bool = False
) -> Blueprint:
    """Draw a whole case; `wishes` fixes the findings (region, side and size are then as requested, or it fails).

    Args:
        crowded: many focal findings.
        still: the unchanged head: no pose, warp, wider ventricles or sulci, its own contrast, no bias, 1 % noise.

    Raises:
        ValueError: a requested finding could not be placed.
    """
    rng = np.random.default_rng(seed)
    asked = wishes is not None
    wishes = draw_wishes(rng, crowded) if wishes is None else list(wishes)
    to_head = np.eye(4) if still else draw_pose(rng)
    lesions, painted = _place(rng, anatomy, to_head, [w for w in wishes if w.kind in FOCAL], asked)
    diffuse = [w for w in wishes if w.kind not in FOCAL]
    grades = {f.kind: f.grade or 0 for f in diffuse}
    atrophy = _draw_atrophy(rng, diffuse)
    return Blueprint(
        seed=seed,
        findings=tuple(report_order(painted + diffuse)),
        lesions=tuple(lesions),
        lesion_findings=tuple(painted),
        ventricle_push_mm=0.0 if still else _push(rng, grades.get(FindingClass.VENTRICULAR_ENLARGEMENT, 0)),
        white_matter_grade=grades.get(FindingClass.WHITE_MATTER_LESIONS, 0),
        white_matter_contrast=float(rng.uniform(0.35, 0.75)),
        white_matter_noise=Volume(draw_lattice(rng, 1, 7.0, 1.0), lattice_affine(7.0)),
        atrophy=atrophy,
        sulci=0.0 if still else float(rng.uniform(0.0, 0.3)),
        to_head=to_head,
        warp=draw_warp(rng, 0.0 if still else rng.uniform(0.5, 1.2)),
        scanner=THE_TEMPLATES if still else draw_scanner(rng),
    )
