"""Join of a BIDS dataset's scans with reports from a table, by subject and session."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroflamingo.data.import_report import Conversion
from neuroflamingo_preprocessing.bids.entities import DESCRIPTION, dataset_root, folded_label, plain_label
from neuroflamingo_preprocessing.errors import ScanError, nearest
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.records import records
from neuroflamingo_preprocessing.spec import Axis, ScanSpec

PARTICIPANTS = "participants.tsv"
Key = tuple[str, str | None]
"""Subject and session, without `sub-` and `ses-`."""


def from_bids(
    dataset: str | Path,
    *,
    reports: str | Path | None = None,
    column: str = "report",
    suffixes: Sequence[str] = ("T1w",),
    filters: Mapping[str, Any] | None = None,
    filter_file: str | Path | None = None,
) -> Conversion:
    """Make pairs from a BIDS dataset: one sample for each session that has scans and a report.

    Scans are selected as by `prepare`, one version of each; a sample has all scans of its session with one of the
    suffixes, in the order of the suffixes.

    Args:
        dataset: a folder with `dataset_description.json`, or a subject's folder in one.
        reports: a table with the columns `participant_id`, `session_id` (if there are several sessions) and the
            reports; default: the dataset's `participants.tsv`. An optional column `findings` holds JSON lists of
            `Finding`.
        column: column with the report text.
        suffixes: BIDS suffixes of the images, such as T1w or FLAIR.
        filters, filter_file: see `find_inputs`.

    Raises:
        NotFoundError: no dataset, no scans with a suffix, or no table (exit 66).
        ScanError: not a BIDS dataset, or a table without these columns (exit 65).
    """
    dataset = Path(dataset).absolute()
    root = dataset_root(dataset) if dataset.is_dir() else None
    if root is None:
        raise ScanError(
            f"{dataset.name} is not a BIDS dataset", expected=f"a folder with {DESCRIPTION}", hint="check the path"
        )
    found = Conversion()
    scans = _scans(dataset, suffixes, filters, filter_file, found.notes)
    _say_several(scans, suffixes, found.notes)
    written = _reports(Path(reports) if reports else root / PARTICIPANTS, column, found)
    sessions: dict[str, int] = defaultdict(int)
    for subject, _ in scans:
        sessions[subject] += 1
    for number, key, row in written:
        own = key if key in scans else _nearest_key(key, scans)
        if own is None:
            why = "a report of a subject with several sessions, without session_id" if sessions[key[0]] else None
            found.left_out[why or "a report without scans"].append(number)
        else:
            files = [str(path) for paths in scans.pop(own).values() for path in paths]
            found.add(number, _name(own), kind="pairs", subject=f"sub-{own[0]}", scans=files, **row)
    if scans:
        found.notes.append(f"{len(scans)} sessions have scans and no report that can be used")
    return found


def _scans(
    dataset: Path, suffixes: Sequence[str], filters: Any, filter_file: Any, notes: list[str]
) -> dict[Key, dict[str, list[Path]]]:
    """Files by session and suffix."""
    scans: dict[Key, dict[str, list[Path]]] = defaultdict(dict)
    for suffix in suffixes:
        modality = "volume4d" if suffix == "bold" else "volume3d"
        spec = ScanSpec(modality=modality, axes=(Axis(name="channel", size=1),), channels=(suffix,))
        for one in find_inputs(dataset, spec, filters, filter_file=filter_file, notes=notes):
            key = (one.entities["sub"], one.entities.get("ses"))
            scans[key].setdefault(suffix, []).append(one.path)
    return scans


def _say_several(scans: Mapping[Key, Mapping[str, list[Path]]], suffixes: Sequence[str], notes: list[str]) -> None:
    for suffix in suffixes:
        several = sum(1 for files in scans.values() if len(files.get(suffix, ())) > 1)
        lacking = sum(1 for files in scans.values() if suffix not in files)
        notes += [f"{several} sessions have several {suffix} images; all are taken"] if several else []
        notes += [f"{lacking} sessions have no {suffix} image"] if lacking else []


def _reports(table: Path, column: str, found: Conversion) -> list[tuple[int, Key, dict[str, Any]]]:
    """Rows of the table that have a report; only the first one of each session."""
    written: dict[Key, tuple[int, dict[str, Any]]] = {}
    for number, row in records(table):
        if isinstance(row, str):
            found.left_out[row].append(number)
            continue
        subject, text = row.get("participant_id"), row.get(column)
        if not subject or not text:
            found.left_out["no participant_id" if not subject else f"no {column}"].append(number)
            continue
        session = row.get("session_id")
        key = (plain_label("sub", subject), plain_label("ses", session) if session else None)
        findings = _findings(row.get("findings"))
        if key in written:
            found.left_out["a second report of the same session"].append(number)
        elif findings == "":
            found.left_out["findings that are not JSON"].append(number)
        else:
            written[key] = number, {"text": str(text).strip(), "findings": findings}
    if not written:
        raise _no_reports(table, column)
    return [(number, key, row) for key, (number, row) in written.items()]


def _findings(cell: Any) -> Any:
    """Parse a cell as a JSON list; "" if it is not one."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return ""


def _no_reports(table: Path, column: str) -> ScanError:
    columns = sorted({name for _, row in records(table) if isinstance(row, dict) for name in row})
    near = nearest(column, columns, 1)
    return ScanError(
        f"{table.name} holds no reports",
        expected=f"columns participant_id and {column}, with text in both",
        seen=f"columns {', '.join(columns)}" if columns else "no rows",
        hint=f"--column {near[0]}" if near and near[0] != column else "--reports TABLE, and --column NAME",
    )


def _nearest_key(key: Key, scans: Mapping[Key, Any]) -> Key | None:
    """The only key that differs in capital letters alone; or that of the subject's only session, if it is not named."""
    subject, session = _folded(key)
    ours = [(one, _folded(one)) for one in scans]
    same = [one for one, plain in ours if plain == (subject, session)]
    own = same or [one for one, plain in ours if plain[0] == subject and (session is None or plain[1] is None)]
    return own[0] if len(own) == 1 else None


def _folded(key: Key) -> Key:
    subject, session = key
    return folded_label("sub", subject), None if session is None else folded_label("ses", session)


def _name(key: Key) -> str:
    subject, session = key
    return f"sub-{subject}" + (f"_ses-{session}" if session else "")
