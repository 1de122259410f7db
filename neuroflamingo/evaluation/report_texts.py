"""Anybody's report texts by id: JSON lines, tables, or a folder of text files; every fault of a file in one message."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neuroflamingo.findings.parsing import ParsedReport
from neuroflamingo.findings.vocabulary import Finding, FindingClass
from neuroflamingo.reader.brain_findings import BY_NAME, WIDER
from neuroflamingo.reader.brain_report import BrainReport, ReadFinding
from neuroflamingo.reader.read_text import read_text
from neuroflamingo.report.report_words import report_words
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.records import ENDINGS, MAX_LINE, records
from neuroflamingo_preprocessing.user_files import check_input, decode_text

ID_COLUMNS = ("id", "study_uid", "study_id", "case_id", "case", "uid")
PERSON_COLUMNS = ("subject", "person", "patient_uid", "patient_id", "subject_id")
OWN_COLUMNS = {
    "references": ("reference", "reference_report", "ground_truth", "target"),
    "predictions": ("prediction", "predicted", "generated", "generated_report", "output", "response", "answer"),
}
"""Columns that can only be the one or the other, so that one table may hold both."""
TEXT_COLUMNS = ("text", "report", "findings")
NAME_OF = {
    FindingClass.INFARCT: "infarct",
    FindingClass.MASS: "mass",
    FindingClass.HEMATOMA: "hematoma",
    FindingClass.WHITE_MATTER_LESIONS: "white matter lesions",
    FindingClass.VENTRICULAR_ENLARGEMENT: "ventricular enlargement",
    FindingClass.ATROPHY: "atrophy",
}
"""The most general name of each class: a report that denies it denies the class."""
PLACED = ("side", "region", "size_mm", "grade")
VAGUE = {"lesion", "signal abnormality"}
"""Names that say that something is there, but not what."""
MAX_SHOWN, MAX_ID = 20, 80
TYPED = "findings, as a list, are known findings: class, side, region, ... as in docs/data.md"


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table or the keys of JSON lines; None: found by the usual names."""

    id: str | None = None
    text: str | None = None


BY_USUAL_NAMES = Columns()


@dataclass(frozen=True)
class NamedText:
    """A report with its id.

    Attributes:
        id: by which it is joined.
        text: as it stands in the file; may be empty.
        known: findings that are known without reading the text.
        person: whose scan it is, if the row says so.
    """

    id: str
    text: str
    known: tuple[Finding, ...] | None = None
    person: str | None = None

    @cached_property
    def report(self) -> BrainReport | None:
        """What the reader of reports makes of the text; None if it is in another language."""
        try:
            return read_text(self.text, self.id)
        except ScanError:  # it reads English only, and score counts and names what it could not read
            return None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The known findings, else those that the text states; without signal, which the reader does not read."""
        if self.known is not None:
            return tuple(one.model_copy(update={"signal": None}) for one in self.known)
        return tuple(_once_each(self.report.findings if self.report else ()))

    @cached_property
    def names(self) -> frozenset[str]:
        """All findings by their names in the reader's table, the more general ones too: a glioma is a mass."""
        if self.known is not None:
            return frozenset(NAME_OF[one.kind] for one in self.known)
        stated = self.report.findings if self.report else ()
        names = {name for one in stated for name in (one.name, one.seen_as) if name}
        return frozenset(names.union(*(WIDER.get(name, ()) for name in names)) - VAGUE)

    @cached_property
    def stated(self) -> ParsedReport | None:
        """What is scored of a text beside its findings; None where the findings are known."""
        if self.known is not None:
            return None
        report = self.report or BrainReport()
        denied = frozenset(kind for kind, name in NAME_OF.items() if name in report.absent)
        found, clashes = self.findings, report.contradictions
        return ParsedReport(found, found, denied, denied, report.coverage, (), clashes, (), has_impression=False)

    @property
    def coverage(self) -> float:
        """Share of the sentences that was understood; 1 where the findings are known."""
        return 1.0 if self.stated is None else self.stated.coverage

    @property
    def was_read(self) -> bool:
        """False if the reader understood nothing, so that no finding does not mean a normal scan."""
        return self.known is not None or self.coverage > 0 or bool(self.names)


