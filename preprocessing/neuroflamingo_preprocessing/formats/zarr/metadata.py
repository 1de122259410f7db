"""Metadata of a zarr array, read as plain JSON and checked before the zarr library opens the folder.

A few bytes of metadata can claim 800 TB, name codecs that run code (numcodecs' pickle), or lead out of the folder
through a link; the library accepts all three.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError, not_readable
from neuroflamingo_preprocessing.files import load_json, sha256_of
from neuroflamingo_preprocessing.formats.nifti.header import MAX_VOXELS

MAX_METADATA_BYTES = 2**20
MAX_FILES = 2**17
FREE_VOXELS = 2**24
"""Voxels that a chunk may always have; beyond, it may be twice as long as the array along each of three axes."""
CODECS = {"bytes", "transpose", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed"}
COMPRESSORS = {"zlib", "gzip", "zstd", "blosc", "lz4"}
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@dataclass(frozen=True)
class Shard:
    """Index of the chunks in a shard.

    Attributes:
        chunks: number of chunks.
        index_bytes: size of the index (offsets and lengths), with its checksum if it has one.
        index_first: True if the index is at the start of the file, False at the end.
        little: True for little-endian.
    """

    chunks: int
    index_bytes: int
    index_first: bool
    little: bool


@dataclass(frozen=True)
class Packing:
    """Compression of chunks by zstd.

    Attributes:
        chunk_bytes: size of a chunk, decompressed.
        shard: index of the shards, for a sharded array.
    """

    chunk_bytes: int
    shard: Shard | None = None


@dataclass(frozen=True)
class ArrayMetadata:
    """Metadata of an array, within the limits.

    Attributes:
        shape: sizes of the axes.
        dtype: stored type, real numbers of at most 64 bit.
        zarr_format: 2 or 3.
        names: names of the axes; empty if there are none.
        attributes: user attributes, unchecked.
        packing: compression of the chunks; None if zstd is not among the codecs.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    zarr_format: int
    names: tuple[str, ...]
    attributes: dict[str, Any]
    packing: Packing | None = None


def damaged(name: str, expected: str, seen: object) -> ScanError:
    """Error for metadata that cannot be used."""
    return ScanError(
        f"{name}: the zarr metadata cannot be used",
        expected=expected,
        seen=str(seen)[:200] or "nothing",
        hint="write the folder again, or give the scan as .nii.gz",
    )


def files_of(folder: Path) -> list[Path]:
    """List all files below a folder, sorted.

    Raises:
        ScanError: a link, a device, or more files than any scan has.
    """
    paths: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=False):
        for entry in (*folders, *files):
            path = Path(place, entry)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ScanError(
                    f"{folder.name} holds a link or a device",
                    expected="plain files and folders",
                    seen=str(path.relative_to(folder))[:200],
                    hint="copy the folder with its links followed (cp -rL) if you trust where they lead",
                )
        paths += [Path(place, file) for file in files]
        if len(paths) > MAX_FILES:
            raise damaged(folder.name, f"at most {MAX_FILES} files", "more")
    return sorted(paths)


def is_zarr(path: Path) -> bool:
    """True for the folder of a zarr array or group."""
    return path.is_dir() and any((path / name).is_file() for name in METADATA[:3])


def fingerprint(path: Path) -> tuple[str, int]:
    """SHA-256 over the names and contents of all files of a folder, and their total size in bytes.

    Raises:
        ScanError: see `files_of`.
    """
    whole, size = hashlib.sha256(), 0
    for file in files_of(path):
        whole.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
        size += file.stat().st_size
    return whole.hexdigest(), size


def _mapping(file: Path, name: str) -> dict[str, Any]:
    """Read a mapping from a small JSON file; empty if there is no such file.

    Raises:
        ScanError: too large, not JSON, not a mapping, or it cannot be read.
    """
    if not file.is_file():
        return {}
    try:
        return load_json(file, most=MAX_METADATA_BYTES)
    except ValueError as error:
        raise damaged(name, f"a mapping as JSON in {file.name}", error) from error
    except OSError as error:
        raise not_readable(name, error) from error


def read_group(folder: Path, name: str) -> tuple[dict[str, Any], bool]:
    """Read the attributes of a folder; also gives whether it is a group (else it is an array).

    Raises:
        ScanError: neither of the two.
    """
    root = _mapping(folder / "zarr.json", name)
    if root:
        attributes = root.get("attributes", {})
        kind = root.get("node_type")
    else:
        attributes = _mapping(folder / ".zattrs", name)
        kind = "array" if (folder / ".zarray").is_file() else "group"
    if kind not in ("array", "group") or not isinstance(attributes, dict):
        raise damaged(name, "a zarr array or group", kind)
    return attributes, kind == "group"


