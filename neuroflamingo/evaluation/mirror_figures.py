"""What the mirror check is worth: how many wrong sides it marks, and how many right ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuroflamingo.evaluation.matching import match_findings
from neuroflamingo.findings.agreement import MirrorVerdict, mirror_verdicts
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import MIRRORED

if TYPE_CHECKING:
    from neuroflamingo.findings.vocabulary import Finding


def mirror_figures(
    truth: Sequence[Sequence[Finding]], texts: Sequence[str], mirrored: Sequence[str]
) -> dict[str, float | None]:
    """Figures of the mirror check over cases whose truth is known.

    Args:
        truth: findings of each case.
        texts: reports on the scans.
        mirrored: reports on the mirrored scans.

    Returns:
        `wrong_side_rate`: of true findings with a side that are found and not marked, the share on the opposite side;
        `right_sides_marked`: of those found on the right side, the share that is marked (the side does not swap, or it
        is not stated again); `invented_marked`: of stated findings with a side that match no true one, the same.
    """
    counts: Counter[str] = Counter()
    for findings, text, again in zip(truth, texts, mirrored, strict=True):
        stated = parse_report(text).findings
        verdicts = mirror_verdicts(stated, parse_report(again).findings)
        matching = match_findings(findings, stated)
        for row, column in matching.pairs:
            counts.update(_of_pair(findings[row], stated[column], verdicts[column]))
        for column in matching.invented:
            if verdicts[column] is not None:
                counts.update(invented=1, invented_marked=verdicts[column] is not MirrorVerdict.SWAPS)
    ratios = {
        "wrong_side_rate": ("wrong", "checked"),
        "right_sides_marked": ("right_marked", "right"),
        "invented_marked": ("invented_marked", "invented"),
    }
    return {name: counts[top] / counts[of] if counts[of] else None for name, (top, of) in ratios.items()}


def _of_pair(true: Finding, stated: Finding, verdict: MirrorVerdict | None) -> Counter[str]:
    counts: Counter[str] = Counter()
    if true.side is None or true.side not in MIRRORED:
        return counts
    marked = verdict in (MirrorVerdict.STAYS, MirrorVerdict.ABSENT)
    if stated.side is true.side:
        counts.update(right=1, right_marked=marked)
    if not marked:
        counts.update(checked=1, wrong=stated.side is MIRRORED[true.side])
    return counts
