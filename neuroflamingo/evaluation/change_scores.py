"""Scores of what reports on follow-ups say has changed, against the true changes.

Every figure is a ratio of sums of per-case counts, with an interval from drawing cases again. Definitions:
docs/evaluate.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuroflamingo.evaluation.bootstrap import interval, resampled_sums
from neuroflamingo.evaluation.matching import match_findings
from neuroflamingo.findings.changes import Change, ChangeKind, Comparison, reverse_changes
from neuroflamingo.findings.comparison import ParsedComparison, parse_comparison
from neuroflamingo.findings.parsing import place_key
from neuroflamingo_preprocessing.errors import UsageError

RATIOS: dict[str, tuple[str, str]] = {
    "kinds_right": ("right", "true"),
    "kinds_right_of_found": ("right", "paired"),
    "kinds_right_in_place": ("placed", "true"),
    "moved_kinds_right": ("moved right", "moved"),
    "size_change_mae_mm": ("size error", "sized"),
    "made_up_other_person": ("other made up", "other"),
    "made_up_no_change": ("still made up", "still"),
    "different_heads_said": ("different said", "other"),
    "different_heads_wrongly_said": ("different wrongly", "same"),
    "compared": ("compared", "cases"),
    **{f"{kind}_right": (f"{kind} right", f"{kind} true") for kind in ChangeKind},
}
"""Each figure as numerator and denominator of summed counts."""
COLUMNS = tuple(dict.fromkeys(name for pair in RATIOS.values() for name in pair))


@dataclass(frozen=True)
class ChangeScores:
    """Figures of stated changes.

    `values` and `intervals` (95 %) are keyed as `RATIOS`; one whose denominator is zero is None. `counts` holds the
    sums behind them.
    """

    values: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]
    counts: dict[str, float]

    def __getitem__(self, name: str) -> float | None:
        return self.values[name]

    @property
    def kinds_right(self) -> float | None:
        """Of the true changes, the share that is stated with the right kind."""
        return self.values["kinds_right"]


def match_changes(truth: Sequence[Change], stated: Sequence[Change]) -> tuple[tuple[int, int], ...]:
    """Pairs (index in truth, index in stated) of changes of one finding: by class, side, region and size."""
    return match_findings([one.finding for one in truth], [one.finding for one in stated]).pairs


def _moved(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.kind is not ChangeKind.UNCHANGED]


def _pair_counts(true: Change, stated: Change) -> Counter[str]:
    """Contribution of one matched pair."""
    counts: Counter[str] = Counter()
    right = true.kind is stated.kind
    in_place = place_key(true.finding) == place_key(stated.finding)
    counts.update({"paired": 1, "right": right, f"{true.kind} right": right, "placed": right and in_place})
    counts["moved right"] = right and true.kind is not ChangeKind.UNCHANGED
    if true.kind in (ChangeKind.LARGER, ChangeKind.SMALLER):
        a, b = true.size_change_mm, stated.size_change_mm
        if a is not None and b is not None:
            counts["sized"], counts["size error"] = 1, abs(a - b)  # type: ignore[assignment]
    return counts


def _case_counts(truth: Comparison, parsed: ParsedComparison) -> Counter[str]:
    """Counts of one report."""
    made_up = bool(_moved(parsed.changes))
    still = truth.same_head and not _moved(truth.changes)
    counts: Counter[str] = Counter(cases=1, true=len(truth.changes), moved=len(_moved(truth.changes)))
    counts.update(other=not truth.same_head, same=truth.same_head, still=still, compared=parsed.stated)
    counts["other made up"] = made_up and not truth.same_head
    counts["still made up"] = made_up and still
    counts["different said"] = not parsed.same_head and not truth.same_head
    counts["different wrongly"] = not parsed.same_head and truth.same_head
    counts.update(f"{change.kind} true" for change in truth.changes)
    for row, column in match_changes(truth.changes, parsed.changes):
        counts.update(_pair_counts(truth.changes[row], parsed.changes[column]))
    return counts


def _check_lengths(one: Sequence[object], other: Sequence[object], noun: str) -> None:
    if len(one) != len(other):
        raise UsageError(f"every case needs one of the {noun}", expected=str(len(one)), seen=str(len(other)))


def score_changes(truth: Sequence[Comparison], texts: Sequence[str], resamples: int = 1000) -> ChangeScores:
    """Score what reports say has changed.

    For swapped scans give the reversed truth (`reverse_changes`): `moved_kinds_right` is then the share of changes that
    the reports reverse.

    Args:
        truth: the true comparison of each case.
        texts: its report.
        resamples: number of draws for the intervals.

    Raises:
        UsageError: the numbers of cases and texts differ.
    """
    _check_lengths(truth, texts, "texts")
    cases = [_case_counts(true, parse_comparison(text)) for true, text in zip(truth, texts, strict=True)]
    counts = np.array([[float(case[name]) for name in COLUMNS] for case in cases]).reshape(len(cases), len(COLUMNS))
    sums, drawn = counts.sum(0), resampled_sums(counts, resamples)
    values: dict[str, float | None] = {}
    intervals: dict[str, tuple[float, float] | None] = {}
    for name, (top, bottom) in RATIOS.items():
        a, b = COLUMNS.index(top), COLUMNS.index(bottom)
        values[name] = float(sums[a] / sums[b]) if sums[b] else None
        ratios = np.divide(drawn[:, a], drawn[:, b], out=np.full(len(drawn), np.nan), where=drawn[:, b] > 0)
        intervals[name] = interval(ratios) if sums[b] else None
    return ChangeScores(values, intervals, dict(zip(COLUMNS, sums.tolist(), strict=True)))


def reversed_share(texts: Sequence[str], swapped: Sequence[str]) -> float | None:
    """Share of stated changes (but unchanged) that reports on the swapped scans state the other way round.

    What is true does not matter: it says whether the order of the scans is read at all. None if no change is stated.

    Args:
        texts: reports on baseline and follow-up.
        swapped: reports on the same scans with the follow-up first.

    Raises:
        UsageError: the numbers of texts differ.
    """
    _check_lengths(texts, swapped, "swapped texts")
    turned = said = 0
    for text, other in zip(texts, swapped, strict=True):
        due = reverse_changes(_moved(parse_comparison(text).changes))
        stated = parse_comparison(other).changes
        said += len(due)
        turned += sum(due[a].kind is stated[b].kind for a, b in match_changes(due, stated))
    return turned / said if said else None
