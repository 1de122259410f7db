"""Masks of real findings turned into findings by the rules of painting: side, region and size are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.evaluation.truth_file import Known, KnownFinding, mask_voxels
from neuroflamingo.findings.regions import MIDLINE_MM, region_of
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, LOBES, FindingClass, Region, Side
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import apply
from neuroflamingo_preprocessing.structural.template import grid_affine, load_template

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Bool, Float

    from neuroflamingo_preprocessing.geometry import Affine

GAP_MM = 6.0
"""Parts of a mask closer than this are one lesion; painted lesions lie further apart."""
SMALLEST_MM = 7.5
"""Lesions below this are none that the models know: painted ones begin here."""
REGION_SHARE, SECOND_SHARE, SIDE_SHARE = 0.6, 0.2, 0.9
"""Share of a lesion in its region, in each region of one that lies in several, and on its side."""
BRAIN_SHARE = 0.1
"""A mask with less of itself in the template's brain belongs to another scan."""


@dataclass(frozen=True)
class Measured:
    """The findings of an examination for one of its scans, and what was left out.

    Attributes:
        findings: listed ones and those of masks.
        too_small: number of parts of masks that are too small to be scored.
    """

    findings: tuple[KnownFinding, ...]
    too_small: int


def findings_of(known: Known, scan_to_template: Affine | None) -> Measured:
    """The known findings of an examination; those of masks are measured through the scan's alignment.

    Args:
        known: the examination.
        scan_to_template: scan world mm to template world mm; None: the scan was not aligned.

    Raises:
        ScanError: a mask lies outside the brain, or there is no alignment to measure it by.
    """
    measured: list[KnownFinding] = []
    too_small = 0
    for entry, path in zip(known.about.masks, known.masks, strict=True):
        kind = entry.kind or known.about.findings[0].kind
        if scan_to_template is None:
            raise ScanError(
                f"the mask {path.name} cannot be measured",
                expected="a model whose encoder aligns scans to the template",
                hint="give side, region and size in the truth file instead",
            )
        voxels, affine = mask_voxels(path, entry.label)
        _check_place(path, voxels, scan_to_template @ affine)
        if kind in FOCAL:
            found, small = lesions_of(voxels, affine, scan_to_template, kind)
            measured, too_small = measured + found, too_small + small
        elif not any(one.kind is kind for one in known.about.findings):
            measured.append(_diffuse(kind, voxels, scan_to_template @ affine))
    taken = {one.kind for one in measured}
    return Measured((*(one for one in known.about.findings if one.kind not in taken), *measured), too_small)


def lesions_of(
    voxels: Bool[np.ndarray, "x y z"], affine: Affine, scan_to_template: Affine, kind: FindingClass
) -> tuple[list[KnownFinding], int]:
    """Separate lesions of a focal class, largest first, and the number of parts that are too small.

    Args:
        voxels: the mask.
        affine: its voxel index to scan world mm.
        scan_to_template: scan world mm to template world mm.
        kind: the class.
    """
    found: list[KnownFinding] = []
    too_small = 0
    voxel_mm = float(np.linalg.norm(affine[:3, :3], axis=0).max())
    for points in _parts(voxels, affine):
        size = longest_diameter(points) + 0.5 * voxel_mm
        if size < SMALLEST_MM:
            too_small += 1
            continue
        side, regions = place_of(apply(scan_to_template, points))
        found.append(KnownFinding.of(kind, side, regions, round(size, 1)))
    return sorted(found, key=lambda one: -one.size_mm[0]), too_small


def _parts(voxels: np.ndarray, affine: Affine) -> list[np.ndarray]:
    """Points (scan world mm) of the parts of a mask that lie at least `GAP_MM` apart."""
    from scipy.ndimage import distance_transform_edt, label

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    margin = np.ceil(GAP_MM / spacing).astype(int)
    index = np.argwhere(voxels)
    low = index.min(0) - margin
    inside = np.zeros(index.max(0) + margin + 1 - low, dtype=bool)
    inside[tuple((index - low).T)] = True
    near = distance_transform_edt(~inside, sampling=spacing) <= GAP_MM / 2
    numbers, count = label(near, np.ones((3, 3, 3)))  # type: ignore[misc]
    own = numbers[tuple((index - low).T)]
    return [apply(affine, index[own == number]) for number in range(1, count + 1)]


def longest_diameter(points: Float[np.ndarray, "point 3"]) -> float:
    """Longest distance between any two points, in mm, to a hundredth of it: between those farthest out on 300 axes."""
    from scipy.spatial.distance import pdist

    k = np.arange(300) + 0.5
    z, phi = k / 300, np.pi * (1 + 5**0.5) * k
    axes = np.stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z], axis=1)
    along = points @ axes.T
    farthest = np.unique(np.concatenate([along.argmin(0), along.argmax(0)]))
    return float(pdist(points[farthest]).max()) if len(farthest) > 1 else 0.0


def place_of(points_mm: Float[np.ndarray, "point 3"]) -> tuple[Side | None, tuple[Region, ...]]:
    """Side and regions of a lesion's points in template mm, as painting names them.

    A side holds nine tenths of the points; around the midline it is the midline; a lesion that crosses it otherwise has
    none. A region holds three fifths; a lesion that lies in several has all that hold a fifth.
    """
    x = points_mm[:, 0]
    side = Side.LEFT if (x < 0).mean() >= SIDE_SHARE else Side.RIGHT if (x > 0).mean() >= SIDE_SHARE else None
    if abs(float(x.mean())) < MIDLINE_MM:
        side = Side.MIDLINE
    shares = np.bincount(region_of(points_mm), minlength=len(FOCAL_REGIONS)) / len(points_mm)
    first = int(shares.argmax())
    if shares[first] >= REGION_SHARE:
        return side, (FOCAL_REGIONS[first],)
    order = np.argsort(-shares, kind="stable")
    return side, tuple(FOCAL_REGIONS[code] for code in order if shares[code] >= SECOND_SHARE) or (FOCAL_REGIONS[first],)


def _diffuse(kind: FindingClass, voxels: np.ndarray, to_template: Affine) -> KnownFinding:
    """A diffuse finding: of an atrophy side and lobe, of the others that they are there."""
    if kind is not FindingClass.ATROPHY:
        return KnownFinding.of(kind)
    side, regions = place_of(apply(to_template, np.argwhere(voxels)))
    return KnownFinding.of(kind, side or Side.BILATERAL, tuple(one for one in regions if one in LOBES))


def _check_place(path: Path, voxels: np.ndarray, to_template: Affine) -> None:
    grid = np.linalg.inv(grid_affine())
    index = np.rint(apply(grid @ to_template, np.argwhere(voxels))).astype(int)
    brain = load_template().grid_mask
    within = ((index >= 0) & (index < brain.shape)).all(1)
    share = float(brain[tuple(index[within].T)].sum()) / len(index)
    if share < BRAIN_SHARE:
        raise ScanError(
            f"the mask {path.name} lies outside the brain",
            expected="a mask with the same world coordinates as the scan",
            seen=f"{100 * share:.0f} % of it in the brain",
            hint="resample it to the scan, or correct its header",
        )
