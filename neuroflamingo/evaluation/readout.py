"""Findings directly from the encoder's linear heads, an upper reference for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
from neuroflamingo_encoders.families.tiny_t1w.network import CELL, Readout
from neuroflamingo_preprocessing.structural.template import GRID_SPACING_MM

SIDES = (Side.LEFT, Side.RIGHT, Side.MIDLINE)
CELL_MM = CELL * GRID_SPACING_MM
SAME_CLASS_MM, OTHER_CLASS_MM = 24.0, 12.0


@dataclass(frozen=True)
class Thresholds:
    """Probability thresholds for stating a finding, chosen on validation cases."""

    presence: tuple[float, float, float] = (0.4, 0.4, 0.4)
    atrophy: float = 0.5
    white_matter: float = 0.5
    ventricles: float = 0.5


def decode(readout: Readout, centres: Tensor, thresholds: Thresholds) -> list[list[Finding]]:
    """Decode the findings of each scan: local maxima of presence, strongest first, then the diffuse classes.

    Args:
        centres: centres of the cells in mm, `[cell, 3]`.
    """
    presence = readout.presence.float().sigmoid()
    places = centres[None, :, None] + readout.offset.float() * CELL_MM
    out = []
    for scan in range(len(presence)):
        found = _focal(readout, presence[scan], places[scan], scan, thresholds)
        out.append(report_order(found + _diffuse(readout, scan, thresholds)))
    return out


def _focal(readout: Readout, presence: Tensor, places: Tensor, scan: int, thresholds: Thresholds) -> list[Finding]:
    limits = torch.tensor(thresholds.presence)
    cells, kinds = torch.nonzero(presence > limits, as_tuple=True)
    order = (presence[cells, kinds] / limits[kinds]).argsort(descending=True)
    kept: list[tuple[int, np.ndarray]] = []
    found = []
    for index in order.tolist():
        cell, kind = int(cells[index]), int(kinds[index])
        place = places[cell, kind].numpy()
        near = [(k, float(np.linalg.norm(place - p))) for k, p in kept]
        if any(d < (SAME_CLASS_MM if k == kind else OTHER_CLASS_MM) for k, d in near):
            continue
        kept.append((kind, place))
        size = float(readout.size[scan, cell, kind].float().exp().clamp(5, 100))
        found.append(
            Finding(
                kind=FOCAL[kind],
                side=SIDES[int(readout.side[scan, cell, kind].argmax())],
                region=FOCAL_REGIONS[int(readout.region[scan, cell, kind].argmax())],
                size_mm=round(size, 1),
                signal=SIGNAL_OF[FOCAL[kind]],
            )
        )
    return found


def _diffuse(readout: Readout, scan: int, thresholds: Thresholds) -> list[Finding]:
    found = []
    graded = (
        (readout.white_matter, FindingClass.WHITE_MATTER_LESIONS, Region.WHITE_MATTER, thresholds.white_matter),
        (readout.ventricles, FindingClass.VENTRICULAR_ENLARGEMENT, Region.VENTRICLES, thresholds.ventricles),
    )
    for logits, kind, region, limit in graded:
        share = logits[scan].float().softmax(0)
        if 1 - float(share[0]) > limit:
            grade = 1 + int(share[1:].argmax())
            found.append(Finding(kind=kind, side=Side.BILATERAL, region=region, grade=grade))
    sides = readout.atrophy[scan].float().sigmoid() > thresholds.atrophy
    for lobe, (left, right) in zip(LOBES, sides.tolist(), strict=True):
        if left or right:
            side = Side.BILATERAL if left and right else Side.LEFT if left else Side.RIGHT
            found.append(Finding(kind=FindingClass.ATROPHY, side=side, region=lobe))
    return found


def choose_thresholds(readout: Readout, centres: Tensor, truth: list[tuple[Finding, ...]]) -> Thresholds:
    """Choose the thresholds with the best finding F1 per class, on cases that the encoder has not seen."""
    grid = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
    scores: dict[tuple[FindingClass, float], float] = {}
    for limit in grid:
        predicted = decode(readout, centres, Thresholds((limit, limit, limit), limit, limit, limit))
        for kind in FindingClass:
            scores[kind, limit] = class_f1(truth, predicted, kind)
    best = {kind: max(grid, key=lambda limit: scores[kind, limit]) for kind in FindingClass}
    return Thresholds(
        (best[FOCAL[0]], best[FOCAL[1]], best[FOCAL[2]]),
        best[FindingClass.ATROPHY],
        best[FindingClass.WHITE_MATTER_LESIONS],
        best[FindingClass.VENTRICULAR_ENLARGEMENT],
    )


def class_f1(truth: Sequence[Sequence[Finding]], predicted: Sequence[Sequence[Finding]], kind: FindingClass) -> float:
    """F1 of one class by counts: per case, the smaller of the true and predicted counts is matched."""
    hits = said = there = 0
    for a, b in zip(truth, predicted, strict=True):
        n, m = sum(f.kind is kind for f in a), sum(f.kind is kind for f in b)
        hits, there, said = hits + min(n, m), there + n, said + m
    return 2 * hits / max(1, there + said)
