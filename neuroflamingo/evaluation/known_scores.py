"""Scores of reports on real scans against what is known: found, side, region, size, invented, neither known nor denied.

Known is not complete: a finding that nobody listed and nobody denied is counted by itself, never as invented.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo.evaluation.bootstrap import interval, resampled_sums
from neuroflamingo.evaluation.matching import (
    REGION_WEIGHT,
    SIDE_WEIGHT,
    SIZE_WEIGHT,
    match_findings,
    size_similarity,
)
from neuroflamingo.evaluation.scoring import size_is_right
from neuroflamingo.findings.vocabulary import FOCAL, MIRRORED, Finding

if TYPE_CHECKING:
    from neuroflamingo.evaluation.truth_file import Examination, KnownFinding

FIGURES: dict[str, tuple[str, str]] = {
    "T1w scans refused": ("refused", "scans"),
    "known findings found": ("found", "known"),
    "the same, refused scans counted as missed": ("found", "known_in_all"),
    "found with side and region right": ("placed", "known"),
    "side right, of those found": ("side_right", "sided"),
    "wrong side": ("side_opposite", "sided"),
    "region right": ("region_right", "regioned"),
    "size within 3 mm or 20 %": ("size_right", "sized"),
    "grade right": ("grade_right", "graded"),
    "healthy heads with an invented finding": ("healthy_invented", "healthy"),
    "healthy heads with an invented focal finding": ("healthy_invented_focal", "healthy"),
    "the same, every check passed and nothing warned": ("healthy_unwarned", "healthy"),
    "invented focal findings per examination of a patient": ("denied_focal", "patient"),
    "focal findings neither known nor denied, per examination of a patient": ("open_focal", "patient"),
}
"""Each figure as a ratio of sums over the scans: numerator and denominator among the counts of a scan."""
COUNTS = tuple(dict.fromkeys(name for pair in FIGURES.values() for name in pair))


@dataclass(frozen=True)
class ScanScore:
    """Counts of one scan (see `FIGURES`), and what became of each finding.

    Attributes:
        counts: by name.
        found: a known finding's number and the stated finding's number, for each pair.
        invented, open: numbers of stated findings that are denied, and of those that are neither known nor denied.
    """

    counts: dict[str, float]
    found: tuple[tuple[int, int], ...] = ()
    invented: tuple[int, ...] = ()
    open: tuple[int, ...] = ()


def refused_score(known: int) -> ScanScore:
    """Counts of a scan that was refused: that many findings were not found."""
    return ScanScore({**dict.fromkeys(COUNTS, 0.0), "refused": 1.0, "scans": 1.0, "known_in_all": float(known)})


def score_scan(
    about: Examination, known: Sequence[KnownFinding], stated: Sequence[Finding], *, unwarned: bool
) -> ScanScore:
    """Score the findings of a report on one scan.

    Args:
        about: the examination, for what is absent.
        known: its findings, masks measured (see `masks.findings_of`).
        stated: findings of the report.
        unwarned: every check passed, and there was no warning.
    """
    pairs = match_findings(known, stated, _cost).pairs
    counts: Counter[str] = Counter(scans=1, known=len(known), known_in_all=len(known), found=len(pairs))
    for row, column in pairs:
        counts.update(_pair_counts(known[row], stated[column]))
    left = [number for number in range(len(stated)) if number not in {column for _, column in pairs}]
    invented = [number for number in left if about.complete or _denied(about, stated[number])]
    focal = [number for number in invented if stated[number].kind in FOCAL]
    if about.healthy:
        counts.update(healthy=1, healthy_invented=bool(invented), healthy_invented_focal=bool(focal))
        counts["healthy_unwarned"] = int(bool(focal) and unwarned)
    open_ones = [number for number in left if number not in invented]
    if not about.healthy:
        open_focal = sum(stated[number].kind in FOCAL for number in open_ones)
        counts.update(patient=1, denied_focal=len(focal), open_focal=open_focal)
    return ScanScore({name: float(counts[name]) for name in COUNTS}, pairs, tuple(invented), tuple(open_ones))


def _denied(about: Examination, finding: Finding) -> bool:
    """Whether a class, or a finding of that size, is known to be absent."""
    entries = [entry for entry in about.absent if entry.kind is finding.kind]
    return any(entry.over_mm is None or (finding.size_mm or 0.0) > entry.over_mm for entry in entries)


def _cost(known: KnownFinding, stated: Finding) -> float:
    """Cost of a pair, as for painted cases; what is not known costs nothing."""
    credit = SIDE_WEIGHT * (known.side in (None, stated.side))
    credit += REGION_WEIGHT * (not known.regions or stated.region in known.regions)
    return 1.0 - credit - SIZE_WEIGHT * size_similarity(max(known.size_mm, default=None), stated.size_mm)


def _pair_counts(known: KnownFinding, stated: Finding) -> Counter[str]:
    counts: Counter[str] = Counter()
    side = known.side in (None, stated.side)
    region = not known.regions or stated.region in known.regions
    counts["placed"] = int(side and region)
    if known.side and known.side in MIRRORED:
        counts.update(sided=1, side_right=side, side_opposite=stated.side == MIRRORED[known.side])
    if known.regions:
        counts.update(regioned=1, region_right=region)
    if known.size_mm:
        counts.update(sized=1, size_right=size_is_right(max(known.size_mm), stated.size_mm))
    if known.grade:
        counts.update(graded=1, grade_right=stated.grade in known.grade)
    return counts


@dataclass(frozen=True)
class Figure:
    """One figure: numerator, denominator, their ratio (None for 0) and its 95 % interval over persons."""

    top: float
    of: float
    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ScanFigures:
    """All figures of a set of scans, and how many scans and persons they are of."""

    scans: int
    persons: int
    values: dict[str, Figure] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data: for each figure value, numerator, denominator and interval."""
        rows = {
            name: {"value": one.value, "count": one.top, "of": one.of, "interval": one.interval and list(one.interval)}
            for name, one in self.values.items()
        }
        return {"scans": self.scans, "persons": self.persons, "figures": rows}


def figures(scores: Sequence[ScanScore], persons: Sequence[str], resamples: int = 1000) -> ScanFigures:
    """Figures of scored scans; intervals come from persons drawn with replacement, since scans of one are alike.

    Args:
        scores: one for each scan.
        persons: whose scan each is, in the same order.
        resamples: number of draws.
    """
    names = sorted(set(persons))
    by_person = np.zeros((len(names), len(COUNTS)))
    for score, person in zip(scores, persons, strict=True):
        by_person[names.index(person)] += [score.counts[name] for name in COUNTS]
    sums, drawn = by_person.sum(0), resampled_sums(by_person, resamples)
    values: dict[str, Figure] = {}
    for title, (top, bottom) in FIGURES.items():
        a, b = COUNTS.index(top), COUNTS.index(bottom)
        ratio = np.divide(drawn[:, a], drawn[:, b], out=np.full(len(drawn), np.nan), where=drawn[:, b] > 0)
        value = float(sums[a] / sums[b]) if sums[b] > 0 else None
        values[title] = Figure(float(sums[a]), float(sums[b]), value, None if value is None else interval(ratio))
    return ScanFigures(len(scores), len(names), values)
