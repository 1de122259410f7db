"""Probability of a stated finding, from the encoder's own readout: fitted on held-out cases, and used in reports.

`fit_calibration` gives the record that a model keeps under `calibration` in `config.training`. Without it reports show
no probabilities, since uncalibrated ones mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from neuroflamingo.evaluation.matching import match_findings
from neuroflamingo.findings.regions import region_of
from neuroflamingo.findings.vocabulary import FOCAL, FOCAL_REGIONS, LOBES, MIRRORED, Finding, FindingClass, Side
from neuroflamingo.settings import Section

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from neuroflamingo.report.records import Verdict
    from neuroflamingo_encoders.families.tiny_t1w.network import Readout

FEWEST = 20
"""A class with fewer stated findings, or with fewer than five right or five false ones, is not calibrated."""
FEWEST_OF_EACH = 5
CELL_MM = 24.0
"""Side of a cell of the readout (`readout.CELL_MM`, without torch)."""
MIDLINE_REACH_MM = 12.0


class ClassCalibration(Section):
    """Calibration of one class: probability = sigmoid((logit - shift) / temperature).

    Attributes:
        temperature, shift: of the readout's logit.
        withhold_below: probability below which a finding is not stated.
        possible_below: probability below which it is called possible.
        stated, false: how many held-out findings it was fitted on, and how many of them were false.
        curve: risk and coverage: threshold, share of the stated findings kept, share of these that are false.
    """

    temperature: float = Field(gt=0)
    shift: float = 0.0
    withhold_below: float = Field(default=0.0, ge=0, le=1.01)
    possible_below: float = Field(default=0.0, ge=0, le=1.01)
    stated: int = 0
    false: int = 0
    curve: tuple[tuple[float, float, float], ...] = ()

    def probability(self, logit: float) -> float:
        """Calibrated probability of a logit."""
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, (logit - self.shift) / self.temperature))))

    def verdict(self, probability: float) -> Verdict:
        """What a report says of a finding of that probability."""
        if probability < self.withhold_below:
            return "withheld"
        return "possible" if probability < self.possible_below else "stated"


class Calibration(Section):
    """The record under `calibration` in `config.training`.

    Attributes:
        classes: by finding class; one that is missing is not calibrated, and its findings are stated as they are.
        healthy_risk: share of healthy held-out heads with an invented finding that the thresholds were chosen for.
        healthy_reached: the share that they reach; None without healthy heads.
        false_risk: share of false ones among findings stated without "possible" that they were chosen for.
        cases: how many held-out cases.
    """

    classes: dict[FindingClass, ClassCalibration]
    healthy_risk: float = 0.05
    healthy_reached: float | None = None
    false_risk: float = 0.1
    cases: int = 0


def finding_logit(readout: Readout, centres: Tensor, scan: int, finding: Finding) -> float:
    """The readout's logit of a stated finding.

    Of a focal finding the highest presence logit of its class among the cells that touch its region on its side; of
    white matter lesions and ventricles that of any grade above 0; of an atrophy the lowest of its sides.

    Args:
        readout: of several scans.
        centres: of the cells, mm, `[cell, 3]`.
        scan: number of the scan.
        finding: as a report states it.
    """
    if finding.kind in FOCAL:
        logits = _values(readout.presence[scan, :, FOCAL.index(finding.kind)])
        near = cells_of(_values(centres), finding)
        return float(logits[near].max() if near.any() else logits.max())
    if finding.kind is FindingClass.ATROPHY:
        logits = _values(readout.atrophy[scan])
        rows = [LOBES.index(finding.region)] if finding.region in LOBES else list(range(len(LOBES)))
        columns = {Side.LEFT: [0], Side.RIGHT: [1]}.get(finding.side or Side.BILATERAL, [0, 1])
        return float(logits[rows][:, columns].min(1).max())
    graded = readout.white_matter if finding.kind is FindingClass.WHITE_MATTER_LESIONS else readout.ventricles
    grades = _values(graded[scan])
    return float(np.logaddexp.reduce(grades[1:]) - grades[0])


def _values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def cells_of(centres: Float[np.ndarray, "cell 3"], finding: Finding) -> Bool[np.ndarray, " cell"]:
    """Cells with a part in the region and on the side of a focal finding; what it does not state does not restrict."""
    steps = np.linspace(-CELL_MM / 2, CELL_MM / 2, 5)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = (centres[:, None] + offsets).reshape(-1, 3)
    inside = np.ones(len(points), bool)
    if finding.region in FOCAL_REGIONS:
        inside &= region_of(points) == FOCAL_REGIONS.index(finding.region)
    x = points[:, 0]
    if finding.side is Side.LEFT:
        inside &= x < 0
    elif finding.side is Side.RIGHT:
        inside &= x > 0
    elif finding.side is Side.MIDLINE:
        inside &= np.abs(x) <= MIDLINE_REACH_MM
    return np.asarray(inside.reshape(len(centres), -1).any(1))


def fit_calibration(
    readout: Readout,
    centres: Tensor,
    truth: Sequence[Sequence[Finding]],
    stated: Sequence[Sequence[Finding]],
    *,
    healthy: Collection[int] | None = None,
    healthy_risk: float = 0.05,
    false_risk: float = 0.1,
) -> Calibration:
    """Fit temperatures, shifts and thresholds on held-out cases, whose heads and persons trained nothing.

    A stated finding is right if it is matched with a true one of its class, and not on the opposite side. Below
    `withhold_below` findings go unstated, so that at most `healthy_risk` of the healthy cases get an invented one;
    below `possible_below` they are possible, so that of those stated without the word at most `false_risk` are false.

    Args:
        readout: of all cases.
        centres: of the cells, mm, `[cell, 3]`.
        truth: true findings of each case.
        stated: findings of each case's report, or of the readout (`readout.decode`).
        healthy: cases on which inventions are counted, such as those of real heads; None: all without findings.
        healthy_risk, false_risk: the risks to choose thresholds for.

    Returns:
        The record; `config.training["calibration"] = record.model_dump(mode="json")`.
    """
    rows = [
        (case, finding, finding_logit(readout, centres, case, finding), right)
        for case, findings in enumerate(stated)
        for finding, right in zip(findings, _right(truth[case], findings), strict=True)
    ]
    healthy = set(healthy or (case for case, findings in enumerate(truth) if not findings))
    classes = _fit_classes([(finding.kind, logit, right) for _, finding, logit, right in rows])
    likely = [
        (case, finding.kind, classes[finding.kind].probability(logit), right)
        for case, finding, logit, right in rows
        if finding.kind in classes
    ]
    limit = _withhold_below([(case, p) for case, _, p, _ in likely if case in healthy], len(healthy), healthy_risk)
    of_kinds = {kind: [(p, right) for _, of, p, right in likely if of is kind] for kind in classes}
    classes = {kind: _with_limits(fitted, of_kinds[kind], limit, false_risk) for kind, fitted in classes.items()}
    unstated = {case for case, finding, _, _ in rows if case in healthy and finding.kind not in classes}
    invented = unstated | {case for case, _, p, _ in likely if case in healthy and p >= limit}
    return Calibration(
        classes=classes,
        healthy_risk=healthy_risk,
        healthy_reached=round(len(invented) / len(healthy), 4) if healthy else None,
        false_risk=false_risk,
        cases=len(truth),
    )


def _fit_classes(rows: Sequence[tuple[FindingClass, float, bool]]) -> dict[FindingClass, ClassCalibration]:
    """Temperature and shift of each class with enough right and false findings, given with their logits."""
    classes = {}
    for kind in FindingClass:
        logits = np.array([logit for of, logit, _ in rows if of is kind])
        labels = np.array([right for of, _, right in rows if of is kind], bool)
        if len(labels) >= FEWEST and FEWEST_OF_EACH <= labels.sum() <= len(labels) - FEWEST_OF_EACH:
            temperature, shift = _fit(logits, labels)
            classes[kind] = ClassCalibration(temperature=temperature, shift=shift)
    return classes


def _with_limits(
    fitted: ClassCalibration, stated: Sequence[tuple[float, bool]], withhold_below: float, false_risk: float
) -> ClassCalibration:
    """The calibration of a class with its thresholds, from the probabilities of its stated findings."""
    curve = risk_coverage([p for p, _ in stated], [right for _, right in stated])
    return fitted.model_copy(
        update={
            "withhold_below": withhold_below,
            "possible_below": max(withhold_below, _possible_below(curve, false_risk)),
            "stated": len(stated),
            "false": sum(not right for _, right in stated),
            "curve": tuple(curve),
        }
    )


def _right(truth: Sequence[Finding], stated: Sequence[Finding]) -> list[bool]:
    right = [False] * len(stated)
    for row, column in match_findings(truth, stated).pairs:
        side = truth[row].side
        right[column] = side is None or stated[column].side is not MIRRORED.get(side)
    return right


def _fit(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Temperature and shift of least cross entropy, with a weak pull towards 1 and 0 (Platt 1999, Guo et al. 2017)."""
    from scipy.optimize import minimize

    def loss(values: np.ndarray) -> float:
        scaled = (logits - values[1]) / np.exp(values[0])
        return float(
            np.logaddexp(0, np.where(labels, -scaled, scaled)).sum() + 0.5 * values[0] ** 2 + 0.01 * values[1] ** 2
        )

    found = minimize(loss, np.zeros(2), method="Nelder-Mead")
    return round(float(np.exp(np.clip(found.x[0], -3, 3))), 4), round(float(found.x[1]), 4)


