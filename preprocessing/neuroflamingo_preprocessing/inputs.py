"""Which scans an input names: one file, a folder, a BIDS dataset, or a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.bids.entities import DESCRIPTION, dataset_root, entities_of, plain_label
from neuroflamingo_preprocessing.bids.filters import Wanted, read_filter_file, wanted_labels
from neuroflamingo_preprocessing.bids.index import bids_index
from neuroflamingo_preprocessing.bids.selection import is_run, one_of_each
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError, did_you_mean
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input
from neuroflamingo_preprocessing.formats.dicom.read_dicom import examinations
from neuroflamingo_preprocessing.formats.zarr.metadata import is_zarr
from neuroflamingo_preprocessing.records import records

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.bids.index import BidsIndex
    from neuroflamingo_preprocessing.spec import ScanSpec

SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".zarr")
MANIFESTS = (".jsonl", ".csv", ".parquet")
COLUMNS = ("scan", "path", "repetition_time", "series", "confounds")
"""Of a manifest."""
SUFFIX_OF = {"volume4d": "bold", "parcels": "bold"}


@dataclass(frozen=True)
class Input:
    """One scan to prepare.

    Attributes:
        path: the file.
        entities: BIDS entities of its name, such as `{"sub": "01", "task": "rest"}`.
        repetition_time: said by a manifest.
        series: of a DICOM input, said by a manifest.
        number: of a DICOM input among those found, from 1: its folder may be called after the patient.
        confounds: table of this run, said by a manifest.
    """

    path: Path
    entities: Mapping[str, str] = field(default_factory=dict)
    repetition_time: float | None = None
    series: int | None = None
    number: int | None = None
    confounds: Path | None = None

    @property
    def name(self) -> str:
        """What messages and records call it: the file's name, or `DICOM input 3`."""
        return self.path.name if self.number is None else f"DICOM input {self.number}"


def find_inputs(
    source: str | Path,
    spec: ScanSpec,
    filters: Mapping[str, tuple[str, ...]] | None = None,
    *,
    filter_file: str | Path | None = None,
    notes: list[str] | None = None,
) -> list[Input]:
    """All scans of an input, sorted by path.

    In a BIDS dataset (a folder with `dataset_description.json`, or a folder of a subject in one) the images of the kind
    that the encoder takes are meant: `T1w` for a T1-weighted encoder, `bold` for one of runs; one version of each scan,
    see `one_of_each`; no phase images, nothing that `.bidsignore` names. `derivatives` and `sourcedata` are left out,
    unless the input is one of them. In another folder every NIfTI and MGH file and every zarr scan is meant; where
    there is none, every DICOM examination and zip archive.

    Args:
        source: a file, a folder, or a manifest: `.jsonl`, `.csv` or `.parquet` with `scan` (relative to the manifest)
            and, if wanted, `repetition_time`, `series` (of a DICOM folder or archive) and `confounds` (a table of that
            run, relative to the manifest); or training data, of which all scans are taken, each once.
        spec: `card.scan` of the encoder.
        filters: entity to the labels wanted, with or without the entity's name: `{"sub": ("01", "sub-02")}`.
        filter_file: of a BIDS dataset; see `read_filter_file`. It narrows down what the filters leave.
        notes: what was chosen or left out is added here, in words for the user.

    Raises:
        NotFoundError: nothing there; what was looked for and the nearest labels are named; or a table of confounds
            that a manifest names is not there (exit 66).
        ScanError: a manifest that cannot be read; all of its faults in one message (exit 65).
        UsageError: scans between which the user has to choose (exit 2).
        ConfigError: a filter file with faults (exit 78).
    """
    source, notes = Path(source), [] if notes is None else notes
    wanted = wanted_labels(filters)
    root = dataset_root(source) if source.is_dir() and not is_zarr(source) else None
    if root is not None and _is_part(source, root):
        return _in_dataset(source, root, spec, wanted, filter_file, notes)
    if filter_file is not None:
        raise UsageError(
            f"{source.name} is no BIDS dataset, so a filter file says nothing about it",
            expected=f"a folder with {DESCRIPTION}",
            hint="name the dataset's own folder, or leave --bids-filter-file out",
        )
    if is_zarr(source):
        found = [Input(source, entities_of(source))]
    elif source.is_dir():
        found = _in_folder(source, notes)
    elif not source.is_file():
        raise NotFoundError(
            f"there is no input {source}", expected="a scan, a folder or a manifest", hint="check the path"
        )
    elif source.suffix.lower() in MANIFESTS and not _is_parcel_table(source, spec):
        found = _in_manifest(source)
    else:
        found = [Input(source, entities_of(source))]
    found = _numbered(found)
    kept = [one for one in found if all(want.holds(one.entities) for want in wanted)]
    entities = [one.entities for one in found]
    if not kept:
        raise _nothing(source, "files *.nii or *.nii.gz, or DICOM", entities, wanted, notes)
    notes += [f"no scan has {words}" for want in wanted if (words := _missing(want, entities))]
    return kept


