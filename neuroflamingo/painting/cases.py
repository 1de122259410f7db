"""Blueprint of a painted case: findings, pose, warp and scanner, all drawn from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.findings.vocabulary import (
    FOCAL,
    FOCAL_REGIONS,
    LOBES,
    Finding,
    FindingClass,
    Region,
    Side,
    report_order,
)
from neuroflamingo.painting.anatomy import Anatomy, Volume
from neuroflamingo.painting.lattice import draw_lattice, lattice_affine, rotation
from neuroflamingo.painting.placing import LARGE_MM, LARGE_SHARE, SIZE_MM, place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo.painting.lesions import Lesion, Outline

NORMAL_SHARE = 0.34
FOCAL_COUNTS = {0: 0.22, 1: 0.44, 2: 0.24, 3: 0.10}
CROWDED_COUNTS = {2: 0.3, 3: 0.35, 4: 0.35}
CROWDED_DIFFUSE = 0.35
DIFFUSE_SHARE = {FindingClass.WHITE_MATTER_LESIONS: 0.28, FindingClass.VENTRICULAR_ENLARGEMENT: 0.24}
ATROPHY_SHARE = 0.22
LARGEST_MM = {Region.INSULA: 26.0, Region.BASAL_GANGLIA: 28.0, Region.THALAMUS: 22.0, Region.BRAINSTEM: 20.0}
LACUNE_MM = 15.0
REGION_WEIGHT = {Region.BRAINSTEM: 0.6, Region.INSULA: 0.7, Region.THALAMUS: 0.7}
VENTRICLES_ML = {1: (30.0, 38.0), 2: (49.0, 60.0), 3: (70.0, 87.0)}
"""Volume of the lateral ventricles by grade, in template space (that is, for a head of its size)."""
MOST_NORMAL_ML, OWN_PUSH_MM = 27.0, (-0.8, 1.0)
"""Volume up to which ventricles are normal, and how far their walls move where they stay so."""


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
    gamma: float = 1.0
    """Exponent of the signal."""


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


def draw_warp(rng: np.random.Generator, amount: float = 1.0) -> Volume:
    """A smooth displacement (mm): a coarse field of about 4 mm and a finer one of about 2 mm, on an 8 mm lattice."""
    fine = draw_lattice(rng, 3, 8.0, 0.0)
    total = torch.zeros(1, *fine.shape)
    for spacing, scale in ((48.0, 4.0), (24.0, 2.2)):
        coarse = torch.from_numpy(draw_lattice(rng, 3, spacing, scale * amount))[None]
        total += torch.nn.functional.interpolate(coarse, size=fine.shape[1:], mode="trilinear", align_corners=True)
    smooth = torch.nn.functional.avg_pool3d(total, 3, stride=1, padding=1, count_include_pad=False)
    return Volume(smooth[0].numpy(), lattice_affine(8.0))


def draw_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    """MNI-to-head affine: posture (10 degrees, 12 mm) of a head of its own build."""
    return draw_posture(rng, *draw_build(rng))


def draw_build(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shear (2 %) and stretch (9 %) of a head, the same in every scan of it, each `[3, 3]`."""
    stretch = np.diag(np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.035, 3)))
    return np.eye(3) + np.triu(rng.normal(0, 0.02, (3, 3)), 1), stretch


def draw_posture(
    rng: np.random.Generator, shear: NDArray[np.float64], stretch: NDArray[np.float64]
) -> NDArray[np.float64]:
    """MNI-to-head affine of a head of this build, with the rotation and shift of one scan."""
    pose = np.eye(4)
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
    texture, skull, gamma = rng.uniform(0.2, 1.0), bool(rng.random() < 0.4), float(np.exp(rng.normal(0.0, 0.1)))
    return Scanner((fluid, grey, white), texture, noise, bias, skull, skull_mm, gamma)


TEMPLATE_SIGNAL = (0.28, 0.65, 0.82)
"""Signals of fluid, grey and white matter in the template."""
THE_TEMPLATES = Scanner(TEMPLATE_SIGNAL, 1.0, 0.01, torch.zeros(1, 1, 4, 4, 4), False, (2.0, 5.0, 5.0))


def wall_push(rng: np.random.Generator, grade: int, anatomy: Anatomy) -> float:
    """Movement of the ventricles' walls (mm) that gives the volume of a grade, whatever the head began with."""
    own = float(rng.uniform(*OWN_PUSH_MM))
    wanted = float(rng.uniform(*VENTRICLES_ML[grade])) if grade else min(MOST_NORMAL_ML, anatomy.ventricles_ml(own))
    low, high = -3.0, 20.0
    for _ in range(12):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if anatomy.ventricles_ml(middle) < wanted else (low, middle)
    return 0.5 * (low + high)


