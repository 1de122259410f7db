"""`find_inputs`: find the scans in a folder, a BIDS dataset or a manifest."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.bids.entities import (
    DESCRIPTION,
    SUFFIXES,
    dataset_root,
    entities_of,
    parse_name,
    plain_label,
)
from neuroflamingo_preprocessing.bids.filters import EntityFilter, as_written, label_filters, read_filter_file
from neuroflamingo_preprocessing.bids.index import bids_index
from neuroflamingo_preprocessing.bids.selection import select_versions
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError, did_you_mean
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input
from neuroflamingo_preprocessing.formats.dicom.read_dicom import examinations
from neuroflamingo_preprocessing.formats.nifti.pair import is_pair_header
from neuroflamingo_preprocessing.formats.zarr.metadata import is_zarr
from neuroflamingo_preprocessing.read import channel_files
from neuroflamingo_preprocessing.records import records
from neuroflamingo_preprocessing.user_files import check_input, utf8_stream

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.bids.index import BidsIndex
    from neuroflamingo_preprocessing.spec import ScanSpec

SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".zarr", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
MANIFESTS = (".jsonl", ".csv", ".parquet")
COLUMNS = ("scan", "path", "repetition_time", "series", "confounds")
"""Columns of a manifest that are read."""
ANATOMICAL = ("T1w", "T2w", "PDw", "FLAIR", "T2starw", "UNIT1", "inplaneT1", "inplaneT2")
"""Suffixes for encoders that take any contrast."""
SUFFIX_OF = {"volume4d": "bold", "parcels": "bold"}


@dataclass(frozen=True)
class Input:
    """One scan to prepare.

    Attributes:
        path: the file.
        entities: BIDS entities of its name, such as `{"sub": "01", "task": "rest"}`.
        repetition_time: in seconds, if the manifest has it.
        series: number of a DICOM series, if the manifest has it.
        number: position among the DICOM inputs, from 1; it stands for the name, since folders are often called after
            patients.
        confounds: confound table of this run, if the manifest has it.
    """

    path: Path
    entities: Mapping[str, str] = field(default_factory=dict)
    repetition_time: float | None = None
    series: int | None = None
    number: int | None = None
    confounds: Path | None = None

    @property
    def name(self) -> str:
        """Name in messages and records: the file's name, or `DICOM input 3`."""
        return self.path.name if self.number is None else f"DICOM input {self.number}"


def find_inputs(
    source: str | Path,
    spec: ScanSpec,
    filters: Mapping[str, tuple[str, ...]] | None = None,
    *,
    filter_file: str | Path | None = None,
    notes: list[str] | None = None,
) -> list[Input]:
    """Find all scans of an input, sorted by path.

    In a BIDS dataset (a folder with `dataset_description.json`, or a subject's folder in one) these are the images of
    the encoder's kind: `T1w` for a T1-weighted encoder, `bold` for one of runs; one version of each scan, see
    `select_versions`; no phase images, and nothing that `.bidsignore` names. `derivatives` and `sourcedata` are left
    out, unless the input is one of them. In any other folder these are all NIfTI and MGH files and zarr scans, without
    those whose BIDS names say another kind (masks, segmentations, other contrasts), or, if there are none, all DICOM
    examinations and zip archives.

    Args:
        source: a file, a folder, or a manifest: `.jsonl`, `.csv` or `.parquet` with `scan` (relative to the manifest)
            and optionally `repetition_time`, `series` (of a DICOM folder or archive) and `confounds` (a table for that
            run, relative to the manifest); or training data, all scans of which are taken, each once.
        spec: `card.scan` of the encoder.
        filters: entity to labels, with or without the entity's name: `{"sub": ("01", "sub-02")}`.
        filter_file: for a BIDS dataset, see `read_filter_file`; applied after the filters.
        notes: extended in place by what was chosen or left out, in words for the user.

    Raises:
        NotFoundError: no scans, with the nearest labels; or no confound table where the manifest names one (exit 66).
        ScanError: a manifest that cannot be read; all faults in one message (exit 65).
        UsageError: scans between which the user has to choose (exit 2).
        ConfigError: a filter file with faults (exit 78).
    """
    source, notes = Path(source), [] if notes is None else notes
    check_input(source, "a scan, a folder or a manifest")
    conditions = label_filters(filters)
    root = dataset_root(source) if source.is_dir() and not is_zarr(source) else None
    if root is not None and _is_part(source, root):
        return _in_dataset(source, root, spec, conditions, filter_file, notes)
    if filter_file is not None:
        raise UsageError(
            f"{source.name} is not a BIDS dataset, so a filter file does not apply to it",
            expected=f"a folder with {DESCRIPTION}",
            hint="name the dataset's own folder, or leave out --bids-filter-file",
        )
    if is_zarr(source):
        scans = [Input(source, entities_of(source))]
    elif source.is_dir():
        scans = _in_folder(source, spec, notes)
    elif source.suffix.lower() in MANIFESTS and not _is_parcel_table(source, spec):
        scans = _in_manifest(source)
    else:
        scans = [Input(source, entities_of(source))]
    further = {other for scan in scans for other in channel_files(scan.path, spec)}
    scans = _numbered([scan for scan in scans if scan.path not in further])
    kept = [scan for scan in scans if all(condition.matches(scan.entities) for condition in conditions)]
    entities = [scan.entities for scan in scans]
    if not kept:
        raise _nothing(source, "files *.nii or *.nii.gz, or DICOM", entities, conditions, notes)
    notes += [f"no scan has {words}" for condition in conditions if (words := _missing(condition, entities))]
    return kept


