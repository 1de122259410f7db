"""Parsing of report text into findings by fixed rules, without a model.

The sentences of `wording` are parsed without loss, other wordings as far as the lexicon knows their words; `coverage`
states the share of a text that was understood. Parsing never raises, whatever the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from neuroflamingo.findings.lexicon import Match, plain, tag
from neuroflamingo.findings.statements import Mention, complete, read_sentence
from neuroflamingo.findings.vocabulary import FOCAL, Finding, FindingClass

_HEADINGS = {
    "findings": "findings|report|body|description|observations|results",
    "impression": "impression|conclusions?|summary|opinion|assessment|interpretation",
    "comparison": "comparison|interval changes?",
    "other": "techniques?|protocol|history|clinical (?:history|information|details)|indications?|examination",
}
_HEADING = re.compile(
    r"(?:^|(?<=[\n.]))[ \t#*]*(?:"
    + "|".join(f"(?P<{name}>{words})" for name, words in _HEADINGS.items())
    + r")[ \t*]*:",
    re.IGNORECASE,
)
_INLINE = re.compile(
    r"\b(?:(?P<findings>FINDINGS)|(?P<impression>IMPRESSION|CONCLUSION)|(?P<comparison>COMPARISON)"
    r"|(?P<other>TECHNIQUE)) ?:"
)
_END = re.compile(
    r"[.!?;](?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*•]|\d{1,2}[.)])\s)|(?:^|(?<=\s))(?:\d{1,2}[.)]|[-*•])(?=\s)|\n(?=\s*[A-Z])"
)


@dataclass(frozen=True)
class Sentence:
    """One sentence of a report: characters [start, end) of the text, and the findings that it states."""

    start: int
    end: int
    text: str
    findings: tuple[Finding, ...]
    section: str
    understood: bool
    denied: frozenset[FindingClass] = frozenset()


@dataclass(frozen=True)
class ParsedReport:
    """Result of parsing a report.

    `findings` come from the FINDINGS section, from the whole text if it has no sections, or from IMPRESSION if that is
    the only section; `impression` from IMPRESSION. `denied` are the classes stated to be absent in the same part.
    `coverage` is the share of its sentences that were understood (0 for an empty text); `unparsed` are the others.
    `contradictions` say in words where the text disagrees with itself.
    """

    findings: tuple[Finding, ...]
    impression: tuple[Finding, ...]
    denied: frozenset[FindingClass]
    impression_denied: frozenset[FindingClass]
    coverage: float
    unparsed: tuple[str, ...]
    contradictions: tuple[str, ...]
    sentences: tuple[Sentence, ...]
    has_impression: bool

    @property
    def agrees(self) -> bool:
        """Whether IMPRESSION repeats the findings' class, side and region: all of them and nothing else."""
        return sorted(map(place_key, self.findings)) == sorted(map(place_key, self.impression))


def place_key(finding: Finding) -> tuple[str, str, str]:
    """Class, side and region as words, for comparison and sorting."""
    return str(finding.kind), str(finding.side or ""), str(finding.region or "")


def named_sections(text: str) -> tuple[list[tuple[str, int, int]], str]:
    """Named character ranges (text before the first heading is "findings"), and the text with headings blanked."""
    heads = {match.start(): match for pattern in (_INLINE, _HEADING) for match in pattern.finditer(text)}
    spots = sorted(heads.values(), key=lambda match: match.end())
    name, start = "findings", 0
    sections: list[tuple[str, int, int]] = []
    for match in spots:
        sections.append((name, start, match.start()))
        name, start = str(match.lastgroup), match.end()
    sections.append((name, start, len(text)))
    for spot in spots:
        text = text[: spot.start()] + " " * (spot.end() - spot.start()) + text[spot.end() :]
    return [(name, start, end) for name, start, end in sections if end > start], text