def draw_focal_wish(rng: np.random.Generator) -> Finding:
    """Draw class, side, region and diameter of a focal finding."""
    kind = FOCAL[rng.integers(len(FOCAL))]
    weights = np.array([REGION_WEIGHT.get(r, 1.0) for r in FOCAL_REGIONS])
    region = FOCAL_REGIONS[rng.choice(len(FOCAL_REGIONS), p=weights / weights.sum())]
    side = Side.LEFT if rng.random() < 0.5 else Side.RIGHT
    if region is Region.BRAINSTEM:
        side = Side.MIDLINE
    largest = LARGEST_MM.get(region, SIZE_MM[1])
    if kind is FindingClass.INFARCT and region in (Region.BASAL_GANGLIA, Region.THALAMUS, Region.BRAINSTEM):
        largest = LACUNE_MM
    if region in LOBES and rng.random() < LARGE_SHARE:
        size = float(rng.uniform(SIZE_MM[1], LARGE_MM))
    else:
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
        wishes = [draw_focal_wish(rng) for _ in range(count)]
        for kind, share in DIFFUSE_SHARE.items():
            if rng.random() < (CROWDED_DIFFUSE if crowded else share):
                region = Region.WHITE_MATTER if kind is FindingClass.WHITE_MATTER_LESIONS else Region.VENTRICLES
                grade = int(rng.integers(1, 4))
                wishes.append(Finding(kind=kind, side=Side.BILATERAL, region=region, grade=grade))
        if rng.random() < (CROWDED_DIFFUSE if crowded else ATROPHY_SHARE):
            side = (Side.LEFT, Side.RIGHT, Side.BILATERAL)[rng.integers(3)]
            wishes.append(Finding(kind=FindingClass.ATROPHY, side=side, region=LOBES[rng.integers(4)]))
    return wishes


def draw_atrophy(rng: np.random.Generator, findings: list[Finding]) -> dict[int, float]:
    """Severity by lobe field."""
    return {
        2 * LOBES.index(f.region) + k: float(rng.uniform(0.55, 1.0))
        for f in findings
        if f.kind is FindingClass.ATROPHY and f.region
        for k, side in enumerate((Side.LEFT, Side.RIGHT))
        if f.side in (side, Side.BILATERAL)
    }


def draw_blueprint(
    seed: int,
    anatomy: Anatomy,
    wishes: list[Finding] | None = None,
    crowded: bool = False,
    still: bool = False,
    outlines: Sequence[Outline] = (),
) -> Blueprint:
    """Draw a whole case; `wishes` fixes the findings (region, side and size are then as requested, or it fails).

    Args:
        crowded: many focal findings.
        still: the unchanged head: no pose, warp, wider ventricles or sulci, its own contrast, no bias, 1 % noise.
        outlines: of real lesions, for half of the infarcts that are drawn.

    Raises:
        ValueError: a requested finding could not be placed.
    """
    rng = np.random.default_rng(seed)
    asked = wishes is not None
    wishes = draw_wishes(rng, crowded) if wishes is None else list(wishes)
    to_head = np.eye(4) if still else draw_pose(rng)
    focal = [w for w in wishes if w.kind in FOCAL]
    lesions, painted = place(rng, anatomy, to_head, focal, None if asked else outlines)
    diffuse = [w for w in wishes if w.kind not in FOCAL]
    grades = {f.kind: f.grade or 0 for f in diffuse}
    atrophy = draw_atrophy(rng, diffuse)
    return Blueprint(
        seed=seed,
        findings=tuple(report_order(painted + diffuse)),
        lesions=tuple(lesions),
        lesion_findings=tuple(painted),
        ventricle_push_mm=0.0
        if still
        else wall_push(rng, grades.get(FindingClass.VENTRICULAR_ENLARGEMENT, 0), anatomy),
        white_matter_grade=grades.get(FindingClass.WHITE_MATTER_LESIONS, 0),
        white_matter_contrast=float(rng.uniform(0.35, 0.75)),
        white_matter_noise=Volume(draw_lattice(rng, 1, 7.0, 1.0), lattice_affine(7.0)),
        atrophy=atrophy,
        sulci=0.0 if still else float(rng.uniform(0.0, 0.3)),
        to_head=to_head,
        warp=draw_warp(rng, 0.0 if still else rng.uniform(0.5, 1.2)),
        scanner=THE_TEMPLATES if still else draw_scanner(rng),
    )