def _once_each(stated: Iterable[ReadFinding]) -> Iterator[Finding]:
    """Findings of the six classes; what has two names ("old stroke: encephalomalacia") is one finding of its class."""
    kept: list[tuple[str, Finding]] = []
    for one in stated:
        finding = one.as_finding()
        if finding is None:
            continue
        for at, (name, earlier) in enumerate(kept):
            if _one_thing(name, one.name) and (both := _joined(earlier, finding)):
                kept[at] = name, both
                break
        else:
            kept.append((one.name, finding))
    yield from (finding for _, finding in kept)


def _one_thing(name: str, other: str) -> bool:
    """Whether two names may be of one thing: the one is more general, or both are what an infarct leaves behind."""
    left_behind = {BY_NAME[name].kind, BY_NAME[other].kind} == {FindingClass.INFARCT}
    return name != other and (left_behind or other in WIDER.get(name, ()) or name in WIDER.get(other, ()))


def _joined(one: Finding, other: Finding) -> Finding | None:
    """One finding of what two say of it; None if they are of different classes or places."""
    values = [(getattr(one, name), getattr(other, name)) for name in ("kind", "side", "region", "size_mm", "grade")]
    if any(None not in pair and pair[0] != pair[1] for pair in values):
        return None
    return one.model_copy(update={name: getattr(other, name) for name in PLACED if getattr(one, name) is None})