def _numbered(scans: list[Input]) -> list[Input]:
    """Number the DICOM inputs; the numbers stand for their names."""
    dicom = {id(scan): number for number, scan in enumerate((o for o in scans if is_dicom_input(o.path)), start=1)}
    return [replace(scan, number=dicom.get(id(scan))) for scan in scans]


def _is_part(folder: Path, root: Path) -> bool:
    """True for a dataset's root or a subject's folder in it, not for `derivatives` without a description."""
    below = folder.absolute().relative_to(root).parts
    return not below or below[0].startswith("sub-")


def _in_dataset(
    source: Path,
    root: Path,
    spec: ScanSpec,
    conditions: list[EntityFilter],
    filter_file: str | Path | None,
    notes: list[str],
) -> list[Input]:
    suffixes = _suffixes(spec)
    chosen = [] if filter_file is None else read_filter_file(filter_file, suffixes[0])
    index = bids_index(root)
    below = source.absolute().relative_to(root).as_posix()
    own = next(
        (condition for condition in chosen if condition.entity == "suffix"), *label_filters({"suffix": suffixes})
    )
    rows = [
        row
        for row in index.files()
        if own.matches(row)
        and str(row["ext"]).lower() in SCANS
        and (below == "." or str(row["path"]).startswith(f"{below}/"))
    ]
    _say_left_out(index, notes)
    kept = [row for row in rows if all(condition.matches(row) for condition in (*conditions, *chosen))]
    kept = as_written(kept, [*conditions, *chosen])
    if not any(condition.entity == "part" for condition in chosen):
        whole = [row for row in kept if str(row.get("part", "mag")).casefold() == "mag"]
        if len(whole) < len(kept):
            notes.append(f"{len(kept) - len(whole)} images of phase, real or imaginary part are left out")
        kept = whole
    if not kept:
        expected = f"files *_{' or *_'.join(suffixes)}.nii or .nii.gz of a BIDS dataset"
        raise _nothing(source, expected, rows, [*conditions, *chosen], notes, bids=True)
    notes += [f"no scan has {words}" for condition in conditions if (words := _missing(condition, rows))]
    if spec.takes_runs and not any("space" in row for row in kept) and (root / "derivatives").is_dir():
        notes.append("no file name states a space; preprocessed runs may be in a derivative: give its folder as input")
    selected = select_versions(kept, spec, notes)
    agents = sum("ce" in row for row in selected)
    if agents:
        notes.append(f"{agents} of the scans were made with a contrast agent (ce-), by their names")
    return [Input(root / row["path"], entities_of(Path(row["path"]))) for row in selected]


