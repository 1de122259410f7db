"""`read_array`: read prepared arrays and measured parcel series (`.npy`, `.npz`, text tables, CIFTI)."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.bids.sidecars import SAME_SECONDS
from neuroflamingo_preprocessing.errors import ScanError, UsageError
from neuroflamingo_preprocessing.functional.cifti import is_cifti, is_dense, read_cifti
from neuroflamingo_preprocessing.functional.cifti_dense import DenseAtlas, parcellated
from neuroflamingo_preprocessing.functional.parcel_series import target_seconds
from neuroflamingo_preprocessing.functional.parcel_tables import MAX_TABLE_BYTES, Rows, Table, oriented, read_table
from neuroflamingo_preprocessing.user_files import check_input

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import ScanSpec

TABLES = (".tsv", ".csv")
ENDINGS = (".npy", ".npz", *TABLES)
OTHER_TABLES = {
    ".mat": "MATLAB files",
    ".txt": "text without commas or tabs",
    ".dat": "text without commas or tabs",
    ".1d": "AFNI's text files",
    ".xlsx": "spreadsheets",
    ".xls": "spreadsheets",
    ".rds": "R's files",
    ".h5": "HDF5 files",
    ".hdf5": "HDF5 files",
    ".pkl": "pickles",
}
NAMES = ("data", "series", "volume")
BROKEN_ZIP: Any = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)  # the last one: encrypted


@dataclass(frozen=True)
class ReadyArray:
    """Prepared scan from an array file.

    Attributes:
        tensor: float32, the axes of the spec.
        sha256, bytes: hash and size of the file.
        repetition_time: in seconds; None where there are no frames, or it is not known.
        warnings: oddities that do not make the file unusable.
        kind: kind of file.
        rows: whether the lines of a parcel series were `frames` or `parcels`; None for other arrays.
        names: parcel names in order, where the file has them.
    """

    tensor: NDArray[np.float32]
    sha256: str
    bytes: int
    repetition_time: float | None
    warnings: tuple[str, ...]
    kind: str = "array"
    rows: Rows | None = None
    names: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Number and order of the parcels as plain data; empty for other arrays."""
        if self.rows is None:
            return {}
        order = list(self.names) or "as in the file, which does not name them"
        return {"parcels": {"count": len(self.tensor), "order": order, "lines_of_the_file": self.rows}}


def is_array_file(path: str | Path) -> bool:
    """True for the file name of an array or a parcel series."""
    return Path(path).suffix.lower() in ENDINGS or is_cifti(path)


def refuse_other_tables(path: Path) -> None:
    """Refuse files that often hold parcel series and are not read, before they are taken for something else.

    Raises:
        ScanError: such a file.
    """
    kind = OTHER_TABLES.get(path.suffix.lower())
    if kind is not None:
        raise ScanError(
            f"{path.name}: parcel series are not read from {kind}",
            expected=", ".join((*ENDINGS, ".ptseries.nii")),
            seen=path.suffix,
            hint="save it as .npy (numpy.save), or as .csv with commas between the numbers",
        )


def read_array(
    path: str | Path,
    spec: ScanSpec,
    repetition_time: float | None = None,
    *,
    rows: Rows | None = None,
    atlas: DenseAtlas | None = None,
) -> ReadyArray:
    """Read an array of the shape that the encoder declares.

    `.npy`: the array; a channel axis of size 1 may be missing. `.npz`: the same under `data` (or its only array), and
    `repetition_time` in seconds. `.tsv`, `.csv`: a parcel series, with or without parcel names. `.ptseries.nii`: CIFTI,
    with names and repetition time. A parcel series may have a line for each frame or for each parcel, whichever fits
    the encoder's number of parcels. Nothing is cropped, padded or resampled here, and pickles are not read.

    Args:
        path: the file.
        spec: `card.scan` of the encoder.
        repetition_time: in seconds; needed where the encoder asks for one and the file does not state it.
        rows: whether the lines (of an array: the first axis) of a parcel series are frames or parcels, if both fit.
        atlas: parcellation for a dense CIFTI series (`.dtseries.nii`).

    Raises:
        NotFoundError: no such file.
        ScanError: a pickle, damaged, not numbers, another shape, another repetition time (exit 65).
        UsageError: the encoder asks for a repetition time and none is known.
    """
    path = Path(path)
    check_input(path, " or ".join(ENDINGS))
    refuse_other_tables(path)
    if path.suffix.lower() in TABLES and path.stat().st_size > MAX_TABLE_BYTES:
        raise ScanError(
            f"{path.name} is too large for a table",
            expected=f"at most {MAX_TABLE_BYTES:,} bytes",
            seen=f"{path.stat().st_size:,}",
            hint="save it with numpy.save",
        )
    raw = path.read_bytes()
    try:
        table = _parse(raw, path, spec, atlas)
    except (ValueError, OSError, EOFError, LookupError, csv.Error, *BROKEN_ZIP) as error:
        raise ScanError(
            f"{path.name} cannot be read as an array",
            expected="numbers, without pickles",
            seen=str(error)[:300],
            hint="save it again with numpy.save, or as a table",
        ) from error
    series = [axis.name for axis in spec.axes] == ["parcel", "time"]
    if series and table.values.ndim == 2:
        table = oriented(table, spec.axes[0], spec.axes[1], path.name, rows)
    elif rows is not None:
        raise UsageError("--rows is for parcel series only", seen=spec.describe(), hint="leave out --rows")
    tensor = _fitted(table.values, spec, path.name)
    seconds, warnings = _check_time(table.seconds if repetition_time is None else repetition_time, spec, path.name)
    stated = table.seconds
    if repetition_time is not None and stated is not None and abs(stated - repetition_time) > SAME_SECONDS:
        warnings = (*warnings, f"the file says {stated:g} s between frames; {repetition_time:g} s is used, as asked")
    made = ReadyArray(tensor, hashlib.sha256(raw).hexdigest(), len(raw), seconds, warnings, table.kind)
    return replace(made, rows=table.rows, names=table.names) if series else made


