"""What speaks for or against each finding of a report: the rest of the text, the mirrored head, where it looked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuroflamingo.findings.agreement import Disagreement, MirrorVerdict, mirror_verdicts
from neuroflamingo.findings.parsing import parse_report, place_key
from neuroflamingo.findings.vocabulary import Certainty
from neuroflamingo.provenance import QualityFlag
from neuroflamingo.report.records import Assessment, Evidence, Statement, Verdict

if TYPE_CHECKING:
    from neuroflamingo.findings.parsing import ParsedReport
    from neuroflamingo.findings.vocabulary import Finding

NOT_STATED, POSSIBLE = "(Not stated: too unlikely.)", "Possible: "
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


@dataclass(frozen=True)
class Judgement:
    """Calibrated probability of a finding, None if there is none, and what the report makes of it."""

    probability: float | None = None
    verdict: Verdict = "stated"


def numbers_of(statements: Sequence[Statement], verdicts: Mapping[str, Verdict]) -> dict[str, int]:
    """Badge numbers of the sentences that have an overlay and are stated."""
    shown = [one.id for one in statements if one.evidence and verdicts.get(one.id) != "withheld"]
    return {name: number for number, name in enumerate(shown, start=1)}


def assess(
    statements: Sequence[Statement],
    parsed: ParsedReport,
    points: Sequence[Disagreement],
    mirrored: str | None,
    judgements: Sequence[Judgement] = (),
) -> tuple[tuple[Statement, ...], tuple[Assessment, ...]]:
    """Add the doubts to the sentences, and assess each finding of FINDINGS.

    Args:
        statements: with their evidence.
        parsed: the text.
        points: where the text disagrees with itself.
        mirrored: text about the mirrored head.
        judgements: of the findings of FINDINGS, in their order; empty: all are stated.
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
    judged = judgements or tuple(Judgement() for _ in body)
    said = _verdicts(body, concluded, judged)
    numbers = numbers_of(statements, said)
    for one in statements:
        if one.evidence is not None and one.findings and one.evidence.supports is False:
            doubts[one.id] += [
                words for words, speaks_for in evidence_words(one.evidence, numbers) if speaks_for is False
            ]
    marked = tuple(
        one.model_copy(update={"doubts": tuple(dict.fromkeys(doubts[one.id])), "verdict": said.get(one.id, "stated")})
        for one in statements
    )
    of = {one.id: one.doubts for one in marked}
    assessments = tuple(
        Assessment(
            statement=one.id,
            finding=one.findings[at],
            mirror=verdict,
            probability=judgement.probability,
            verdict=judgement.verdict,
            doubts=of[one.id],
        )
        for (one, at), verdict, judgement in zip(body, verdicts, judged, strict=True)
    )
    return marked, assessments


def _verdicts(
    body: Sequence[tuple[Statement, int]], concluded: Sequence[tuple[Statement, int]], judged: Sequence[Judgement]
) -> dict[str, Verdict]:
    """Verdict of each sentence: that of its finding, of several the strongest; IMPRESSION follows FINDINGS."""
    verdicts: dict[str, Verdict] = {}

    def strengthen(name: str, verdict: Verdict) -> None:
        verdicts[name] = _strongest([verdicts.get(name, "withheld"), verdict])

    findings = [one.findings[at] for one, at in body]
    for (one, _), judgement in zip(body, judged, strict=True):
        strengthen(one.id, judgement.verdict)
    for one, at in concluded:
        own = one.findings[at]
        same: list[Verdict] = [
            j.verdict for f, j in zip(findings, judged, strict=True) if place_key(f) == place_key(own)
        ]
        alike: list[Verdict] = [j.verdict for f, j in zip(findings, judged, strict=True) if f.kind is own.kind]
        strengthen(one.id, _strongest(same or alike) if same or alike else "stated")
    return verdicts


def _strongest(verdicts: Sequence[Verdict]) -> Verdict:
    return "stated" if "stated" in verdicts else "possible" if "possible" in verdicts else "withheld"


def kept_findings(findings: Sequence[Finding], verdicts: Iterable[Verdict]) -> tuple[Finding, ...]:
    """Findings that a report states: those withheld left out, possible ones called so."""
    kept = []
    for finding, verdict in zip(findings, verdicts, strict=False):
        if verdict != "withheld":
            changes = {"certainty": Certainty.POSSIBLE} if verdict == "possible" else {}
            kept.append(finding.model_copy(update=changes))
    return tuple(kept)


def stated_text(text: str, statements: Sequence[Statement]) -> str | None:
    """The text without the sentences that are withheld, and with "Possible: " before those that are possible.

    None if all of it is stated.
    """
    changed = [one for one in statements if one.verdict != "stated" and one.id != "all"]
    for one in sorted(changed, key=lambda item: -item.start):
        left = NOT_STATED if one.section == "impression" else ""
        words = left if one.verdict == "withheld" else f"{POSSIBLE}{text[one.start : one.end]}"
        text = text[: one.start] + words + text[one.end :]
    return re.sub(r"  +", " ", text) if changed else None


def checks_of(statements: Sequence[Statement], assessments: Sequence[Assessment]) -> tuple[QualityFlag, ...]:
    """Checks of a report's findings: sides in the mirrored head, and where the model looked."""
    stated = [one for one in assessments if one.verdict != "withheld"]
    sided = [one.mirror is MirrorVerdict.SWAPS for one in stated if one.mirror is not None]
    kept = [one for one in statements if one.findings and one.verdict != "withheld"]
    looked = [one.evidence.supports for one in kept if one.evidence is not None]
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
