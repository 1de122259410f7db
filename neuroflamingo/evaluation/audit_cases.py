"""Scans for an audit: those of a folder, or of a table with one scan a row, and their true reports where known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuroflamingo.evaluation.reliance_audit import AuditCase
from neuroflamingo.evaluation.report_texts import (
    ID_COLUMNS,
    OWN_COLUMNS,
    PERSON_COLUMNS,
    TEXT_COLUMNS,
    Faults,
    NamedText,
    known_findings,
    short,
)
from neuroflamingo_preprocessing.bids.entities import entities_of
from neuroflamingo_preprocessing.errors import NotFoundError
from neuroflamingo_preprocessing.records import records
from neuroflamingo_preprocessing.user_files import check_input

ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh")
SCAN_COLUMNS = ("scan", "scans", "path", "image")


def audit_cases(source: str | Path, references: Mapping[str, NamedText] | None = None) -> list[AuditCase]:
    """The scans of a folder or of a table.

    Args:
        source: a folder, of which all NIfTI and MGH files are taken, also in its folders: the id is the file's name
            without its ending, the person is the `sub-` label or the id. Or a table or manifest (`.jsonl`, `.csv`, ...)
            whose rows have an id, a scan relative to the table, and perhaps a report, findings and a subject.
        references: true reports by id, in the place of the table's.

    Raises:
        NotFoundError: there is no such folder or file, or no scan in it (exit 66).
        ScanError: rows without one scan, scans that are not there, ids that are there twice, scans without a reference:
            all in one message (exit 65).
    """
    path = Path(source)
    check_input(path, "a folder of scans, or a table with one scan a row")
    faults = Faults(path.name)
    cases: dict[str, AuditCase] = {}
    for case in _in_folder(path) if path.is_dir() else _in_table(path, faults):
        if case.id in cases:
            faults.add(f"the id {short(case.id)} is there twice")
        cases[case.id] = case
    if references is not None:
        for name, case in cases.items():
            if name in references:
                person = references[name].person or case.person
                cases[name] = replace(case, reference=references[name], person=person)
            else:
                faults.add(f"{short(name)} has no reference")
    faults.check("scans with ids of their own, each with its reference if any is given", "correct or remove these")
    if not cases:
        raise NotFoundError(f"there is no scan in {path.name}", expected=f"files that end in {', '.join(ENDINGS)}")
    return list(cases.values())


def _in_folder(folder: Path) -> Iterator[AuditCase]:
    for path in sorted(folder.rglob("*")):
        ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
        if ending and path.is_file():
            name = path.name[: -len(ending)]
            yield AuditCase(name, path, entities_of(path).get("sub", name))


def _in_table(file: Path, faults: Faults) -> Iterator[AuditCase]:
    for number, row in records(file):
        if isinstance(row, str):
            faults.add(f"line {number}: {row}")
            continue
        try:
            yield _of_row(row, file.parent)
        except ValueError as error:
            faults.add(f"line {number}: {error}")


def _of_row(row: dict[str, Any], folder: Path) -> AuditCase:
    def first(names: tuple[str, ...]) -> Any:
        return next((row[name] for name in names if row.get(name) not in (None, "")), None)

    name, scan, person = first(ID_COLUMNS), first(SCAN_COLUMNS), first(PERSON_COLUMNS)
    if isinstance(scan, list) and len(scan) == 1:
        scan = scan[0]
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError("no id")
    if not isinstance(scan, str):
        raise ValueError(
            "not one scan, but several" if isinstance(scan, list) else f"no scan ({', '.join(SCAN_COLUMNS)})"
        )
    path = folder / scan
    if not path.exists():
        raise ValueError(f"there is no file {path.name}")
    text = first((*OWN_COLUMNS["references"], *TEXT_COLUMNS))
    known = known_findings(row)
    given = isinstance(text, str) or known is not None
    reference = NamedText(str(name), text if isinstance(text, str) else "", known) if given else None
    return AuditCase(str(name), path, str(name if person is None else person), reference)