def _parse(raw: bytes, path: Path, spec: ScanSpec, atlas: DenseAtlas | None) -> Table:
    ending = path.suffix.lower()
    if ending in TABLES or is_cifti(path):
        if [axis.name for axis in spec.axes] != ["parcel", "time"]:
            raise ValueError(f"a table of parcels, but the encoder takes {spec.describe()}")
        if is_dense(path) and atlas is not None:
            return parcellated(raw, path.name, atlas)
        return read_cifti(raw, path.name) if is_cifti(path) else read_table(raw, "\t" if ending == ".tsv" else ",")
    if ending == ".npy":
        return Table(_array(raw), kind="array")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > 64 * len(raw) + 2**20:
            raise ValueError(f"{len(raw):,} bytes claim to be {claimed:,}")
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        arrays = {name: _array(_unpacked(archive, entry)) for name, entry in entries.items()}
    seconds = arrays.pop("repetition_time", None)
    named = [name for name in NAMES if name in arrays] or list(arrays)
    if len(named) != 1:
        raise ValueError(f"arrays named {', '.join(arrays) or '(none)'}; expected one, `data`")
    return Table(arrays[named[0]], None if seconds is None else float(seconds), kind="array")


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Bytes of an entry, up to its size in the directory: reading to the end would unpack a stream that lies."""
    with archive.open(entry) as stream:
        return stream.read(entry.file_size)


def _array(raw: bytes) -> NDArray[Any]:
    """Array of a `.npy` file, whose header is trusted only as far as its bytes go."""
    stream = io.BytesIO(raw)
    check_npy_header(stream, len(raw))
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def check_npy_header(stream: IO[bytes], most: int) -> None:
    """Check the header of a `.npy` stream before anything is allocated on its word.

    Args:
        stream: at its start.
        most: largest size of the array in bytes.

    Raises:
        ValueError: not such a header, a pickle, or a larger array.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except (MemoryError, RecursionError, tokenize.TokenError) as error:  # Python's parser, of nested brackets
        raise ValueError("its header is not a plain declaration of an array") from error
    if dtype.hasobject:
        raise ValueError("it holds a pickle")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size > most or min(shape, default=0) < 0:
        raise ValueError(f"its header claims {size:,} bytes, {most:,} are there")


def _fitted(values: NDArray[Any], spec: ScanSpec, name: str) -> NDArray[np.float32]:
    """Array as float32 with the spec's axes; the error for another shape says if the axes are in reverse order."""
    if values.dtype.kind not in "fiu":
        raise ScanError(f"{name} holds no numbers", expected="floating-point or whole numbers", seen=str(values.dtype))
    channel = next((i for i, axis in enumerate(spec.axes) if axis.name == "channel" and axis.size == 1), None)
    fitting = values
    if channel is not None and values.ndim == len(spec.axes) - 1:
        fitting = np.expand_dims(values, channel)
    if not spec.accepts(fitting.shape):
        turned = spec.accepts(values.shape[::-1])
        raise ScanError(
            f"{name} does not have the shape that the encoder takes",
            expected=spec.describe(),
            seen=f"{values.ndim} axes {list(values.shape)}",
            hint="transpose it: the axes are in reverse order" if turned else "prepare it as the card says",
        )
    with np.errstate(over="ignore"):
        tensor = np.ascontiguousarray(fitting, dtype=np.float32)
    if not np.isfinite(tensor).all():
        share = 1 - float(np.isfinite(tensor).mean())
        raise ScanError(
            f"{name} holds values that are not finite",
            expected="finite numbers",
            seen=f"{share:.2%} are not",
            hint="set parcels and voxels without data to 0",
        )
    return tensor


def _check_time(seconds: float | None, spec: ScanSpec, name: str) -> tuple[float | None, tuple[str, ...]]:
    """Check the repetition time; a prepared array is not resampled, so what a card would resample is refused."""
    wanted = spec.repetition_time
    if wanted is None:
        return seconds, ()
    if seconds is not None and not (np.isfinite(seconds) and seconds > 0):
        raise UsageError(f"a repetition time of {seconds} s", expected="seconds above 0")
    warnings: list[str] = []
    policy = "as_is" if wanted.policy == "as_is" else "refuse"
    as_it_is = spec.model_copy(update={"repetition_time": wanted.model_copy(update={"policy": policy})})
    target_seconds(seconds, as_it_is, name, warnings)
    return seconds, tuple(warnings)
