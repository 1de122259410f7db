"""Checks of the `zarr.json` of a store before zarr opens it: 1 kB may claim 800 TB, and zarr trusts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroflamingo_preprocessing.files import load_json
from neuroflamingo_preprocessing.formats.zarr.zstd import HEADER_BYTES, content_size

MAX_META_BYTES = 2**26
MAX_BYTES = 2**36
PACKED = 1000
"""Largest ratio of an array's size to its stored bytes: chunks of zeros compress well, a bomb compresses better."""
FLOOR_BYTES = 2**27
"""Size up to which any ratio is accepted: a volume of one value compresses better than a bomb."""
MAX_INNER_CHUNKS = 2**20
CODECS = {"bytes", "zstd", "crc32c", "sharding_indexed"}
ITEM_BYTES = {"bool": 1, "float16": 2, "float32": 4, "float64": 8}


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the `zarr.json` of an array or group as plain data.

    Raises:
        ValueError, OSError: missing, too large, or not a mapping.
    """
    return load_json(folder / "zarr.json", most=MAX_META_BYTES, links=False)


def check_claims(folder: Path, name: str, kinds: Sequence[str], floor: int = FLOOR_BYTES) -> tuple[int, ...]:
    """Check that type, sizes, chunks and codecs of an array are as this program writes them, and give its shape.

    Args:
        folder: folder of the array.
        name: name of the array, for messages.
        kinds: data types that it may have.
        floor: size in bytes that is accepted however little is stored.

    Raises:
        ValueError, KeyError, TypeError, OSError: they are not, or the array claims more than its bytes can hold.
    """
    claimed = read_metadata(folder)
    if claimed["zarr_format"] != 3 or claimed["node_type"] != "array":
        raise ValueError(f"{name}: {claimed['node_type']} of zarr {claimed['zarr_format']}"[:100])
    shape, kind = _sizes(claimed["shape"]), claimed["data_type"]
    outer = _sizes(claimed["chunk_grid"]["configuration"]["chunk_shape"])
    if kind not in kinds or len(outer) != len(shape):
        raise ValueError(f"{name}: {kind} {shape} in chunks of {outer}")
    if any(chunk >= 2 * length for chunk, length in zip(outer, shape, strict=True)):
        raise ValueError(f"{name}: chunks of {outer} for {shape}")
    _check_codecs(name, claimed["codecs"], outer)
    size = ITEM_BYTES[kind] * math.prod(shape)
    if size > floor:
        stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > min(MAX_BYTES, max(floor, PACKED * stored)):
            raise ValueError(f"{name} claims {size:,} bytes, {stored:,} are stored")
    return shape


def check_chunks(folder: Path, name: str) -> None:
    """Refuse a chunk that would expand to another size than its array states: zarr decompresses before it compares.

    Args:
        folder: folder of an array without shards, after `check_claims`.
        name: name of the array, for messages.

    Raises:
        ValueError: a chunk of another size, or other codecs than this program writes.
    """
    claimed = read_metadata(folder)
    codecs = [codec["name"] for codec in claimed["codecs"]]
    if codecs not in (["bytes", "zstd"], ["bytes", "zstd", "crc32c"]):
        raise ValueError(f"{name}: packed by {', '.join(map(str, codecs))[:80]}")
    shape = claimed["chunk_grid"]["configuration"]["chunk_shape"]
    most = ITEM_BYTES[claimed["data_type"]] * math.prod(shape)
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            with file.open("rb") as stream:
                size = content_size(stream.read(HEADER_BYTES))
            if size != most:
                raise ValueError(f"{name}: a chunk of {size} bytes, not {most:,}")


def _sizes(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not 0 < len(sizes) <= 8 or not all(type(n) is int and n > 0 for n in sizes):
        raise ValueError(f"not a list of sizes: {str(sizes)[:100]}")
    return tuple(sizes)


def _check_codecs(name: str, codecs: Any, outer: tuple[int, ...]) -> None:
    for codec in codecs:
        if codec["name"] not in CODECS:
            raise ValueError(f"{name}: a codec {str(codec['name'])[:40]!r}")
        if codec["name"] == "sharding_indexed":
            configuration = codec["configuration"]
            inner = _sizes(configuration["chunk_shape"])
            if len(inner) != len(outer) or any(o % i for o, i in zip(outer, inner, strict=True)):
                raise ValueError(f"{name}: chunks of {inner} in shards of {outer}")
            if math.prod(outer) // math.prod(inner) > MAX_INNER_CHUNKS:
                raise ValueError(f"{name}: {math.prod(outer) // math.prod(inner):,} chunks in a shard")
            _check_codecs(name, [*configuration["codecs"], *configuration["index_codecs"]], inner)