def _say_left_out(index: BidsIndex, notes: list[str]) -> None:
    if index.misnamed:  # without their names: where names are free, they are often a patient's
        notes.append(f"{index.misnamed} files are left out: they, or their subjects' folders, do not have BIDS names")
    if index.recased:
        notes.append(
            f"{index.recased} files are named with other capital letters than BIDS has; they are taken as meant"
        )
    if index.empty:
        some = ", ".join(index.empty[:10]) + (f" and {len(index.empty) - 10} more" if len(index.empty) > 10 else "")
        notes.append(f"{len(index.empty)} subjects have no files and are left out: {some} (of datalad: datalad get -n)")
    if index.ignored:
        notes.append(f"{index.ignored} files are left out: .bidsignore names them")
    if index.loops:
        notes.append(f"{index.loops} folders are skipped: links lead back to them")


def _in_folder(folder: Path, spec: ScanSpec, notes: list[str]) -> list[Input]:
    files = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SCANS) and not p.name.startswith("."))
    files = [p for p in files if (is_zarr(p) if p.is_dir() else p.suffix.lower() != ".hdr" or is_pair_header(p))]
    if not files:
        return _dicom_in(folder)
    return [Input(p, entities_of(p)) for p in _raw_of_kind(folder, files, spec, notes)]


def _raw_of_kind(folder: Path, files: list[Path], spec: ScanSpec, notes: list[str]) -> list[Path]:
    """Files of a folder without the products of other programs, and without those that BIDS names call another kind.

    Files with free names are kept.
    """
    own = [p for p in files if not {"derivatives", "sourcedata"} & set(p.relative_to(folder).parts[:-1])]
    if own and len(own) < len(files):
        notes.append(
            f"{len(files) - len(own)} files in derivatives and sourcedata are left out: give such a folder itself"
        )
    kept, rows, others = [], [], Counter[str]()
    for file in own or files:
        name = parse_name(file.name)
        kind = name.suffix if name and "sub" in name.entities and name.suffix in SUFFIXES.values() else None
        if file.parent.name == "mri" and file.suffix.lower() == ".mgz" and (file.parent / "T1.mgz").is_file():
            kind = None if file.name == "T1.mgz" else "a FreeSurfer volume beside T1.mgz"
        if kind is None:
            kept.append(file)
        elif name and kind in _suffixes(spec):
            beside = {"folder": str(file.parent), "path": str(file), "suffix": kind, "ext": name.extension}
            rows.append({**name.entities, **beside})
        else:
            others[kind] += 1
    if any(p.is_dir() for p in folder.glob("sub-*")):
        notes.append(f"there are sub- folders but no {DESCRIPTION}: files are told apart by their names alone")
    if others:
        words = ", ".join(f"{kind} ({count})" for kind, count in others.most_common())
        notes.append(f"{others.total()} files are left out, by their names: {words}")
    return sorted([*kept, *(Path(row["path"]) for row in select_versions(rows, spec, notes))])


def _dicom_in(folder: Path) -> list[Input]:
    return [Input(path, entities_of(path)) for path in examinations(folder)]


def _is_parcel_table(file: Path, spec: ScanSpec) -> bool:
    """True for a `.csv` parcel series; for parcel encoders only a header with `scan` or `path` makes it a manifest."""
    if spec.modality != "parcels" or file.suffix.lower() != ".csv":
        return False
    with utf8_stream(file) as stream:
        first = stream.readline(2**20).decode("utf-8", errors="replace")
    return not {"scan", "path"} & {word.strip().strip('"') for word in first.split(",")}


def _suffixes(spec: ScanSpec) -> tuple[str, ...]:
    """Suffixes of the images that an encoder takes, as its first channel names them ("T1w, T2w or FLAIR")."""
    if spec.modality in SUFFIX_OF:
        return (SUFFIX_OF[spec.modality],)
    named = re.findall(r"[A-Za-z0-9]+", spec.channels[0] if spec.channels else "T1w")
    return tuple(word for word in named if word in SUFFIXES.values()) or ANATOMICAL


