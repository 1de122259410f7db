"""The best constant report, a baseline that never uses the scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

from neuroflamingo.findings.vocabulary import Finding, FindingClass, report_order
from neuroflamingo.findings.wording import render_report


@dataclass(frozen=True)
class ConstantReport:
    """One report for all cases, and its finding F1 on the cases that it was chosen on."""

    findings: tuple[Finding, ...]
    text: str
    finding_f1: float


def _typical(kind: FindingClass, number: int, found: Sequence[Finding]) -> list[Finding]:
    """The `number` most frequent locations of a class, with the median size and the most common grade and signal."""
    places = Counter((finding.side, finding.region) for finding in found).most_common(number)
    places += [places[0]] * (number - len(places))
    sizes = [finding.size_mm for finding in found if finding.size_mm is not None]
    grade = Counter(finding.grade for finding in found).most_common(1)[0][0]
    signal = Counter(finding.signal for finding in found).most_common(1)[0][0]
    size = float(round(median(sizes))) if sizes else None
    return [
        Finding(kind=kind, side=side, region=region, size_mm=size, grade=grade, signal=signal)
        for (side, region), _ in places
    ]


def best_constant_report(truth: Sequence[Sequence[Finding]], repeats: int = 2) -> ConstantReport:
    """Choose the constant report with the best finding F1, among all sets of classes (each up to `repeats` times).

    It is chosen on the same cases that it will be scored on, which favours it. Ties go to the shorter report.
    """
    per_case = [Counter(finding.kind for finding in findings) for findings in truth]
    total = sum(len(findings) for findings in truth)
    # found[kind][n]: how many findings of a class n constant mentions match, over all cases
    found = {kind: [sum(min(n, case[kind]) for case in per_case) for n in range(repeats + 1)] for kind in FindingClass}
    choices = sorted(product(range(repeats + 1), repeat=len(FindingClass)), key=sum)

    def f1(choice: Sequence[int]) -> float:
        matched = sum(found[kind][n] for kind, n in zip(FindingClass, choice, strict=True))
        stated = total + sum(choice) * len(truth)
        return 2 * matched / stated if stated else 0.0

    best = max(choices, key=f1)
    findings: list[Finding] = []
    for kind, number in zip(FindingClass, best, strict=True):
        if number:
            findings += _typical(kind, number, [f for case in truth for f in case if f.kind is kind])
    findings = report_order(findings)
    return ConstantReport(tuple(findings), render_report(findings, seed=0).text, f1(best))
