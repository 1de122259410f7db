"""Which scans an input names: one file, a folder, a BIDS dataset, or a manifest."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

from neuroflamingo_preprocessing.dicom_files import is_dicom_input
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.spec import ScanSpec
from neuroflamingo_preprocessing.zarr_metadata import is_zarr

SCANS = (".nii", ".nii.gz", ".mgh", ".mgz", ".zarr")
MANIFESTS = (".jsonl", ".csv", ".parquet")
ENTITIES = {"sub": "participant", "ses": "session", "task": "task", "run": "run"}
SUFFIX_OF = {"volume4d": "bold", "parcels": "bold"}
MAX_MANIFEST_BYTES, MAX_LINE = 2**30, 2**20


@dataclass(frozen=True)
class Input:
    """One scan to prepare.

    Attributes:
        path: the file.
        entities: BIDS entities of its name, such as `{"sub": "01", "task": "rest"}`.
        repetition_time: said by a manifest.
        series: of a DICOM input, said by a manifest.
        number: of a DICOM input among those found, from 1: its folder may be called after the patient.
    """

    path: Path
    entities: Mapping[str, str] = field(default_factory=dict)
    repetition_time: float | None = None
    series: int | None = None
    number: int | None = None

    @property
    def name(self) -> str:
        """What messages and records call it: the file's name, or `DICOM input 3`."""
        return self.path.name if self.number is None else f"DICOM input {self.number}"


def find_inputs(
    source: str | Path, spec: ScanSpec, filters: Mapping[str, tuple[str, ...]] | None = None
) -> list[Input]:
    """All scans of an input, sorted by path.

    In a BIDS dataset (a folder with `dataset_description.json`) the images of the kind that the encoder takes are
    meant: `T1w` for a T1-weighted encoder, `bold` for one of runs; `derivatives` and `sourcedata` are left out, unless
    the input is one of them. In another folder every NIfTI and MGH file and every zarr scan is meant; where there is
    none, every DICOM examination and zip archive.

    Args:
        source: a file, a folder, or a manifest: `.jsonl`, `.csv` or `.parquet` with `scan` (relative to the manifest)
            and, if wanted, `repetition_time` and `series` (of a DICOM folder or archive).
        spec: `card.scan` of the encoder.
        filters: entity to the labels wanted, with or without the entity's name: `{"sub": ("01", "sub-02")}`.

    Raises:
        NotFoundError: nothing there; what was looked for and the nearest labels are named (exit 66).
        ScanError: a manifest that cannot be read; all of its faults in one message (exit 65).
    """
    source = Path(source)
    wanted = {
        entity: {_label(entity, value) for value in values} for entity, values in (filters or {}).items() if values
    }
    if is_zarr(source):
        found = [Input(source, entities_of(source))]
    elif source.is_dir():
        found = _in_folder(source, spec)
    elif not source.is_file():
        raise NotFoundError(
            f"there is no input {source}", expected="a scan, a folder or a manifest", hint="check the path"
        )
    elif source.suffix.lower() in MANIFESTS and not _is_parcel_table(source, spec):
        found = _in_manifest(source)
    else:
        found = [Input(source, entities_of(source))]
    found = _numbered(found)
    kept = [one for one in found if all(one.entities.get(e) in labels for e, labels in wanted.items())]
    if not kept:
        raise _nothing(source, spec, found, wanted)
    return kept


def _numbered(found: list[Input]) -> list[Input]:
    """DICOM inputs get numbers for names."""
    dicom = {id(one): number for number, one in enumerate((o for o in found if is_dicom_input(o.path)), start=1)}
    return [replace(one, number=dicom.get(id(one))) for one in found]


def entities_of(path: Path) -> dict[str, str]:
    """BIDS entities of a file name, in order; repeated ones keep the first value."""
    found: dict[str, str] = {}
    for key, value in re.findall(r"(?:^|_)([A-Za-z]+)-([A-Za-z0-9+]+)(?=_|\.)", path.name):
        found.setdefault(key, value)
    return found


def _label(entity: str, value: str) -> str:
    return value.strip().removeprefix(f"{entity}-")


def _in_folder(folder: Path, spec: ScanSpec) -> list[Input]:
    files = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SCANS) and not p.name.startswith("."))
    if not (folder / "dataset_description.json").is_file():
        stored = [Input(p, entities_of(p)) for p in files if not p.is_dir() or is_zarr(p)]
        return stored or _dicom_in(folder)
    suffix = _suffix(spec)
    aside = {"derivatives", "sourcedata", "code", "stimuli"}
    inside = [p for p in files if not aside & set(p.relative_to(folder).parts[:-1])]
    return [Input(p, entities_of(p)) for p in inside if re.search(rf"_{suffix}\.nii(\.gz)?$", p.name)]


