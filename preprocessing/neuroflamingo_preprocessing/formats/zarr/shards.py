"""Parts of a zarr v3 array, read straight from its shards or chunks: what a training loop does a million times.

zarr opens the array anew, makes a task for each chunk and hands each to a thread, which takes longer than to decompress
it. What is read here is zarr's own format (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/), in
the two forms that `ScanStore` (shards) and `TokenStore` (chunks) write; any other form is left to zarr.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.formats.zarr.claims import FLOOR_BYTES, PACKED, check_claims
from neuroflamingo_preprocessing.formats.zarr.zstd import content_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

CODECS = ["bytes", "zstd", "crc32c"]
EMPTY = 2**64 - 1
"""Place and length, in a shard's index, of a chunk that holds the fill value only."""
MAX_META_BYTES = 2**24


@dataclass(frozen=True)
class Layout:
    """Sizes of an array, of its shards and of the chunks in them; names of its axes; whether a file is one chunk."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: np.dtype[Any]
    whole: bool = False

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, decompressed."""
        return int(np.prod(self.chunk, dtype=object)) * self.dtype.itemsize


def read_layout(folder: Path) -> Layout | None:
    """What the `zarr.json` of an array says; None if the array has another form than our stores write.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with _opened(f"{folder}/zarr.json") as stream:
        return _parse(stream.read(MAX_META_BYTES))


@lru_cache(maxsize=64)
def _parse(text: bytes) -> Layout | None:
    try:
        said = json.loads(text)
        whole = len(said["codecs"]) > 1
        inside = said if whole else said["codecs"][0]["configuration"]
        shape, shard = tuple(said["shape"]), tuple(said["chunk_grid"]["configuration"]["chunk_shape"])
        chunk, axes = shard if whole else tuple(inside["chunk_shape"]), tuple(said["dimension_names"] or ())
        ours = (
            (whole or _is_indexed(said["codecs"][0]))
            and (said["zarr_format"], said["node_type"], said["chunk_grid"]["name"]) == (3, "array", "regular")
            and said["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and [codec["name"] for codec in inside["codecs"]] == CODECS
            and inside["codecs"][0]["configuration"]["endian"] == "little"
            and said["data_type"] in ("float16", "float32", "float64")
            and said["fill_value"] == 0
            and len(shape) == len(shard) == len(chunk) > 0
            and all(type(n) is int and 0 < n < 2**40 for n in (*shape, *shard, *chunk))
            and all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
        )
    except (KeyError, TypeError, ValueError, IndexError, RecursionError):
        return None
    return Layout(shape, shard, chunk, axes, np.dtype(said["data_type"]).newbyteorder("<"), whole) if ours else None


def _is_indexed(codec: Any) -> bool:
    """Whether shards end with an index of their chunks, in the form that zarr writes by default."""
    said = codec["configuration"]
    return (
        (codec["name"], said["index_location"]) == ("sharding_indexed", "end")
        and [one["name"] for one in said["index_codecs"]] == ["bytes", "crc32c"]
        and said["index_codecs"][0]["configuration"]["endian"] == "little"
    )


def read_part(folder: Path, layout: Layout, part: Any) -> NDArray[Any] | None:
    """A box of an array: the chunks that it touches are read, checked and decompressed, no others.

    Args:
        folder: of the array.
        layout: of `read_layout`.
        part: numbers or slices, as numpy takes them.

    Returns:
        None for parts of another form, which zarr reads.

    Raises:
        OSError: a shard is missing or cannot be read.
        ValueError: it is damaged, or claims more than it can hold.
    """
    plain = _bounds(layout.shape, part)
    if plain is None:
        return None
    bounds, kept = plain
    if layout.dtype.itemsize * math.prod(high - low for low, high in bounds) > FLOOR_BYTES:
        check_claims(folder, folder.name, [str(layout.dtype)])  # before anything of that size is made
    needed = tuple(range(low // size, -(-high // size)) for (low, high), size in zip(bounds, layout.shard, strict=True))
    out = None
    for shard in product(*needed):
        file = f"{folder}/c/{'/'.join(map(str, shard))}"
        if layout.whole and not os.path.lexists(file):
            return None  # zarr writes no chunk that is all zeros
        with _opened(file) as stream:
            index = _read_index(stream, layout)
            if out is None:
                out = np.empty([high - low for low, high in bounds], layout.dtype)
            _read_shard(stream, index, shard, layout, bounds, out)
    assert out is not None
    return out.reshape([n for n, keep in zip(out.shape, kept, strict=True) if keep])


def _bounds(shape: tuple[int, ...], part: Any) -> tuple[list[tuple[int, int]], list[bool]] | None:
    """First and last + 1 along each axis, and whether the axis stays; None for what is no plain box."""
    wanted = () if part is ... else part if isinstance(part, tuple) else (part,)
    wanted += (slice(None),) * (len(shape) - len(wanted))
    if len(wanted) > len(shape):
        return None
    bounds, kept = [], []
    for one, size in zip(wanted, shape, strict=True):
        if isinstance(one, slice):
            low, high, step = one.indices(size)
        elif type(one) is int:
            low, high, step = one, one + 1, 1
        else:
            return None
        if not 0 <= low < high <= size or step != 1:
            return None
        bounds.append((low, high))
        kept.append(isinstance(one, slice))
    return bounds, kept


def _opened(path: str) -> FileIO:
    """A file of the store itself, not of what a link points to."""
    return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0)))


def _read_at(file: FileIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


def _read_index(file: FileIO, layout: Layout) -> NDArray[np.uint64]:
    """Place and length of each chunk, `[chunk along each axis, 2]`, from the shard's end, if it has more than one."""
    import google_crc32c

    size, count = os.fstat(file.fileno()).st_size, int(np.prod(layout.chunks, dtype=object))
    claimed = count * layout.chunk_bytes
    if claimed > max(FLOOR_BYTES, PACKED * size):
        raise ValueError(f"a shard of {size:,} bytes claims {claimed:,}")
    if layout.whole:
        return np.array([0, size], "<u8").reshape(*layout.chunks, 2)
    length = 16 * count
    raw = _read_at(file, max(size - length - 4, 0), length + 4)
    if len(raw) != length + 4 or google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise ValueError("the index of a shard is damaged")
    index = np.frombuffer(raw, "<u8", 2 * count).reshape(*layout.chunks, 2)
    place, bytes_there = index[index[..., 1] != EMPTY].T
    end = np.uint64(size - length - 4)
    if np.any(place > end) or np.any(bytes_there > end - place):
        raise ValueError("the index of a shard points beyond it")
    return index


