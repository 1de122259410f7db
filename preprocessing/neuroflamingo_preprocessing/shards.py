"""Parts of a sharded zarr v3 array, read straight from its shards: what a training loop does a million times.

zarr opens the array anew, makes a task for each chunk and hands each to a thread, which takes longer than to decompress
it. What is read here is zarr's own format (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/), in
the one form that `ScanStore` writes; any other form is left to zarr.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroflamingo_preprocessing.zstd_frames import content_size

CODECS = ["bytes", "zstd", "crc32c"]
DTYPES = ("float16", "float32", "float64")
MOST_SHARDS = 2**16
EMPTY = 2**64 - 1
"""Place and length, in a shard's index, of a chunk that holds the fill value only."""
MAX_META_BYTES = 2**24
BELIEVED_BYTES, PACKED = 2**27, 1000
"""An array may be so large, or so many times its shard: memory follows what is stored, not what is claimed."""


@dataclass(frozen=True)
class Layout:
    """Sizes of an array, of its shards and of the chunks in them; names of its axes."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: np.dtype[Any]

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, decompressed."""
        return int(np.prod(self.chunk, dtype=object)) * self.dtype.itemsize


def read_layout(folder: Path) -> Layout | None:
    """What the `zarr.json` of an array says; None if the array has another form than `ScanStore` writes.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with open(f"{folder}/zarr.json", "rb", buffering=0) as stream:
        return _parse(stream.read(MAX_META_BYTES))


@lru_cache(maxsize=64)
def _parse(text: bytes) -> Layout | None:
    try:
        said = json.loads(text)
        (sharding,) = said["codecs"]
        inside = sharding["configuration"]
        names = [codec["name"] for codec in inside["codecs"]]
        index = [codec["name"] for codec in inside["index_codecs"]]
        shape, shard = tuple(said["shape"]), tuple(said["chunk_grid"]["configuration"]["chunk_shape"])
        chunk, axes = tuple(inside["chunk_shape"]), tuple(said["dimension_names"] or ())
        ours = (
            (said["zarr_format"], said["node_type"]) == (3, "array")
            and (sharding["name"], inside["index_location"]) == ("sharding_indexed", "end")
            and said["chunk_grid"]["name"] == "regular"
            and said["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and (names, index) == (CODECS, ["bytes", "crc32c"])
            and inside["codecs"][0]["configuration"]["endian"] == inside["index_codecs"][0]["configuration"]["endian"]
            and inside["codecs"][0]["configuration"]["endian"] == "little"
            and said["data_type"] in DTYPES
            and said["fill_value"] == 0
            and len(shape) == len(shard) == len(chunk) > 0
            and all(type(n) is int and 0 < n < 2**40 for n in (*shape, *shard, *chunk))
            and all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
        )
    except (KeyError, TypeError, ValueError, IndexError, RecursionError):
        return None
    return Layout(shape, shard, chunk, axes, np.dtype(said["data_type"]).newbyteorder("<")) if ours else None


def read_part(folder: Path, part: Any, kinds: Sequence[str] = DTYPES) -> NDArray[Any] | None:
    """A box of an array: the chunks that it touches are read, checked and decompressed, no others.

    Args:
        folder: of the array.
        part: numbers or slices, as numpy takes them.
        kinds: data types that the array may have.

    Returns:
        None if array or part have another form than is read here: zarr reads them.

    Raises:
        OSError: a shard is missing or cannot be read.
        ValueError: it is damaged, or claims more than it can hold.
    """
    layout = read_layout(folder)
    plain = None if layout is None else _bounds(layout.shape, part)
    if layout is None or plain is None or layout.dtype.name not in kinds:
        return None
    bounds, kept = plain
    needed = tuple(range(low // size, -(-high // size)) for (low, high), size in zip(bounds, layout.shard, strict=True))
    _check_claim(folder, needed, bounds, layout)
    out = np.empty([high - low for low, high in bounds], layout.dtype)
    for shard in product(*needed):
        with open(_file(folder, shard), "rb", buffering=0) as stream:
            index = _read_index(stream.fileno(), os.fstat(stream.fileno()).st_size, layout)
            _read_shard(stream.fileno(), index, shard, layout, bounds, out)
    return out.reshape([n for n, keep in zip(out.shape, kept, strict=True) if keep])


def _file(folder: Path, shard: tuple[int, ...]) -> str:
    return f"{folder}/c/{'/'.join(map(str, shard))}"


def _check_claim(folder: Path, needed: tuple[range, ...], bounds: list[tuple[int, int]], layout: Layout) -> None:
    """Nothing is allocated before the shards are there that could fill it."""
    claimed = math.prod(high - low for low, high in bounds) * layout.dtype.itemsize
    if math.prod(map(len, needed)) > MOST_SHARDS:
        raise ValueError(f"{math.prod(map(len, needed)):,} shards are claimed")
    stored = sum(os.stat(_file(folder, shard)).st_size for shard in product(*needed))
    if claimed > max(BELIEVED_BYTES, PACKED * stored):
        raise ValueError(f"{stored:,} bytes claim {claimed:,}")


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


def _read_index(file: int, size: int, layout: Layout) -> NDArray[np.uint64]:
    """Place and length of each chunk, `[chunk along each axis, 2]`, from the shard's end."""
    import google_crc32c

    count = int(np.prod(layout.chunks, dtype=object))
    claimed = count * layout.chunk_bytes
    if claimed > max(BELIEVED_BYTES, PACKED * size):
        raise ValueError(f"a shard of {size:,} bytes claims {claimed:,}")  # before anything of that size is made
    length = 16 * count
    raw = os.pread(file, length + 4, max(size - length - 4, 0))
    if len(raw) != length + 4 or google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise ValueError("the index of a shard is damaged")
    index = np.frombuffer(raw, "<u8", 2 * count).reshape(*layout.chunks, 2)
    place, bytes_there = index[index[..., 1] != EMPTY].T
    end = np.uint64(size - length - 4)
    if np.any(place > end) or np.any(bytes_there > end - place):
        raise ValueError("the index of a shard points beyond it")
    return index


def _read_shard(
    file: int,
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
        raw = os.pread(file, length, place)
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