def sentence_ranges(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Sentence ranges without surrounding blanks, closing marks or list numbers."""
    ranges: list[tuple[int, int]] = []
    at = start
    for match in _END.finditer(text, start, end):
        ranges.append((at, match.end() if match.group() in ".!?" else match.start()))
        at = match.end()
    ranges.append((at, end))
    trimmed: list[tuple[int, int]] = []
    for left, right in ranges:
        while left < right and not text[left].isalnum():
            left += 1
        while left < right and text[right - 1].isspace():
            right -= 1
        if any(character.isalpha() for character in text[left:right]):
            trimmed.append((left, right))
    return trimmed


def _find_last(findings: list[list[Finding]], kind: FindingClass | None) -> tuple[int, int] | None:
    """Position of the latest finding of a class (any focal one for None)."""
    for at in range(len(findings) - 1, -1, -1):
        for within in range(len(findings[at]) - 1, -1, -1):
            found = findings[at][within].kind
            if found is kind or (kind is None and found in FOCAL):
                return at, within
    return None


def _repeats(mention: Mention, findings: list[list[Finding]]) -> bool:
    """Fold a mention of an earlier finding ("the mass measures ...") into it; False if it is a new one."""
    spot = _find_last(findings, mention.kind) if mention.refers_back and len(mention.findings) == 1 else None
    if spot is None:
        return False
    merged = complete(findings[spot[0]][spot[1]], mention.findings[0])
    if merged is not None:
        findings[spot[0]][spot[1]] = merged
    return merged is not None


def _read_section(text: str, clean: str, tags: list[Match], name: str, start: int, end: int) -> list[Sentence]:
    """Read the sentences of a section in order; later ones may complete findings of earlier ones."""
    sentences: list[Sentence] = []
    findings: list[list[Finding]] = []
    for left, right in sentence_ranges(text, start, end):
        here = [found for found in tags if left <= found.start and found.end <= right]
        statement = read_sentence(clean, here, left, right)
        stated: list[Finding] = []
        for mention in statement.mentions:
            if not mention.denied and not _repeats(mention, findings):
                stated += mention.findings
        if statement.loose and (spot := _find_last(findings, None)):
            target = findings[spot[0]][spot[1]]
            merged = complete(target, statement.loose.model_copy(update={"kind": target.kind}))
            findings[spot[0]][spot[1]] = merged or target
        findings.append(stated)
        understood = statement.understood
        sentences.append(Sentence(left, right, text[left:right], (), name, understood, statement.denied))
    return [replace(sentence, findings=tuple(f)) for sentence, f in zip(sentences, findings, strict=True)]


def _contradictions(
    findings: list[Finding], denied: set[FindingClass], impression: list[Finding], two: bool
) -> list[str]:
    found = [f"{kind} both stated and denied" for kind in sorted({f.kind for f in findings} & denied)]
    if two:
        stated, repeated = {f.kind for f in findings}, {f.kind for f in impression}
        found += [f"{kind} in FINDINGS but not in IMPRESSION" for kind in sorted(stated - repeated)]
        found += [f"{kind} in IMPRESSION but not in FINDINGS" for kind in sorted(repeated - stated)]
    return found


def parse_report(text: str) -> ParsedReport:
    """Read a report.

    Args:
        text: any string; sections are found by their headings.

    Returns:
        Its findings, with everything left unsaid as None; sizes in mm.
    """
    sections, body_text = named_sections(text)
    clean = plain(body_text)
    tags = tag(clean)
    sentences: list[Sentence] = []
    for name, start, end in sections:
        if name in ("findings", "impression"):
            sentences += _read_section(text, clean, tags, name, start, end)
    impression = [sentence for sentence in sentences if sentence.section == "impression"]
    body = [sentence for sentence in sentences if sentence.section == "findings"] or impression

    def gather(part: list[Sentence]) -> tuple[list[Finding], set[FindingClass]]:
        return [f for s in part for f in s.findings], {kind for s in part for kind in s.denied}

    (found, denied), (concluded, concluded_denied) = gather(body), gather(impression)
    two = bool(impression) and body is not impression
    return ParsedReport(
        findings=tuple(found),
        impression=tuple(concluded),
        denied=frozenset(denied),
        impression_denied=frozenset(concluded_denied),
        coverage=sum(sentence.understood for sentence in body) / len(body) if body else 0.0,
        unparsed=tuple(sentence.text for sentence in body if not sentence.understood),
        contradictions=tuple(_contradictions(found, denied, concluded, two)),
        sentences=tuple(sentences),
        has_impression=bool(impression),
    )
