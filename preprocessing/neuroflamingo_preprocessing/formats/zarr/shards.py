"""`read_part`: read a part of a zarr v3 array straight from its shards or chunks, as a training loop does all the time.

zarr opens the array anew, makes a task for each chunk and hands each to a thread, which takes longer than decompressing
it. The format is zarr's own (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/), in the two forms
that `ScanStore` (shards) and `TokenStore` (chunks) write; any other form is left to zarr.

A shard is a file of compressed chunks, in any order, followed by an index: for each chunk of the shard, in C order, its
offset and length as little-endian uint64, then the CRC-32C of the index. Every chunk ends with its own CRC-32C. So a
part costs one read of the index and one read of each chunk that it touches.
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
"""Offset and length, in the index of a shard, of a chunk that holds the fill value only."""
MAX_META_BYTES = 2**24


@dataclass(frozen=True)
class Layout:
    """Layout of an array on disk.

    Attributes:
        shape, shard, chunk: sizes of the array, of its shards and of the chunks in them.
        axes: names of the axes.
        dtype: stored type, little-endian.
        whole: True if a file is one chunk, without an index.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: np.dtype[Any]
    whole: bool = False

    @property
    def chunks(self) -> tuple[int, ...]:
        """Number of chunks in a shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk in bytes, decompressed."""
        return int(np.prod(self.chunk, dtype=object)) * self.dtype.itemsize


def read_layout(folder: Path) -> Layout | None:
    """Read the layout of an array from its `zarr.json`; None for any form that the stores do not write.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with _opened(f"{folder}/zarr.json") as stream:
        return _parse(stream.read(MAX_META_BYTES))


@lru_cache(maxsize=64)
def _parse(text: bytes) -> Layout | None:
    # Cached by content, not by path: the items of a store mostly have equal metadata, so they are parsed once.
    try:
        metadata = json.loads(text)
        whole = len(metadata["codecs"]) > 1
        inside = metadata if whole else metadata["codecs"][0]["configuration"]
        shape, shard = tuple(metadata["shape"]), tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        chunk, axes = shard if whole else tuple(inside["chunk_shape"]), tuple(metadata["dimension_names"] or ())
        ours = (
            (whole or _is_indexed(metadata["codecs"][0]))
            and (metadata["zarr_format"], metadata["node_type"], metadata["chunk_grid"]["name"])
            == (3, "array", "regular")
            and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and [codec["name"] for codec in inside["codecs"]] == CODECS
            and inside["codecs"][0]["configuration"]["endian"] == "little"
            and metadata["data_type"] in ("float16", "float32", "float64")
            and metadata["fill_value"] == 0
            and len(shape) == len(shard) == len(chunk) > 0
            and all(type(n) is int and 0 < n < 2**40 for n in (*shape, *shard, *chunk))
            and all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
        )
    except (KeyError, TypeError, ValueError, IndexError, RecursionError):
        return None
    return Layout(shape, shard, chunk, axes, np.dtype(metadata["data_type"]).newbyteorder("<"), whole) if ours else None


def _is_indexed(codec: Any) -> bool:
    """True if shards end with an index of their chunks, in the form that zarr writes by default."""
    metadata = codec["configuration"]
    return (
        (codec["name"], metadata["index_location"]) == ("sharding_indexed", "end")
        and [index["name"] for index in metadata["index_codecs"]] == ["bytes", "crc32c"]
        and metadata["index_codecs"][0]["configuration"]["endian"] == "little"
    )


def read_part(folder: Path, layout: Layout, part: Any) -> NDArray[Any] | None:
    """Read a box of an array; only the chunks that it touches are read, verified and decompressed.

    Args:
        folder: folder of the array.
        layout: see `read_layout`.
        part: integers and slices, as numpy takes them.

    Returns:
        The box, or None for an index of another form, which is left to zarr.

    Raises:
        OSError: a shard is missing or cannot be read.
        ValueError: a shard is damaged, or claims more than it can hold.
    """
    box = _bounds(layout.shape, part)
    if box is None:
        return None
    bounds, kept = box
    if layout.dtype.itemsize * math.prod(high - low for low, high in bounds) > FLOOR_BYTES:
        check_claims(folder, folder.name, [str(layout.dtype)])  # before anything of that size is allocated
    needed = tuple(range(low // size, -(-high // size)) for (low, high), size in zip(bounds, layout.shard, strict=True))
    out = None
    for shard in product(*needed):
        file = f"{folder}/c/{'/'.join(map(str, shard))}"
        if layout.whole and not os.path.lexists(file):
            return None  # zarr does not write chunks of zeros, so a missing one is no damage: zarr fills it in
        with _opened(file) as stream:
            index = _read_index(stream, layout)
            if out is None:  # allocated only once the first index has proved the claimed size plausible
                out = np.empty([high - low for low, high in bounds], layout.dtype)
            _read_shard(stream, index, shard, layout, bounds, out)
    assert out is not None
    return out.reshape([n for n, keep in zip(out.shape, kept, strict=True) if keep])


def _bounds(shape: tuple[int, ...], part: Any) -> tuple[list[tuple[int, int]], list[bool]] | None:
    """Start and stop along each axis, and whether numpy would keep the axis; None for anything but a plain box."""
    wanted = () if part is ... else part if isinstance(part, tuple) else (part,)
    wanted += (slice(None),) * (len(shape) - len(wanted))
    if len(wanted) > len(shape):
        return None
    bounds, kept = [], []
    for index, size in zip(wanted, shape, strict=True):
        if isinstance(index, slice):
            low, high, step = index.indices(size)
        elif type(index) is int:
            low, high, step = index, index + 1, 1
        else:
            return None
        if not 0 <= low < high <= size or step != 1:
            return None
        bounds.append((low, high))
        kept.append(isinstance(index, slice))
    return bounds, kept


def _opened(path: str) -> FileIO:
    """Open a file of the store, refusing links; unbuffered, since every read is of a known offset and length."""
    return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0)))


def _read_at(file: FileIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


def _read_index(file: FileIO, layout: Layout) -> NDArray[np.uint64]:
    """Offset and length of each chunk, `[chunk along each axis, 2]`, from the end of the shard.

    Sizes are compared before the index is read, and offsets before any chunk is, so that a damaged or hostile shard
    can neither make the reader allocate much nor read outside of the file. A file without index is one chunk.
    """
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
    """Read the chunks of one shard that the part touches into `out`.

    A chunk that lies inside the part as a whole, and contiguously in `out`, is decompressed in place; all others go
    through one scratch chunk, of which the part that overlaps is copied. Chunks at the array's end are stored in full.
    """
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
    """Decompress a chunk after its checksum and the size in its frame are verified."""
    import google_crc32c
    from numcodecs import zstd

    packed = raw[:-4]
    if len(raw) < 9 or google_crc32c.value(packed) != int.from_bytes(raw[-4:], "little"):
        raise ValueError("a chunk has the wrong checksum")
    if content_size(packed) != layout.chunk_bytes:
        raise ValueError(f"a chunk does not hold {layout.chunk_bytes} bytes")
    zstd.decompress(packed, out)
