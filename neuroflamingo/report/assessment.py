"""What speaks for or against each finding of a report: the rest of the text, the mirrored head, where it looked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from neuroflamingo.findings.agreement import Disagreement, MirrorVerdict, mirror_verdicts
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.provenance import QualityFlag
from neuroflamingo.report.records import Assessment, Evidence, Statement

if TYPE_CHECKING:
    from neuroflamingo.findings.parsing import ParsedReport

MIRROR_WORDS = {
    MirrorVerdict.STAYS: "side uncertain: it does not swap in the mirrored head",
    MirrorVerdict.ABSENT: "not stated of the mirrored head",
}


def evidence_words(evidence: Evidence, numbers: Mapping[str, int]) -> list[tuple[str, bool | None]]:
    """Verdicts on where the model looked, and whether each speaks for the sentence; None: neither for nor against.

    Args:
        evidence: of the sentence.
        numbers: badge numbers of the sentences by their id.
    """
    words: list[tuple[str, bool | None]] = []
    if evidence.in_brain is False:
        words.append(("peak outside the brain: no evidence", False))
    elif evidence.peak_matches is not None:
        near = "near" if evidence.within_mm is None else f"within {evidence.within_mm:.0f} mm of"
        far = "far from" if evidence.within_mm is None else f"more than {evidence.within_mm:.0f} mm from"
        matches = evidence.peak_matches
        words.append((f"peak {near if matches else far} the stated side and region", matches))
    if evidence.shared_with:
        others = ", ".join(str(numbers[name]) for name in evidence.shared_with if name in numbers)
        same = f"same peak as sentence {others}"
        words.append((f"{same}: no evidence of its own", False) if evidence.contested else (same, None))
    return words


def assess(
    statements: Sequence[Statement],
    parsed: ParsedReport,
    points: Sequence[Disagreement],
    mirrored: str | None,
) -> tuple[tuple[Statement, ...], tuple[Assessment, ...]]:
    """Add the doubts to the sentences, and assess each finding of FINDINGS.

    Args:
        statements: with their evidence.
        parsed: the text.
        points: where the text disagrees with itself.
        mirrored: text about the mirrored head.
    """
    stating = [(one, at) for one in statements for at in range(len(one.findings))]
    concluded = [pair for pair in stating if pair[0].section == "impression"]
    body = [pair for pair in stating if pair[0].section == "findings"]
    body = body if any(one.section == "findings" and one.id != "all" for one in statements) else concluded
    doubts: defaultdict[str, list[str]] = defaultdict(list)
    for point in points:
        for places, found in ((body, point.findings), (concluded, point.impression)):
            for number in found:
                doubts[places[number][0].id].append(point.words)
    again = None if mirrored is None else parse_report(mirrored).findings
    verdicts = [None] * len(body) if again is None else mirror_verdicts(parsed.findings, again)
    for (one, _), verdict in zip(body, verdicts, strict=True):
        if verdict is not None and verdict in MIRROR_WORDS:
            doubts[one.id].append(MIRROR_WORDS[verdict])
    numbers = {one.id: at for at, one in enumerate((s for s in statements if s.evidence), start=1)}
    for one in statements:
        if one.evidence is not None and one.findings and one.evidence.supports is False:
            doubts[one.id] += [
                words for words, speaks_for in evidence_words(one.evidence, numbers) if speaks_for is False
            ]
    marked = tuple(one.model_copy(update={"doubts": tuple(dict.fromkeys(doubts[one.id]))}) for one in statements)
    of = {one.id: one.doubts for one in marked}
    assessments = tuple(
        Assessment(statement=one.id, finding=one.findings[at], mirror=verdict, doubts=of[one.id])
        for (one, at), verdict in zip(body, verdicts, strict=True)
    )
    return marked, assessments


def checks_of(statements: Sequence[Statement], assessments: Sequence[Assessment]) -> tuple[QualityFlag, ...]:
    """Checks of a report's findings: sides in the mirrored head, and where the model looked."""
    sided = [one.mirror is MirrorVerdict.SWAPS for one in assessments if one.mirror is not None]
    looked = [one.evidence.supports for one in statements if one.evidence is not None and one.findings]
    placed = [supports for supports in looked if supports is not None]
    flags = []
    for name, passed in (
        ("sides that swap in the mirrored head", sided),
        ("sentences whose own peak of attention lies near the stated place", placed),
    ):
        if passed:
            share = sum(passed) / len(passed)
            flags.append(QualityFlag(name=name, value=round(share, 4), threshold="all", passed=share == 1))
    return tuple(flags)
