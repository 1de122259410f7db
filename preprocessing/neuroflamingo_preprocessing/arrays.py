"""Ready arrays as an encoder takes them: `.npy`, `.npz` and parcel tables, where scans are not prepared yet."""

from __future__ import annotations

import hashlib
import io
import lzma
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.series import target_seconds
from neuroflamingo_preprocessing.spec import ScanSpec

ENDINGS = (".npy", ".npz", ".tsv")
NAMES = ("data", "series", "volume")
BROKEN_ZIP: Any = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)  # the last one: encrypted
MAX_TABLE_BYTES, MAX_TABLE_CELLS = 2**26, 2**24


@dataclass(frozen=True)
class ReadyArray:
    """A prepared scan that came as an array.

    Attributes:
        tensor: float32, the axes of the spec.
        sha256, bytes: of the file.
        repetition_time: seconds between frames, None where there are none.
        warnings: what was odd but usable.
    """

    tensor: NDArray[np.float32]
    sha256: str
    bytes: int
    repetition_time: float | None
    warnings: tuple[str, ...]


def is_array_file(path: str | Path) -> bool:
    """Whether the ending is one of a ready array."""
    return Path(path).suffix.lower() in ENDINGS


def read_array(path: str | Path, spec: ScanSpec, repetition_time: float | None = None) -> ReadyArray:
    """Read an array that was prepared elsewhere; its shape must be the one that the encoder declares.

    `.npy`: the array, without the channel axis if that is 1. `.npz`: the same under `data` (or its only array), and
    `repetition_time` in seconds. `.tsv`: a parcel series, one line a frame, one column a parcel, with or without a
    line of names. Nothing is cut, padded, turned or resampled here, and no pickle is read.

    Args:
        path: the file.
        spec: `card.scan` of the encoder.
        repetition_time: seconds between frames; where the encoder asks for one, here or in the npz file.

    Raises:
        NotFoundError: no such file.
        ScanError: a pickle, damaged, not numbers, another shape, another repetition time (exit 65).
        UsageError: a repetition time is asked for and was not given.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", expected=" or ".join(ENDINGS), hint="check the path")
    if path.suffix.lower() == ".tsv" and path.stat().st_size > MAX_TABLE_BYTES:
        raise ScanError(
            f"{path.name} is too large for a table",
            expected=f"at most {MAX_TABLE_BYTES:,} bytes",
            seen=f"{path.stat().st_size:,}",
            hint="save it with numpy.save",
        )
    raw = path.read_bytes()
    try:
        values, inside = _parse(raw, path.suffix.lower(), spec)
    except (ValueError, OSError, EOFError, LookupError, *BROKEN_ZIP) as error:
        raise ScanError(
            f"{path.name} cannot be read as an array",
            expected="numbers, without pickles",
            seen=str(error)[:300],
            hint="save it again with numpy.save, or as a table",
        ) from error
    tensor = _fitted(values, spec, path.name)
    seconds, warnings = _check_time(inside if repetition_time is None else repetition_time, spec, path.name)
    return ReadyArray(tensor, hashlib.sha256(raw).hexdigest(), len(raw), seconds, warnings)


def _parse(raw: bytes, ending: str, spec: ScanSpec) -> tuple[NDArray[Any], float | None]:
    if ending == ".tsv":
        if [axis.name for axis in spec.axes] != ["parcel", "time"]:
            raise ValueError(f"a table, but the encoder takes {spec.describe()}")
        return _table(raw).T, None
    if ending == ".npy":
        return _array(raw), None
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
    return arrays[named[0]], None if seconds is None else float(seconds)


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


def _table(raw: bytes) -> NDArray[np.float32]:
    """`[frame, parcel]` of a tab-separated table, with or without a line of names; `n/a` is refused like any word."""
    cells = raw.count(b"\t") + raw.count(b"\n")
    if cells > MAX_TABLE_CELLS:
        raise ValueError(f"a table of {cells:,} cells")
    rows, widths = [], set()
    for line in io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"):
        words = line.rstrip("\r\n").split("\t") if line.strip() else []
        if words and (rows or _is_number(words[0])):
            with np.errstate(over="ignore"):  # to infinity, which is refused later
                rows.append(np.array(words, dtype=np.float64).astype(np.float32))
            widths.add(len(words))
    if len(widths) != 1:
        raise ValueError("no lines of numbers" if not rows else f"lines of {min(widths)} to {max(widths)} columns")
    return np.stack(rows)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


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
