"""Labels of other people (37 of one data set, 74 of another), as findings that the reader knows by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuroflamingo.evaluation.report_texts import Faults, short
from neuroflamingo.reader.brain_findings import BY_NAME
from neuroflamingo.reader.phrase_table import finding_of
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.records import MAX_LINE
from neuroflamingo_preprocessing.user_files import check_input, decode_text


@dataclass(frozen=True)
class LabelList:
    """Labels and what they mean.

    Attributes:
        names: the finding of each label, by its name in the reader's table.
        unknown: labels that name no finding of it, and are not scored.
    """

    names: dict[str, str]
    unknown: tuple[str, ...]


def read_labels(source: str | Path) -> LabelList:
    """Read a list of labels, one a line, such as "Lacunar infarct"; `LABEL = NAME` says the finding's name.

    Raises:
        NotFoundError: there is no such file (exit 66).
        ScanError: no list of labels, a label twice, or a name that is not in the table: all in one message (exit 65).
    """
    path = Path(source)
    check_input(path, "a text file with one label a line")
    expected = "a text file with one label a line"
    if not path.is_file() or path.stat().st_size > MAX_LINE:
        raise ScanError(f"{path.name} is no list of labels", expected=expected)
    try:
        lines = decode_text(path.read_bytes()).splitlines()
    except UnicodeDecodeError as error:
        raise ScanError(
            f"{path.name} is no list of labels", expected=f"{expected}, in UTF-8", seen=str(error)[:200]
        ) from error
    faults = Faults(path.name)
    names: dict[str, str | None] = {}
    for number, line in enumerate(filter(None, map(str.strip, lines)), start=1):
        label, equals, named = (part.strip() for part in line.partition("="))
        if label in names:
            faults.add(f"label {number}: {short(label)} is there twice")
        if equals and named not in BY_NAME:
            faults.add(f"label {number}: the table has no finding {short(named)}")
        names[label] = named if equals else finding_of(label)
    if not names:
        raise ScanError(f"{path.name} is no list of labels", expected=expected, seen="an empty file")
    faults.check("one label a line, or LABEL = NAME of a finding in docs/read_report.md", "correct these lines")
    found = {label: name for label, name in names.items() if name is not None}
    return LabelList(found, tuple(label for label, name in names.items() if name is None))