def _numbered(found: list[Input]) -> list[Input]:
    """DICOM inputs get numbers for names."""
    dicom = {id(one): number for number, one in enumerate((o for o in found if is_dicom_input(o.path)), start=1)}
    return [replace(one, number=dicom.get(id(one))) for one in found]


def _is_part(folder: Path, root: Path) -> bool:
    """Whether a folder is a dataset, or a subject's in one; its `derivatives` without a description are neither."""
    below = folder.absolute().relative_to(root).parts
    return not below or below[0].startswith("sub-")


def _in_dataset(
    source: Path, root: Path, spec: ScanSpec, wanted: list[Wanted], filter_file: str | Path | None, notes: list[str]
) -> list[Input]:
    suffix = _suffix(spec)
    chosen = [] if filter_file is None else read_filter_file(filter_file, suffix)
    index = bids_index(root)
    below = source.absolute().relative_to(root).as_posix()
    own = next((want for want in chosen if want.entity == "suffix"), Wanted("suffix", frozenset({suffix})))
    rows = [
        row
        for row in index.files()
        if own.holds(row)
        and str(row["ext"]).lower() in SCANS
        and (below == "." or str(row["path"]).startswith(f"{below}/"))
    ]
    _say_left_out(index, notes)
    kept = [row for row in rows if all(want.holds(row) for want in (*wanted, *chosen))]
    if not any(want.entity == "part" for want in chosen):
        whole = [row for row in kept if row.get("part", "mag") == "mag"]
        if len(whole) < len(kept):
            notes.append(f"{len(kept) - len(whole)} images of phase, real or imaginary part are left out")
        kept = whole
    if not kept:
        expected = f"files *_{suffix}.nii or .nii.gz of a BIDS dataset"
        raise _nothing(source, expected, rows, [*wanted, *chosen], notes, bids=True)
    notes += [f"no scan has {words}" for want in wanted if (words := _missing(want, rows))]
    if is_run(spec) and not any("space" in row for row in kept) and (root / "derivatives").is_dir():
        notes.append("no run names its space; preprocessed ones may be in a derivative, an input of its own")
    return [Input(root / row["path"], entities_of(Path(row["path"]))) for row in one_of_each(kept, spec, notes)]


def _say_left_out(index: BidsIndex, notes: list[str]) -> None:
    if index.odd:  # without their names: where names are free, they are often a patient's
        notes.append(f"{index.odd} files are left out: they, or their subjects' folders, are not named as BIDS says")
    if index.ignored:
        notes.append(f"{index.ignored} files are left out, as .bidsignore says")
    if index.loops:
        notes.append(f"{index.loops} folders are not entered: links lead back to them")


def _in_folder(folder: Path, notes: list[str]) -> list[Input]:
    files = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SCANS) and not p.name.startswith("."))
    found = [Input(p, entities_of(p)) for p in files if not p.is_dir() or is_zarr(p)]
    if not found:
        return _dicom_in(folder)
    if any(p.is_dir() for p in folder.glob("sub-*")):
        notes.append(f"there are sub- folders but no {DESCRIPTION}: all NIfTI files are taken, of whatever kind")
    return found


def _dicom_in(folder: Path) -> list[Input]:
    return [Input(path, entities_of(path)) for path in examinations(folder)]


def _is_parcel_table(file: Path, spec: ScanSpec) -> bool:
    """For encoders of parcels a `.csv` is a parcel series, unless its first line names the scans of a manifest."""
    if spec.modality != "parcels" or file.suffix.lower() != ".csv":
        return False
    with file.open("rb") as stream:
        first = stream.readline(2**20).decode("utf-8", errors="replace")
    return not {"scan", "path"} & {word.strip().strip('"') for word in first.lstrip("\ufeff").split(",")}


def _suffix(spec: ScanSpec) -> str:
    return SUFFIX_OF.get(spec.modality) or (spec.channels[0] if spec.channels else "T1w")


