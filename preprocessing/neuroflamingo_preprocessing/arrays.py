"""Arrays: ready ones as an encoder takes them, and parcel series as measured (`.npy`, `.npz`, tables, CIFTI)."""

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
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.functional.cifti import is_cifti, is_dense, read_cifti
from neuroflamingo_preprocessing.functional.cifti_dense import DenseAtlas, parcellated
from neuroflamingo_preprocessing.functional.parcel_series import target_seconds
from neuroflamingo_preprocessing.functional.parcel_tables import MAX_TABLE_BYTES, Rows, Table, laid_out, read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import ScanSpec

TABLES = (".tsv", ".csv")
ENDINGS = (".npy", ".npz", *TABLES)
NAMES = ("data", "series", "volume")
BROKEN_ZIP: Any = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)  # the last one: encrypted


@dataclass(frozen=True)
class ReadyArray:
    """A prepared scan that came as an array.

    Attributes:
        tensor: float32, the axes of the spec.
        sha256, bytes: of the file.
        repetition_time: seconds between frames, None where there are none.
        warnings: what was odd but usable.
        kind: what the file is.
        rows: of a parcel series: what a line of the file was, `frames` or `parcels`; None for other arrays.
        names: of the parcels in their order, where the file gives them.
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
        """The rows of a parcel series as plain data, for the record; empty for other arrays."""
        if self.rows is None:
            return {}
        order = list(self.names) or "as in the file, which does not name them"
        return {"parcels": {"count": len(self.tensor), "order": order, "lines_of_the_file": self.rows}}


def is_array_file(path: str | Path) -> bool:
    """Whether the ending is one of an array or a parcel series."""
    return Path(path).suffix.lower() in ENDINGS or is_cifti(path)


def read_array(
    path: str | Path,
    spec: ScanSpec,
    repetition_time: float | None = None,
    *,
    rows: Rows | None = None,
    atlas: DenseAtlas | None = None,
) -> ReadyArray:
    """Read an array; its shape must be the one that the encoder declares.

    `.npy`: the array, without the channel axis if that is 1. `.npz`: the same under `data` (or its only array), and
    `repetition_time` in seconds. `.tsv`, `.csv`: a parcel series, with or without names of the parcels.
    `.ptseries.nii`: CIFTI, with names and repetition time. A parcel series may have a line for each frame or for each
    parcel: the one that fits the encoder's number of parcels is taken. Nothing is cut, padded or resampled here, and
    no pickle is read.

    Args:
        path: the file.
        spec: `card.scan` of the encoder.
        repetition_time: seconds between frames; where the encoder asks for one, here or in the file.
        atlas: the parcellation of a dense CIFTI series (`.dtseries.nii`).
        rows: what the lines (of an array: the first axis) of a parcel series are, where both fit.

    Raises:
        NotFoundError: no such file.
        ScanError: a pickle, damaged, not numbers, another shape, another repetition time (exit 65).
        UsageError: a repetition time is asked for and was not given.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", expected=" or ".join(ENDINGS), hint="check the path")
    if path.suffix.lower() in TABLES and path.stat().st_size > MAX_TABLE_BYTES:
        raise ScanError(
            f"{path.name} is too large for a table",
            expected=f"at most {MAX_TABLE_BYTES:,} bytes",
            seen=f"{path.stat().st_size:,}",
            hint="save it with numpy.save",
        )
    raw = path.read_bytes()
    try:
        found = _parse(raw, path, spec, atlas)
    except (ValueError, OSError, EOFError, LookupError, csv.Error, *BROKEN_ZIP) as error:
        raise ScanError(
            f"{path.name} cannot be read as an array",
            expected="numbers, without pickles",
            seen=str(error)[:300],
            hint="save it again with numpy.save, or as a table",
        ) from error
    series = [axis.name for axis in spec.axes] == ["parcel", "time"]
    if series and found.values.ndim == 2:
        found = laid_out(found, spec.axes[0], spec.axes[1], path.name, rows)
    elif rows is not None:
        raise UsageError("lines are frames or parcels in a parcel series only", seen=spec.describe(), hint="no --rows")
    tensor = _fitted(found.values, spec, path.name)
    seconds, warnings = _check_time(found.seconds if repetition_time is None else repetition_time, spec, path.name)
    said = found.seconds
    if repetition_time is not None and said is not None and abs(said - repetition_time) > SAME_SECONDS:
        warnings = (*warnings, f"the file says {said:g} s between frames; {repetition_time:g} s is taken, as asked")
    made = ReadyArray(tensor, hashlib.sha256(raw).hexdigest(), len(raw), seconds, warnings, found.kind)
    return replace(made, rows=found.rows, names=found.names) if series else made


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
    """As much as the directory says and no more: reading to the end would unpack a stream that lies about its size."""
    with archive.open(entry) as stream:
        return stream.read(entry.file_size)


def _array(raw: bytes) -> NDArray[Any]:
    """One `.npy`, whose header is believed only as far as its bytes go."""
    stream = io.BytesIO(raw)
    check_npy_header(stream, len(raw))
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def check_npy_header(stream: IO[bytes], most: int) -> None:
    """Read the header of a `.npy` stream, and refuse what cannot be an array of at most so many bytes.

    Raises:
        ValueError: no such header, a pickle, or a size that is larger.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except (MemoryError, RecursionError, tokenize.TokenError) as error:  # Python's parser, of nested brackets
        raise ValueError("its header is no plain declaration of an array") from error
    if dtype.hasobject:
        raise ValueError("it holds a pickle")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size > most or min(shape, default=0) < 0:
        raise ValueError(f"its header claims {size:,} bytes, {most:,} are there")


def _fitted(values: NDArray[Any], spec: ScanSpec, name: str) -> NDArray[np.float32]:
    """float32 with the spec's axes, or a refusal that says which way it would have fitted."""
    if values.dtype.kind not in "fiu":
        raise ScanError(f"{name} holds no numbers", expected="floating-point or whole numbers", seen=str(values.dtype))
    channel = next((i for i, axis in enumerate(spec.axes) if axis.name == "channel" and axis.size == 1), None)
    fitting = values
    if channel is not None and values.ndim == len(spec.axes) - 1:
        fitting = np.expand_dims(values, channel)
    if not spec.accepts(fitting.shape):
        turned = spec.accepts(values.shape[::-1])
        raise ScanError(
            f"{name} has another shape than the encoder takes",
            expected=spec.describe(),
            seen=f"{values.ndim} axes {list(values.shape)}",
            hint="turn it round: the axes are in the reverse order" if turned else "prepare it as the card says",
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
    """A ready array is not resampled: what a card would resample is refused."""
    wanted = spec.repetition_time
    if wanted is None:
        return seconds, ()
    if seconds is not None and not (np.isfinite(seconds) and seconds > 0):
        raise UsageError(f"a repetition time of {seconds} s", expected="seconds above 0")
    said: list[str] = []
    policy = "as_is" if wanted.policy == "as_is" else "refuse"
    as_it_is = spec.model_copy(update={"repetition_time": wanted.model_copy(update={"policy": policy})})
    target_seconds(seconds, as_it_is, name, said)
    return seconds, tuple(said)
