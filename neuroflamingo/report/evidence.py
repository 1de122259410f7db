"""Localisation of attention over encoder tokens in the brain: the peak, its sharpness, and a smooth map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.findings.regions import region_of, side_of
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, Finding, FindingClass, Side
from neuroflamingo.report.records import Evidence, TokenWeight

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

RADIUS_MM = 30.0
FULL_COLOUR = 4.0
"""Multiple of the uniform share at which the overlay's colour saturates, so that nearly uniform attention is pale."""
OUTSIDE_MM = 6.0
"""A peak farther than this from the brain lies outside of it."""
SAME_PEAK_MM = 6.0
"""Peaks nearer to each other than this are one."""
_TOKENS_KEPT = 8
_LOCATED = (*FOCAL, FindingClass.ATROPHY)


def words_of(boundaries: Sequence[int], start: int, end: int) -> Bool[np.ndarray, " text"]:
    """Generated tokens that cover the characters `start` to `end`.

    Args:
        boundaries: characters of text after 0, 1, 2 ... generated tokens (one more than there are tokens).
    """
    edges = np.asarray(boundaries)
    return (edges[:-1] < end) & (edges[1:] > start) & (edges[1:] > edges[:-1])


def token_spacing(positions: Float[np.ndarray, "token 3"]) -> float:
    """Median distance in mm from a token to its nearest neighbour."""
    if len(positions) < 2:
        return RADIUS_MM
    from scipy.spatial import KDTree

    distances, _ = KDTree(positions).query(positions, k=2)
    return float(np.median(distances[:, 1]))


def attention_map(
    weights: Float[np.ndarray, " token"],
    positions: Float[np.ndarray, "token 3"],
    points: Float[np.ndarray, "point 3"],
) -> Float[np.ndarray, " point"]:
    """Smooth attention at `points` (mm) as a multiple of the uniform share: 1 everywhere if attention is uniform.

    A Gaussian kernel average of the tokens' shares with a width of 0.6 token spacings, so that the picture shows no
    more detail than the tokens have.
    """
    sigma = 0.6 * token_spacing(positions)
    ratio = weights * len(weights) / weights.sum()
    out = np.empty(len(points))
    for begin in range(0, len(points), 4096):
        block = points[begin : begin + 4096]
        squared = (block**2).sum(1)[:, None] + (positions**2).sum(1) - 2 * block @ positions.T
        kernel = np.exp((squared.min(1, keepdims=True) - squared) / (2 * sigma**2))
        out[begin : begin + 4096] = kernel @ ratio / kernel.sum(1)
    return out


def locate(
    weights: Float[np.ndarray, " token"],
    positions: Float[np.ndarray, "token 3"],
    scan: int,
    findings: Sequence[Finding],
    brain: Float[np.ndarray, "point 3"] | None = None,
) -> Evidence | None:
    """Locate the peak of one sentence's attention; None if the tokens have no position or got no attention.

    The peak is the maximum of the smooth map at the tokens, moved to the centre of mass of the attention above the
    uniform share in its neighbourhood, which is finer than the token grid if neighbours share the attention.

    Args:
        weights: attention of each token.
        positions: of the tokens, mm; NaN for those without one.
        scan: number of the scan.
        findings: what the sentence states.
        brain: voxels of the scan's brain, mm, in the space of the positions; None: unknown.
    """
    total = weights.sum()
    placed = np.isfinite(positions).all(1)
    weights, positions = weights[placed], positions[placed]
    if not len(weights) or not weights.sum() > 0:
        return None
    share = weights / weights.sum()
    spacing = token_spacing(positions)
    top = positions[int(np.argmax(attention_map(weights, positions, positions)))]
    around = np.linalg.norm(positions - top, axis=1) <= 1.5 * spacing
    excess = np.clip(share - 1 / len(share), 0, None) * around
    peak = (excess @ positions) / excess.sum() if excess.sum() > 0 else top
    near = np.linalg.norm(positions - peak, axis=1) <= RADIUS_MM
    order = np.argsort(-share, kind="stable")[:_TOKENS_KEPT]
    return Evidence(
        scan=scan,
        peak_mm=_rounded(peak),
        peak_side=side_of(float(peak[0])),
        peak_region=FOCAL_REGIONS[int(region_of(peak[None])[0])],
        radius_mm=RADIUS_MM,
        share_near_peak=round(float(share[near].sum()), 4),
        even_share=round(float(near.mean()), 4),
        placed_share=round(float(weights.sum() / total), 4),
        peak_matches=_matches(peak, spacing, findings),
        within_mm=round(spacing / 2, 1),
        in_brain=None if brain is None else bool(np.linalg.norm(brain - peak, axis=1).min() <= OUTSIDE_MM),
        tokens=tuple(
            TokenWeight(position_mm=_rounded(positions[index]), weight=round(float(share[index]), 5)) for index in order
        ),
    )


def same_peaks(evidence: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """Evidence of statements by their id, with the other statements that have the same peak in the same scan."""

    def with_others(name: str, one: Evidence) -> Evidence:
        others = {n: other for n, other in evidence.items() if n != name and _share_peak(one, other)}
        contested = one.peak_matches is not None and any(e.peak_matches is not None for e in others.values())
        return one.model_copy(update={"shared_with": tuple(others), "contested": contested})

    return {name: with_others(name, one) for name, one in evidence.items()}


def _share_peak(one: Evidence, other: Evidence) -> bool:
    distance = float(np.linalg.norm(np.array(one.peak_mm) - other.peak_mm))
    return one.scan == other.scan and distance < SAME_PEAK_MM


def _matches(peak: np.ndarray, spacing: float, findings: Sequence[Finding]) -> bool | None:
    """True if the stated side and region of any located finding lie within half a token of the peak."""
    located = [finding for finding in findings if finding.kind in _LOCATED and finding.region in FOCAL_REGIONS]
    if not located:
        return None
    steps = np.linspace(-spacing / 2, spacing / 2, 7)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = peak + offsets[np.linalg.norm(offsets, axis=1) <= spacing / 2 + 1e-9]
    regions = region_of(points)
    return any(_lies_in(finding, points, regions) for finding in located)


def _lies_in(finding: Finding, points: np.ndarray, regions: np.ndarray) -> bool:
    assert finding.region is not None
    inside = regions == FOCAL_REGIONS.index(finding.region)
    if finding.side is Side.LEFT:
        inside &= points[:, 0] < 0
    elif finding.side is Side.RIGHT:
        inside &= points[:, 0] > 0
    return bool(inside.any())


def _rounded(point: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 1) + 0.0 for value in point)
    return x, y, z