def _in_manifest(manifest: Path) -> list[Input]:
    faults, gone, found = [], [], []
    for number, row in _single(records(manifest, COLUMNS, ragged=True)):
        one = row if isinstance(row, str) else _of_row(row, manifest.parent)
        if isinstance(one, str):
            faults.append(f"line {number}: {one}")
            continue
        found.append(one)
        if one.confounds is not None and not os.path.isfile(one.confounds):
            gone.append(f"line {number}: there is no file {row['confounds']}")  # type: ignore[index]
    if faults:
        raise ScanError(
            f"{manifest.name} has {len(faults + gone)} fault{'s' * (len(faults + gone) > 1)}",
            expected="a line a scan, with `scan` relative to the manifest, and `repetition_time` if it is needed",
            seen=_first_of(faults + gone),
            hint="correct or remove these lines",
        )
    if gone:
        raise NotFoundError(
            f"{manifest.name} names {len(gone)} table{'s' * (len(gone) > 1)} of confounds that are not there",
            expected="tables of confounds (.tsv), relative to the manifest",
            seen=_first_of(gone),
            hint="correct these lines, or leave their `confounds` empty",
        )
    return found


def _single(rows: Iterable[tuple[int, Mapping[str, Any] | str]]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """A line a scan also of training data, whose samples (`kind`) have any number of `scans`, some in several lines."""
    seen: set[str] = set()
    for number, row in rows:
        if isinstance(row, str) or row.get("scan") or ("scans" not in row and row.get("kind") != "text"):
            yield number, row
            continue
        names = row.get("scans") or ()
        if not isinstance(names, list | tuple):
            yield number, "`scans` is no list"
            continue
        for name in map(str, names):
            if name not in seen and not name.startswith("store:"):
                seen.add(name)
                yield number, {"scan": name}


def _of_row(row: Mapping[str, Any], folder: Path) -> Input | str:
    """The scan of a manifest's line, or what is wrong with the line."""
    name, seconds, series, table = (
        None if value == "" else value
        for value in (row.get("scan") or row.get("path"), *map(row.get, ("repetition_time", "series", "confounds")))
    )
    try:
        seconds = None if seconds is None else float(seconds)
    except (TypeError, ValueError, OverflowError):
        return f"the repetition_time {str(seconds)[:40]!r} is no number"
    if series is not None and not str(series).isdecimal():
        return f"the series {str(series)[:40]!r} is no number"
    if not name:
        return "no `scan`"
    path = folder / str(name)
    if not path.exists():
        return f"there is no file {name}"
    numbers = seconds, None if series is None else int(series)
    return Input(path, entities_of(path), *numbers, confounds=None if table is None else folder / str(table))


def _first_of(lines: list[str]) -> str:
    return "\n    ".join(lines[:20]) + (f"\n    and {len(lines) - 20} more" if len(lines) > 20 else "")


def _nothing(
    source: Path,
    expected: str,
    found: Sequence[Mapping[str, Any]],
    wanted: list[Wanted],
    notes: list[str],
    *,
    bids: bool = False,
) -> NotFoundError:
    """What was looked for, what is there, and the nearest labels; the notes say what was left out before."""
    if not found:
        return NotFoundError(
            f"there are no scans in {source.name}",
            expected=expected,
            seen="; ".join(("none", *notes)),
            hint="name the folder that holds them; a BIDS derivative is an input of its own"
            if bids
            else "check the path",
        )
    missing = [words for want in wanted if (words := _missing(want, found))]
    seen = " without " + "; ".join(missing) if missing else ", none with all of these"
    return NotFoundError(
        f"no scan of {source.name} is left after the filters",
        expected="; ".join(map(str, wanted)) or expected,
        seen="; ".join((f"{len(found)} scans{seen}", *notes)),
        hint="check the labels: both 01 and sub-01 are understood",
    )


def _missing(want: Wanted, found: Sequence[Mapping[str, Any]]) -> str | None:
    """Labels that no scan has, with those that are near; None if none of them is missing."""
    if any(want.holds(one) for one in found) and not want.labels:
        return None
    there = sorted({plain_label(want.entity, one[want.entity]) for one in found if want.entity in one})
    missing = sorted(want.labels - set(there))
    if not missing:
        return None if any(want.holds(one) for one in found) else str(want)
    near = did_you_mean(missing, there, 2)
    return f"{want.entity}-{', '.join(missing)}" + (f" ({near})" if near else "")
