"""What a `zarr.json` claims is checked before zarr sees it: 1 kB may claim 800 TB, and zarr believes it."""

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
"""How many times its stored bytes an array may be: chunks of zeros pack well, a bomb packs better."""
FLOOR_BYTES = 2**27
"""Up to so much is believed: a volume of one value packs better than any bomb."""
MAX_INNER_CHUNKS = 2**20
CODECS = {"bytes", "zstd", "crc32c", "sharding_indexed"}
ITEM_BYTES = {"bool": 1, "float16": 2, "float32": 4, "float64": 8}


def read_metadata(folder: Path) -> dict[str, Any]:
    """The `zarr.json` of an array or group, as plain data.

    Raises:
        ValueError, OSError: not there, too large, or no mapping.
    """
    return load_json(folder / "zarr.json", most=MAX_META_BYTES, links=False)


def check_claims(folder: Path, name: str, kinds: Sequence[str], floor: int = FLOOR_BYTES) -> tuple[int, ...]:
    """The shape that an array of ours claims, if kind, sizes, chunks and codecs are such as this program writes.

    Args:
        folder: of the array.
        name: of the array, for messages.
        kinds: data types that it may have.
        floor: bytes that are believed however few are stored.

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
    """Refuse a chunk that would become more than its array says: it would be unpacked before its size is looked at.

    Args:
        folder: of an array without shards, whose claims were checked.
        name: of the array, for messages.

    Raises:
        ValueError: a chunk of another size, or not packed as this program packs.
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


def _sizes(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not 0 < len(found) <= 8 or not all(type(n) is int and n > 0 for n in found):
        raise ValueError(f"no sizes: {str(found)[:100]}")
    return tuple(found)


def _check_codecs(name: str, codecs: Any, outer: tuple[int, ...]) -> None:
    for codec in codecs:
        if codec["name"] not in CODECS:
            raise ValueError(f"{name}: a codec {str(codec['name'])[:40]!r}")
        if codec["name"] == "sharding_indexed":
            how = codec["configuration"]
            inner = _sizes(how["chunk_shape"])
            if len(inner) != len(outer) or any(o % i for o, i in zip(outer, inner, strict=True)):
                raise ValueError(f"{name}: chunks of {inner} in shards of {outer}")
            if math.prod(outer) // math.prod(inner) > MAX_INNER_CHUNKS:
                raise ValueError(f"{name}: {math.prod(outer) // math.prod(inner):,} chunks in a shard")
            _check_codecs(name, [*how["codecs"], *how["index_codecs"]], inner)