@dataclass
class Faults:
    """Faults of a file: the first are kept in words, all are counted."""

    name: str
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, fault: str) -> None:
        """Note one."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(fault)

    def check(self, expected: str, hint: str) -> None:
        """Stop at the faults so far.

        Raises:
            ScanError: there are some (exit 65).
        """
        if self.count:
            more = [f"and {self.count - len(self.shown):,} more"] if self.count > len(self.shown) else []
            raise ScanError(
                f"{self.name} has {self.count:,} fault{'s' * (self.count > 1)}",
                expected=expected,
                seen="\n    ".join([*self.shown, *more]),
                hint=hint,
            )


def short(name: str) -> str:
    """An id for a message."""
    return name if len(name) <= MAX_ID else f"{name[:MAX_ID]}..."


def stream_texts(source: str | Path, role: str, columns: Columns, faults: Faults) -> Iterator[NamedText]:
    """Yield the reports of a file or folder one after the other; none is kept.

    Args:
        source: a table (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), or a folder of `.txt` files, whose names are
            the ids. Of our own reports (`NAME.report.txt`) the words are taken.
        role: "references" or "predictions": which columns may hold the text.
        columns: names of the columns.
        faults: takes rows that cannot be read, and ids that are there twice.

    Raises:
        NotFoundError: there is no such file (exit 66).
        UsageError: it is not clear which column holds the ids or the texts (exit 2).
        ScanError: the file cannot be read at all (exit 65).
    """
    path = Path(source)
    check_input(path, f"{', '.join(ENDINGS)}, or a folder of .txt files")
    seen: set[str] = set()
    found = _of_folder(path, faults) if path.is_dir() else _of_table(path, role, columns, faults)
    for one in found:
        if one.id in seen:
            faults.add(f"the id {short(one.id)} is there twice")
            continue
        seen.add(one.id)
        yield one
    if not seen and not faults.count:
        raise ScanError(f"there is no report in {path.name}", expected="one report a line, or .txt files in a folder")


def _of_folder(folder: Path, faults: Faults) -> Iterator[NamedText]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())
    if not files:
        raise NotFoundError(f"there is no .txt file in the folder {folder.name}", expected="a file ID.txt per report")
    for path in files:
        name = _plain_id(path.stem.removesuffix(".report"))
        if path.stat().st_size > MAX_LINE:
            faults.add(f"{short(path.name)}: larger than {MAX_LINE:,} bytes")
            continue
        try:
            yield NamedText(name, report_words(decode_text(path.read_bytes())))
        except UnicodeDecodeError as error:
            faults.add(f"{short(path.name)}: not UTF-8 text (byte {error.start + 1}); save the file as UTF-8")


def _of_table(path: Path, role: str, columns: Columns, faults: Faults) -> Iterator[NamedText]:
    names = _Names(path.name, role, columns)
    for number, row in records(path):
        if isinstance(row, str):
            faults.add(f"line {number}: {row}")
            continue
        names.look(row)
        try:
            yield names.read(row)
        except ValueError as error:
            faults.add(f"line {number}: {error}")
    names.refuse_unseen()


class _Names:
    """Which columns of a table hold ids and texts, decided at the first row that has them."""

    def __init__(self, file: str, role: str, columns: Columns) -> None:
        self.file, self.role, self.id, self.text = file, role, columns.id, columns.text
        self.listed = False
        self.seen: dict[str, None] = {}

    def look(self, row: dict[str, Any]) -> None:
        """Decide, if it is open still.

        Raises:
            UsageError: the row has no id, or several columns may hold the text.
        """
        if len(self.seen) < MAX_SHOWN:
            self.seen |= dict.fromkeys(row)
        self.listed |= isinstance(row.get("findings"), list)
        if self.id is None:
            self.id = next((name for name in ID_COLUMNS if name in row), None)
            if self.id is None:
                self._refuse("ids", ID_COLUMNS)
        if self.text is None:
            texts = [name for name, value in row.items() if isinstance(value, str)]
            groups = (OWN_COLUMNS[self.role], TEXT_COLUMNS[:2], TEXT_COLUMNS[2:])
            found = next((here for group in groups if (here := [name for name in group if name in texts])), [])
            if len(found) > 1:
                raise UsageError(
                    f"{self.file} has several columns that may hold the texts",
                    expected="one of them to be named",
                    seen=", ".join(found),
                    hint=f"--{self.role[:-1]}-text {found[0]}",
                )
            self.text = found[0] if found else None

    def refuse_unseen(self) -> None:
        """Refuse a table without a column of texts, or without the one that was named."""
        if self.seen and self.text not in self.seen and not self.listed:
            self._refuse("texts", (self.text,) if self.text else (*OWN_COLUMNS[self.role], *TEXT_COLUMNS))

    def _refuse(self, what: str, usual: tuple[str, ...]) -> None:
        option = f"--{self.role[:-1]}-{what[:-1]}"
        raise UsageError(
            f"{self.file} has no column that holds the {what}",
            expected=f"{' or '.join(usual)}",
            seen=", ".join(short(name) for name in list(self.seen)[:MAX_SHOWN]) or "no columns",
            hint=f"{option} NAME",
        )

    def read(self, row: dict[str, Any]) -> NamedText:
        """The report of a row.

        Raises:
            ValueError: why it has none.
        """
        text = row.get(self.text) if self.text else None
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{self.text} is no text ({type(text).__name__})")
        impression = row.get("impression")
        if self.text == "findings" and isinstance(impression, str):
            text = f"FINDINGS: {text or ''}\nIMPRESSION: {impression}"
        person = next((str(row[name]) for name in PERSON_COLUMNS if row.get(name) not in (None, "")), None)
        return NamedText(_id_of(row.get(str(self.id))), (text or "").strip(), known_findings(row), person)


def _id_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not (name := _plain_id(str(value))):
        raise ValueError("no id")
    return name


def _plain_id(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def known_findings(row: dict[str, Any]) -> tuple[Finding, ...] | None:
    """The list `findings` of a row; None if it has none.

    Raises:
        ValueError: something else stands in it.
    """
    listed = row.get("findings")
    if not isinstance(listed, list):
        return None
    try:
        return tuple(Finding.model_validate(one) for one in listed)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{TYPED} ({'.'.join(map(str, fault['loc']))}: {fault['msg'][:80]})") from error


def read_references(source: str | Path, columns: Columns = BY_USUAL_NAMES) -> dict[str, NamedText]:
    """Reference reports by id, in the order of the file.

    Args:
        source: see `stream_texts`. Rows may have `findings`, a list of known findings, which are the truth then.
        columns: names of the columns.

    Raises:
        ScanError: lines that cannot be read, ids that are there twice, empty reports: all in one message (exit 65).
        NotFoundError, UsageError: see `stream_texts`.
    """
    faults = Faults(Path(source).name)
    found = {one.id: one for one in stream_texts(source, "references", columns, faults)}
    for one in found.values():
        if not one.text and one.known is None:
            faults.add(f"the report of {short(one.id)} is empty")
    faults.check("a report with its own id in every line or file", "correct or remove these lines")
    return found