def _read_shard(
    file: FileIO,
    index: NDArray[np.uint64],
    shard: tuple[int, ...],
    layout: Layout,
    bounds: list[tuple[int, int]],
    out: NDArray[Any],
) -> None:
    """The chunks of one shard that the part touches, to their places in `out`."""
    begin = [n * size for n, size in zip(shard, layout.shard, strict=True)]
    touched = [
        range(max(low - b, 0) // c, min(-(-(high - b) // c), n))
        for (low, high), b, c, n in zip(bounds, begin, layout.chunk, layout.chunks, strict=True)
    ]
    scratch = None
    for chunk in product(*touched):
        place, length = map(int, index[chunk])
        source, target = [], []
        for n, b, size, (low, high) in zip(chunk, begin, layout.chunk, bounds, strict=True):
            first = b + n * size
            start, stop = max(first, low), min(first + size, high)
            source.append(slice(start - first, stop - first))
            target.append(slice(start - low, stop - low))
        here = out[tuple(target)]
        if length == EMPTY:
            here[...] = 0
            continue
        raw = _read_at(file, place, length)
        if here.shape == layout.chunk and here.flags.c_contiguous:
            _decompress(raw, here, layout)
            continue
        scratch = np.empty(layout.chunk, layout.dtype) if scratch is None else scratch
        _decompress(raw, scratch, layout)
        here[...] = scratch[tuple(source)]


def _decompress(raw: bytes, out: NDArray[Any], layout: Layout) -> None:
    """One chunk, whose checksum and size have to be right."""
    import google_crc32c
    from numcodecs import zstd

    packed = raw[:-4]
    if len(raw) < 9 or google_crc32c.value(packed) != int.from_bytes(raw[-4:], "little"):
        raise ValueError("a chunk has another checksum than was written")
    if content_size(packed) != layout.chunk_bytes:
        raise ValueError(f"a chunk does not hold {layout.chunk_bytes} bytes")
    zstd.decompress(packed, out)