def risk_coverage(probabilities: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float, float]]:
    """Threshold, share kept and share of these that are false, from all kept to the last one."""
    order = np.argsort(-np.asarray(probabilities), kind="stable")
    sorted_p, false = np.asarray(probabilities)[order], ~np.asarray(right, bool)[order]
    curve = [
        (round(float(sorted_p[kept - 1]), 6), round(kept / len(order), 6), round(float(false[:kept].mean()), 6))
        for kept in range(len(order), 0, -1)
        if kept == len(order) or sorted_p[kept - 1] > sorted_p[kept]
    ]
    step = max(1, len(curve) // 50)
    return curve[::step]


def _possible_below(curve: Sequence[tuple[float, float, float]], risk: float) -> float:
    """The lowest threshold whose risk is small enough; above 1 if there is none."""
    return next((threshold for threshold, _, false in curve if false <= risk), 1.01)


def _withhold_below(stated: Sequence[tuple[int, float]], healthy: int, risk: float) -> float:
    """The lowest threshold at which few enough healthy cases keep a finding; 0 without healthy cases."""
    strongest: dict[int, float] = {}
    for case, probability in stated:
        strongest[case] = max(probability, strongest.get(case, 0.0))
    allowed = int(risk * healthy)
    ranked = sorted(strongest.values(), reverse=True)
    return 0.0 if len(ranked) <= allowed else min(1.01, math.nextafter(ranked[allowed], 2.0))