def _in_manifest(manifest: Path) -> list[Input]:
    faults, gone, scans = [], [], []
    for number, row in _single(records(manifest, COLUMNS, ragged=True)):
        scan = row if isinstance(row, str) else _of_row(row, manifest.parent)
        if isinstance(scan, str):
            faults.append(f"line {number}: {scan}")
            continue
        scans.append(scan)
        if scan.confounds is not None and not os.path.isfile(scan.confounds):
            gone.append(f"line {number}: there is no file {row['confounds']}")  # type: ignore[index]
    if faults:
        raise ScanError(
            f"{manifest.name} has {len(faults + gone)} fault{'s' * (len(faults + gone) > 1)}",
            expected="one line per scan, with `scan` relative to the manifest, and `repetition_time` where needed",
            seen=_first_of(faults + gone),
            hint="correct or remove these lines",
        )
    if gone:
        raise NotFoundError(
            f"{manifest.name} names {len(gone)} confound table{'s' * (len(gone) > 1)} that do not exist",
            expected="confound tables (.tsv), relative to the manifest",
            seen=_first_of(gone),
            hint="correct these lines, or leave their `confounds` empty",
        )
    return scans


def _single(rows: Iterable[tuple[int, Mapping[str, Any] | str]]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """One row per scan, also for training data, whose samples have a list of `scans` and may share some of them."""
    seen: set[str] = set()
    for number, row in rows:
        if isinstance(row, str) or row.get("scan") or ("scans" not in row and row.get("kind") != "text"):
            yield number, row
            continue
        names = row.get("scans") or ()
        if not isinstance(names, list | tuple):
            yield number, "`scans` is not a list"
            continue
        for name in map(str, names):
            if name not in seen and not name.startswith("store:"):
                seen.add(name)
                yield number, {"scan": name}


def _of_row(row: Mapping[str, Any], folder: Path) -> Input | str:
    """Scan of a manifest's row, or the fault of the row in words."""
    name, seconds, series, table = (
        None if value == "" else value
        for value in (row.get("scan") or row.get("path"), *map(row.get, ("repetition_time", "series", "confounds")))
    )
    try:
        seconds = None if seconds is None else float(seconds)
    except (TypeError, ValueError, OverflowError):
        return f"the repetition_time {str(seconds)[:40]!r} is not a number"
    if series is not None and not (str(series).isdecimal() and len(str(series)) < 20):
        return f"the series {str(series)[:40]!r} is not a number"
    if not name:
        return "no `scan`"
    path = folder / str(name)
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL in it
        there = False
    if not there:
        return f"there is no file {name!s:.200}" + f"... ({len(str(name))} characters)" * (len(str(name)) > 200)
    numbers = seconds, None if series is None else int(series)
    return Input(path, entities_of(path), *numbers, confounds=None if table is None else folder / str(table))


def _first_of(lines: list[str]) -> str:
    return "\n    ".join(lines[:20]) + (f"\n    and {len(lines) - 20} more" if len(lines) > 20 else "")


def _nothing(
    source: Path,
    expected: str,
    scans: Sequence[Mapping[str, Any]],
    conditions: list[EntityFilter],
    notes: list[str],
    *,
    bids: bool = False,
) -> NotFoundError:
    """Error for an input without scans: what was looked for, what is there, and the nearest labels."""
    if not scans:
        return NotFoundError(
            f"there are no scans in {source.name}",
            expected=expected,
            seen="; ".join(("none", *notes)),
            hint="name the folder that holds them; give a BIDS derivative by its own folder"
            if bids
            else "check the path",
        )
    missing = [words for condition in conditions if (words := _missing(condition, scans))]
    seen = " without " + "; ".join(missing) if missing else ", none with all of these"
    return NotFoundError(
        f"no scan of {source.name} is left after the filters",
        expected="; ".join(map(str, conditions)) or expected,
        seen="; ".join((f"{len(scans)} scans{seen}", *notes)),
        hint="check the labels: both 01 and sub-01 are understood",
    )


def _missing(condition: EntityFilter, scans: Sequence[Mapping[str, Any]]) -> str | None:
    """Labels that no scan has, with the nearest ones; None if none is missing."""
    if any(condition.matches(scan) for scan in scans) and not condition.labels:
        return None
    there = sorted(
        {plain_label(condition.entity, scan[condition.entity]) for scan in scans if condition.entity in scan}
    )
    missing = sorted(label for label in condition.written if label.casefold() not in {one.casefold() for one in there})
    if not missing:
        return None if any(condition.matches(scan) for scan in scans) else str(condition)
    near = did_you_mean(missing, there, 2)
    return f"{condition.entity}-{', '.join(missing)}" + (f" ({near})" if near else "")
