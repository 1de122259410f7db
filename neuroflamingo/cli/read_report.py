"""The command `read-report`: print what a report of a brain scan states, and how far it was read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.progress import say
from neuroflamingo.reader.read_text import read_text
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.files import printable
from neuroflamingo_preprocessing.user_files import check_input, decode_text

if TYPE_CHECKING:
    from neuroflamingo.reader.brain_report import BrainReport, ReadFinding, ReadSentence

MAX_BYTES = 500_000
_STDIN = "-"


def read_reports(files: Sequence[str], *, as_json: bool, marked: bool) -> None:
    """Read reports and print what they state.

    Args:
        files: names of text files, `-` for standard input.
        as_json: one JSON object for a file, one a line for several.
        marked: the text sentence by sentence instead of a table, with what was read and what was not.

    Raises:
        NotFoundError: a file is missing.
        ScanError: a file is no text, too large, empty, or in another language.
    """
    for at, file in enumerate(files):
        name = "standard input" if file == _STDIN else printable(Path(file).name)
        report = read_text(_text_of(file, name), name)
        if as_json:
            record = {"file": name, **report.as_record()}
            say(json.dumps(record) if len(files) > 1 else json.dumps(record, indent=2))
            continue
        if len(files) > 1:
            say(f"{chr(10) if at else ''}{name}")
        for line in _marked_lines(report) if marked else _table_lines(report):
            say(line)


def _text_of(file: str, name: str) -> str:
    """Text of a file or of standard input."""
    if file != _STDIN:
        check_input(file, "a text file with a report")
        if Path(file).is_dir():
            raise ScanError(f"{name} is a folder", expected="a text file with a report", hint="name its files")
    with sys.stdin.buffer if file == _STDIN else Path(file).open("rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    expected = f"text in UTF-8 of at most {MAX_BYTES // 1_000} kB"
    if len(raw) > MAX_BYTES:
        raise ScanError(
            f"{name} is too large for a report", expected=expected, hint="give each report a file of its own"
        )
    try:
        text = decode_text(raw)
    except UnicodeDecodeError as error:
        hint = "save it as UTF-8 text; a PDF or Word file must be exported as text first"
        raise ScanError(
            f"{name} cannot be read as text", expected=expected, seen=str(error)[:120], hint=hint
        ) from error
    if "\0" in text:
        raise ScanError(f"{name} is no text", expected=expected, seen="NUL characters", hint="export it as plain text")
    if not text.strip():
        raise ScanError(f"{name} is empty", expected="the text of a report", hint="check the file")
    return text


def _table_lines(report: BrainReport) -> Iterator[str]:
    """The findings as a table, then what is denied, past and contradictory, and the coverage."""
    header = ("finding", "side", "place", "size", "certainty", "in the text")
    rows = [header, *(_cells(finding) for finding in report.findings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(header))]
    if report.findings:
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    else:
        yield "no finding is stated"
    if report.absent:
        yield f"absent: {', '.join(sorted(report.absent))}"
    if report.past:
        yield f"history only: {', '.join(dict.fromkeys(finding.name for finding in report.past))}"
    yield from (f"contradiction: {words}" for words in report.contradictions)
    unread = sum(sentence.share is not None and sentence.share < 1 for sentence in report.sentences)
    yield f"coverage: {report.coverage:.0%}" + (f"; {unread} sentences not fully read, see --marked" if unread else "")


def _cells(finding: ReadFinding) -> tuple[str, ...]:
    size = " x ".join(f"{length:g}" for length in finding.dimensions_mm)
    before = "" if finding.previous_mm is None else f" (before {finding.previous_mm:g} mm)"
    certainty = f"{finding.certainty}, a {finding.seen_as}" if finding.seen_as else str(finding.certainty)
    words = " ".join(finding.words.split())
    return (
        finding.name,
        str(finding.side or ""),
        ", ".join(finding.regions),
        (f"{size} mm" if size else "") + before,
        certainty + (f", {finding.change}" if finding.change else ""),
        f'"{words}"',
    )


def _marked_lines(report: BrainReport) -> Iterator[str]:
    """The sentences, each behind what became of it, with the words of findings in brackets."""
    found = sorted({(finding.start, finding.end) for finding in (*report.findings, *report.past)}, reverse=True)
    for sentence in report.sentences:
        text = sentence.text
        for start, end in found:
            if sentence.start <= start and end <= sentence.end:
                left, right = start - sentence.start, end - sentence.start
                text = f"{text[:left]}[{text[left:right]}]{text[right:]}"
        yield f"{_mark(sentence):<9}{' '.join(text.split())}"
        if sentence.unread and sentence.share:
            yield f"{'':<9}not used: {'; '.join(sentence.unread)}"
    yield "read: understood; part: some words were not used; NOT: not understood; -: states nothing about the brain"


def _mark(sentence: ReadSentence) -> str:
    if sentence.share is None:
        return "-"
    return "read" if sentence.share == 1 else "part" if sentence.share > 0 else "NOT"