def _dicom_in(folder: Path) -> list[Input]:
    from neuroflamingo_preprocessing.dicom import examinations

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
    faults, found = [], []
    for number, row in _rows(manifest):
        if isinstance(row, str):
            faults.append(f"line {number}: {row}")
            continue
        name, seconds = row.get("scan") or row.get("path"), row.get("repetition_time")
        series = row.get("series")
        path = manifest.parent / str(name)
        try:
            seconds = None if seconds in (None, "") else float(seconds)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            faults.append(f"line {number}: the repetition_time {str(seconds)[:40]!r} is no number")
            continue
        if series not in (None, "") and not str(series).isdecimal():
            faults.append(f"line {number}: the series {str(series)[:40]!r} is no number")
            continue
        if not name:
            faults.append(f"line {number}: no `scan`")
        elif not path.exists():
            faults.append(f"line {number}: there is no file {name}")
        else:
            found.append(Input(path, entities_of(path), seconds, int(series) if series not in (None, "") else None))
    if faults:
        more = f"\n    and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ScanError(
            f"{manifest.name} has {len(faults)} fault{'s' * (len(faults) > 1)}",
            expected="a line a scan, with `scan` relative to the manifest, and `repetition_time` if it is needed",
            seen="\n    ".join(faults[:20]) + more,
            hint="correct or remove these lines",
        )
    return found


def _rows(manifest: Path):
    """Numbered rows; a row that cannot be read is given as the words that say why."""
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        raise ScanError(
            f"{manifest.name} is too large", expected="up to 1 GB", seen=f"{manifest.stat().st_size:,} bytes"
        )
    if manifest.suffix.lower() == ".parquet":
        yield from _parquet_rows(manifest)
        return
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            if manifest.suffix.lower() == ".csv":
                yield from enumerate(csv.DictReader(_lines(stream, manifest.name)), start=2)
                return
            for number, line in enumerate(_lines(stream, manifest.name), start=1):
                if line.strip():
                    yield number, _row(line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScanError(f"{manifest.name} cannot be read", expected="UTF-8 text", seen=str(error)) from error


def _lines(stream: TextIO, name: str) -> Iterator[str]:
    """Lines, none longer than a manifest's can be: nothing is gathered in memory until a line break comes."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ScanError(
                f"{name} cannot be read",
                expected=f"lines of at most {MAX_LINE:,} characters",
                seen="a longer one",
                hint="a line a scan; check that this is the manifest",
            )
        yield line


def _parquet_rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a parquet table, some at a time; columns that no manifest has are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(manifest) as file:
            columns = [
                name for name in file.schema_arrow.names if name in ("scan", "path", "repetition_time", "series")
            ]
            number = 0
            for batch in file.iter_batches(batch_size=10_000, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise ScanError(f"{manifest.name} cannot be read", expected="a parquet table", seen=str(error)[:200]) from error


def _row(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return row if isinstance(row, dict) else "not a mapping"


def _nothing(source: Path, spec: ScanSpec, found: list[Input], wanted: Mapping[str, set[str]]) -> NotFoundError:
    if not found:
        bids = source.is_dir() and (source / "dataset_description.json").is_file()
        return NotFoundError(
            f"there are no scans in {source.name}",
            expected=f"files *_{_suffix(spec)}.nii or .nii.gz of a BIDS dataset"
            if bids
            else "files *.nii or *.nii.gz, or DICOM",
            seen="none",
            hint="name the folder that holds them; a BIDS derivative is an input of its own"
            if bids
            else "check the path",
        )
    words = []
    for entity, labels in wanted.items():
        there = sorted({one.entities[entity] for one in found if entity in one.entities})
        missing = sorted(labels - set(there))
        near = sorted({match for label in missing for match in get_close_matches(label, there, 2, 0.5)})
        if missing:
            words.append(f"{entity}-{', '.join(missing)}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    return NotFoundError(
        f"no scan of {source.name} is left after the filters",
        expected=", ".join(f"{entity}: {', '.join(sorted(labels))}" for entity, labels in wanted.items()),
        seen=f"{len(found)} scans without " + "; ".join(words)
        if words
        else f"{len(found)} scans, none with all of these",
        hint="check the labels: both 01 and sub-01 are understood",
    )
