"""Focal lesions of a case: what they look like and where they sit, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuroflamingo.findings.regions import MIDLINE_MM, region_of
from neuroflamingo.findings.vocabulary import FOCAL_REGIONS, LOBES, SIGNAL_OF, Finding, FindingClass, Region, Side
from neuroflamingo.painting.lattice import rotation
from neuroflamingo.painting.lesions import BORDER_LATTICE, Lesion, Outline, measure, territories

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo.painting.anatomy import Anatomy

SIZE_MM = (8.0, 45.0)
LARGE_SHARE, LARGE_MM = 0.12, 65.0
"""Share of focal findings of a lobe that are larger than `SIZE_MM`, and their largest diameter."""
OUTLINE_SHARE, OUTLINE_MM = 0.5, (8.0, 90.0)
"""Share of infarcts with the outline of a real lesion, where there are any, and the diameters that they may have."""
LEAST_WITHIN, OUTLINE_WITHIN, OUTLINE_SAMPLES = 0.6, 0.4, 40
"""Least share of a lesion in its region, drawn or with a real outline; samples per axis in measuring an outline."""
MASS_LOOKS = {"ring": 0.45, "solid": 0.25, "diffuse": 0.3}
"""A wall around necrosis, with edema; without necrosis; and neither wall nor edema, as in low-grade glioma."""
ENHANCING_SHARE, DARKER_MIDDLE_SHARE = 0.4, 0.3
FAINT_SHARE, FAINT, CLEAR = 0.08, (0.12, 0.3), (0.3, 1.0)


def place(
    rng: np.random.Generator,
    anatomy: Anatomy,
    to_head: NDArray[np.float64],
    wishes: list[Finding],
    outlines: Sequence[Outline] | None,
) -> tuple[list[Lesion], list[Finding]]:
    """Place the focal findings; returns lesions and measured findings, dropping drawn findings that do not fit.

    Args:
        outlines: that infarcts may have; None: the findings were asked for, and must be met.
    """
    lesions: list[Lesion] = []
    painted: list[Finding] = []
    for wish in wishes:
        if placed := place_one(rng, anatomy, to_head, wish, outlines, lesions):
            lesions.append(placed[0])
            painted.append(placed[1])
        elif outlines is None:
            raise ValueError(f"no room for {wish.kind} of {wish.size_mm} mm in the {wish.side} {wish.region}")
    return lesions, painted


def place_one(
    rng: np.random.Generator,
    anatomy: Anatomy,
    to_head: NDArray[np.float64],
    wish: Finding,
    outlines: Sequence[Outline] | None,
    others: list[Lesion],
) -> tuple[Lesion, Finding] | None:
    """Place one focal finding apart from other lesions; None if there is no room in 40 tries."""
    real = outlines and wish.kind is FindingClass.INFARCT and rng.random() < OUTLINE_SHARE
    tries = (
        _draw_outlined(rng, anatomy, to_head, outlines, others)  # type: ignore[arg-type]
        if real
        else _draw_lesion(rng, anatomy, to_head, wish, others)
        for _ in range(40)
    )
    return next((one for one in tries if one), None)


def shrink(
    lesion: Lesion, finding: Finding, size_mm: float, anatomy: Anatomy, to_head: NDArray[np.float64]
) -> tuple[Lesion, Finding] | None:
    """The same lesion and finding with a smaller diameter, measured as in placing; None if its region changes with it.

    Args:
        size_mm: wanted longest diameter; what is reached is stated by the returned finding.
    """
    size, samples, within = finding.size_mm or size_mm, 28, LEAST_WITHIN
    if lesion.outline is not None:
        samples, within = OUTLINE_SAMPLES, OUTLINE_WITHIN
    for _ in range(3):
        lesion = replace(lesion, shape=lesion.shape * np.float32(np.clip(size / size_mm, 0.5, 4.0)))
        size, points = measure(lesion, anatomy, to_head[:3, :3], samples)
        if size < 1.0:
            return None
    return _settle(lesion, finding, size, points.numpy(), [], within)


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


def _draw_looks(rng: np.random.Generator, kind: FindingClass) -> dict[str, float]:
    """Draw what a lesion looks like: border, contrast, push, necrosis, wall and edema; see `Lesion`."""
    looks = dict(roughness=rng.uniform(0.1, 0.22), edge=rng.uniform(0.04, 0.16), contrast=_contrast(rng), push=0.0)
    if kind is FindingClass.INFARCT:
        looks |= dict(halo=rng.uniform(0.1, 0.5))
    elif kind is FindingClass.HEMATOMA:
        looks |= dict(push=rng.uniform(0.0, 0.2))
        if rng.random() < DARKER_MIDDLE_SHARE:
            looks |= dict(core=rng.uniform(0.3, 0.7))
        if rng.random() < 0.5:
            looks |= dict(halo=rng.uniform(0.15, 0.5))
    else:
        looks |= dict(roughness=rng.uniform(0.06, 0.14), push=rng.uniform(0.25, 0.5))
        look = rng.choice(list(MASS_LOOKS), p=list(MASS_LOOKS.values()))
        if look == "ring":
            wall = rng.uniform(-0.6, 0.1) if rng.random() < ENHANCING_SHARE else rng.uniform(0.1, 0.5)
            looks |= dict(core=rng.uniform(0.6, 0.85), wall=wall, halo=rng.uniform(0.3, 0.9))
        elif look == "solid":
            looks |= dict(wall=rng.uniform(0.6, 0.85), halo=rng.uniform(0.2, 0.9))
        else:
            looks |= dict(wall=rng.uniform(0.6, 0.9), edge=rng.uniform(0.12, 0.25), push=rng.uniform(0.08, 0.3))
    return {name: float(value) for name, value in looks.items()}


def _draw_lesion(
    rng: np.random.Generator, anatomy: Anatomy, to_head: NDArray[np.float64], wanted: Finding, others: list[Lesion]
) -> tuple[Lesion, Finding] | None:
    """Try to place a lesion of the requested class, side and region; None if the position is unsuitable."""
    assert wanted.region is not None and wanted.side is not None
    region = FOCAL_REGIONS.index(wanted.region)
    places = anatomy.candidates[region, wanted.side]
    target = wanted.size_mm or 20.0
    places = places[places[:, 3] >= min(0.25 * target, np.quantile(places[:, 3], 0.7))] if len(places) else places
    if not len(places):
        return None
    centre = places[rng.integers(len(places)), :3] + rng.uniform(-1, 1, 3).astype(np.float32)
    cerebrum = wanted.region in LOBES or wanted.region is Region.INSULA
    infarct = wanted.kind is FindingClass.INFARCT
    wedge = infarct and (cerebrum or wanted.region is Region.CEREBELLUM)
    parts = dict(
        kind=wanted.kind,
        centre=centre,
        wedge=wedge,
        border=_border(rng),
        territory=int(territories(torch.from_numpy(centre)[None])[:, 0].argmax()) if infarct and cerebrum else None,
        **_draw_looks(rng, wanted.kind),
    )
    base = _shape(rng, wanted.kind, wedge, centre, 1.0)
    radius = target / 2.2
    for _ in range(3):
        lesion = Lesion(shape=base / np.float32(radius), **parts)  # type: ignore[arg-type]
        size, points = measure(lesion, anatomy, to_head[:3, :3])
        if size < 1.0:
            return None
        radius *= float(np.clip(target / size, 0.5, 2.0))
    largest = SIZE_MM[1] if target <= SIZE_MM[1] else LARGE_MM
    if not SIZE_MM[0] - 0.5 <= size <= largest + 0.5 or abs(size - target) > 0.25 * target:
        return None
    return _settle(lesion, wanted, size, points.numpy(), others)


def _draw_outlined(
    rng: np.random.Generator,
    anatomy: Anatomy,
    to_head: NDArray[np.float64],
    outlines: Sequence[Outline],
    others: list[Lesion],
) -> tuple[Lesion, Finding] | None:
    """Try to place an infarct with the outline of a real lesion, near where that lesion was, on either side."""
    outline = outlines[int(rng.integers(len(outlines)))]
    flip = np.diag([-1.0 if rng.random() < 0.5 else 1.0, 1.0, 1.0])
    turn, scale = rotation(rng.normal(0, 8.0, 3)), np.exp(rng.normal(0.0, 0.12, 3))
    centre = (flip @ outline.centre + rng.normal(0, 4.0, 3)).astype(np.float32)
    looks = _draw_looks(rng, FindingClass.INFARCT) | dict(roughness=rng.uniform(0.02, 0.08))
    shape = (flip @ turn / (outline.radius_mm * scale)[:, None]).astype(np.float32)
    parts = dict(kind=FindingClass.INFARCT, centre=centre, wedge=False, border=_border(rng), outline=outline, **looks)
    lesion = Lesion(shape=shape, **parts)  # type: ignore[arg-type]
    size, points = measure(lesion, anatomy, to_head[:3, :3], OUTLINE_SAMPLES)
    if not OUTLINE_MM[0] - 0.5 <= size <= OUTLINE_MM[1] + 0.5:
        return None
    codes = region_of(points.numpy())
    region = FOCAL_REGIONS[int(np.bincount(codes).argmax())]
    midline = region is Region.BRAINSTEM and abs(float(points[:, 0].mean())) < MIDLINE_MM
    side = Side.MIDLINE if midline else Side.LEFT if float(points[:, 0].mean()) < 0 else Side.RIGHT
    wanted = Finding(kind=FindingClass.INFARCT, side=side, region=region, size_mm=size)
    return _settle(lesion, wanted, size, points.numpy(), others, OUTLINE_WITHIN)


def _settle(
    lesion: Lesion,
    wanted: Finding,
    size: float,
    points: NDArray[np.float32],
    others: list[Lesion],
    within: float = LEAST_WITHIN,
) -> tuple[Lesion, Finding] | None:
    """Accept the lesion if most of it lies in the stated region and apart from the others.

    Args:
        within: least share of its points in the region.
    """
    region = FOCAL_REGIONS.index(wanted.region)  # type: ignore[arg-type]
    if (region_of(points) == region).mean() < within:
        return None
    x = points[:, 0]
    side = {Side.LEFT: (x < 0).mean(), Side.RIGHT: (x > 0).mean(), Side.MIDLINE: float(abs(x.mean()) < 3)}
    if side[wanted.side] < 0.9:  # type: ignore[index]
        return None
    for other in others:
        if np.linalg.norm(other.centre - lesion.centre) < 0.5 * size + other.radius_mm + 6.0:
            return None
    return lesion, wanted.model_copy(update={"size_mm": round(size, 1), "signal": SIGNAL_OF[wanted.kind]})
