"""Splitting of the model's text into sections and sentences with their findings, and the share understood."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from neuroflamingo.report.records import Parse, SectionName, Sections, Statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neuroflamingo.findings.agreement import Disagreement
    from neuroflamingo.findings.parsing import ParsedReport

_WORDS = {
    "technique": "techniques?|protocol",
    "findings": "findings|body|description|observations|results",
    "comparison": "comparison",
    "impression": "impression|conclusions?|summary|opinion|assessment|interpretation",
}
_NAMED = "|".join(f"(?P<{name}>{words})" for name, words in _WORDS.items())
_UPPER = "|".join(_WORDS).upper()
_HEADING = re.compile(rf"(?:^[ \t#*]*(?i:{_NAMED})[ \t*]*|\b(?P<upper>{_UPPER})\s*):\s*", re.MULTILINE)


def split_sections(text: str) -> Sections:
    """Split a text into sections. A text without headings is FINDINGS; repeated sections are joined.

    Headings stand at the beginning of a line (`Findings:`, `Body:`), or anywhere in capital letters (`FINDINGS:`).
    """
    headings = list(_HEADING.finditer(text))
    if not headings:
        return Sections(findings=text.strip())
    bodies: dict[str, list[str]] = {name: [] for name in _WORDS}
    before = text[: headings[0].start()].strip()
    if before:
        bodies["findings"].append(before)
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        body = text[heading.end() : following.start() if following else len(text)].strip()
        if body:
            bodies[(heading["upper"] or str(heading.lastgroup)).lower()].append(body)
    return Sections(**{name: "\n".join(parts) for name, parts in bodies.items()})


def statements_of(parsed: ParsedReport) -> tuple[Statement, ...]:
    """Number the parser's sentences as statements."""
    return tuple(
        Statement(
            id=f"s{number}",
            section=_section(sentence.section),
            start=sentence.start,
            end=sentence.end,
            text=sentence.text,
            findings=sentence.findings,
        )
        for number, sentence in enumerate(parsed.sentences, start=1)
    )


def parse_of(parsed: ParsedReport, points: Sequence[Disagreement]) -> Parse:
    """The report's record of how well its text was understood, and where it disagrees with itself."""
    words = tuple(point.words for point in points)
    return Parse(coverage=parsed.coverage, unparsed=parsed.unparsed, contradictions=words)


def _section(name: str) -> SectionName:
    if name == "findings":
        return "findings"
    return "impression" if name == "impression" else "other"