def read_array_metadata(folder: Path, name: str) -> ArrayMetadata:
    """Read sizes, type and codecs of an array, each checked against its limit.

    Raises:
        ScanError: beyond a limit, or unknown.
    """
    metadata = _mapping(folder / "zarr.json", name)
    try:
        array = _version_3(metadata) if metadata else _version_2(folder, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(name, "shape, type, chunks and known codecs", f"{type(error).__name__}: {error}") from error
    return array


def _version_3(metadata: dict[str, Any]) -> ArrayMetadata:
    if metadata["zarr_format"] != 3 or metadata["node_type"] != "array" or metadata.get("storage_transformers"):
        raise ValueError("not a plain array of zarr version 3")
    shape = _sizes(metadata["shape"])
    dtype = _number(str(metadata["data_type"]))
    if metadata["chunk_grid"]["name"] != "regular":
        raise ValueError(f"chunk grid {metadata['chunk_grid']['name']!r}")
    chunks = _sizes(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    _check_chunks(shape, chunks)
    _check_codecs(metadata["codecs"], shape)
    packing = _packing(metadata["codecs"], chunks, dtype.itemsize)
    names = metadata.get("dimension_names") or ()
    return ArrayMetadata(shape, dtype, 3, tuple(map(str, names)), metadata.get("attributes") or {}, packing)


def _version_2(folder: Path, name: str) -> ArrayMetadata:
    metadata = _mapping(folder / ".zarray", name)
    if metadata["zarr_format"] != 2:
        raise ValueError("neither version 2 nor version 3")
    shape, chunks, dtype = _sizes(metadata["shape"]), _sizes(metadata["chunks"]), _number(str(metadata["dtype"]))
    _check_chunks(shape, chunks)
    used = metadata.get("compressor")
    if metadata.get("filters") or (used is not None and used["id"] not in COMPRESSORS):
        raise ValueError(f"filters {metadata.get('filters')}, compressor {used}")
    attributes = _mapping(folder / ".zattrs", name)
    names = attributes.get("_ARRAY_DIMENSIONS") or ()
    packing = Packing(math.prod(chunks) * dtype.itemsize) if used is not None and used["id"] == "zstd" else None
    return ArrayMetadata(shape, dtype, 2, tuple(map(str, names)), attributes, packing)


def _packing(codecs: Any, chunks: tuple[int, ...], item_bytes: int) -> Packing | None:
    """Compression by zstd, None if it is not among the codecs; sizes and names of codecs were checked before.

    zstd must be the only compressor: the size that a frame expands to says nothing if another one follows.
    """
    names = [codec["name"] for codec in codecs]
    if "sharding_indexed" in names:
        inside = codecs[names.index("sharding_indexed")]["configuration"]
        inner = _sizes(inside["chunk_shape"])
        packing = _packing(inside["codecs"], inner, item_bytes)
        return packing and Packing(packing.chunk_bytes, _shard(names, inside, math.prod(chunks) // math.prod(inner)))
    if "zstd" not in names:
        return None
    if names.count("zstd") > 1 or {"gzip", "blosc"} & set(names):
        raise ValueError(f"chunks packed again: {', '.join(names)[:80]}")
    checksums = names[: names.index("zstd")].count("crc32c")
    return Packing(math.prod(chunks) * item_bytes + 4 * checksums)


def _shard(names: list[str], inside: dict[str, Any], chunks: int) -> Shard:
    index: Any = inside.get("index_codecs") or [{"name": "bytes"}, {"name": "crc32c"}]
    kinds = [codec["name"] for codec in index]
    if set(names) - {"transpose", "sharding_indexed"} or kinds not in (["bytes"], ["bytes", "crc32c"]):
        raise ValueError(f"shards packed again: {', '.join((*names, *kinds))[:80]}")
    if chunks > MAX_FILES:
        raise ValueError(f"{chunks:.3g} chunks in a shard")
    order = (index[0].get("configuration") or {}).get("endian", "little")
    first = inside.get("index_location", "end") == "start"
    return Shard(chunks, 16 * chunks + 4 * (len(kinds) - 1), first, order == "little")


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(values)
    if not 1 <= len(sizes) <= 5 or any(type(n) is not int or n < 1 for n in sizes):
        raise ValueError(f"sizes {str(sizes)[:80]}")
    if math.prod(sizes) > MAX_VOXELS:
        raise ValueError(f"{math.prod(sizes):.3g} values are claimed, at most {MAX_VOXELS:.3g} are taken")
    return sizes


def _number(text: str) -> np.dtype[Any]:
    dtype = np.dtype(text)
    if dtype.kind not in "iufS" or (dtype.kind != "S" and dtype.itemsize > 8) or dtype.itemsize > 4096:
        raise ValueError(f"type {text[:40]}")
    return dtype


def _check_chunks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    if len(chunks) != len(shape):
        raise ValueError(f"{len(chunks)} chunk sizes for {len(shape)} axes")
    if math.prod(chunks) > max(FREE_VOXELS, 8 * math.prod(shape)):
        raise ValueError(f"chunks of {chunks} for {shape}")
    count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    if count > MAX_FILES:
        raise ValueError(f"{count:.3g} chunks")


def _check_codecs(codecs: Any, shape: tuple[int, ...], depth: int = 0) -> None:
    for codec in codecs:
        if codec["name"] not in CODECS or depth > 1:
            raise ValueError(f"codec {str(codec['name'])[:40]!r}")
        if codec["name"] == "sharding_indexed":
            inside = codec["configuration"]
            _check_chunks(shape, _sizes(inside["chunk_shape"]))
            _check_codecs(inside["codecs"], shape, depth + 1)
            _check_codecs(inside.get("index_codecs", ()), shape, depth + 1)
