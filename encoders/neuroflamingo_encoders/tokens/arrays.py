"""Token files as npz (without pickles) and safetensors. See `files` for the layout."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_encoders.tokens.format import ARRAYS, MAX_BYTES, PACKED, SLACK_BYTES, ScanTokens
from neuroflamingo_preprocessing.arrays import check_npy_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME = re.compile(rf"scans/(\d{{5}})/({'|'.join(ARRAYS)})")
ABOUT = "about"
MAX_ABOUT_BYTES = 2**26


def pack_npz(arrays: Mapping[str, NDArray[Any]], about: str) -> bytes:
    """Bytes of an npz file; `about` is stored as an array of UTF-8 bytes."""
    out = io.BytesIO()
    np.savez(out, **{ABOUT: np.frombuffer(about.encode(), np.uint8)}, **arrays)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def pack_safetensors(arrays: Mapping[str, NDArray[Any]], about: str) -> bytes:
    """Bytes of a safetensors file; `about` is stored in its metadata."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(value) for name, value in arrays.items()}, metadata={ABOUT: about})


def read_npz(path: Path) -> tuple[list[ScanTokens], dict[str, Any]]:
    """Read scans and metadata of an npz file.

    Raises:
        ValueError: a pickle, an array larger than its entry, names that do not belong in a token file.
    """
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else _no_zip() as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        claimed = sum(entry.file_size for entry in entries.values())
        if claimed > min(MAX_BYTES, PACKED * path.stat().st_size + SLACK_BYTES):
            raise ValueError(f"{path.stat().st_size:,} bytes claim to be {claimed:,}")
        arrays = {name: _read_npy(archive, entry) for name, entry in entries.items()}
    about = arrays.pop(ABOUT, None)
    return _scans(arrays, None if about is None else about.astype(np.uint8, casting="equiv").tobytes())


def _no_zip() -> zipfile.ZipFile:
    raise ValueError("not an npz file")


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """Read an array, whose header is trusted only as far as the bytes of its entry go."""
    with archive.open(entry) as stream:
        check_npy_header(stream, entry.file_size)
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def read_safetensors(path: Path) -> tuple[list[ScanTokens], dict[str, Any]]:
    """Read scans and metadata of a safetensors file.

    Raises:
        ValueError: damaged, or names that do not belong in a token file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as stream:
            metadata = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    about = metadata.get(ABOUT)
    return _scans(arrays, None if about is None else about.encode())


def _scans(arrays: dict[str, NDArray[Any]], about: bytes | None) -> tuple[list[ScanTokens], dict[str, Any]]:
    if about is None:
        return _foreign(arrays), {}
    if len(about) > MAX_ABOUT_BYTES:
        raise ValueError(f"{ABOUT} of {len(about):,} bytes")
    head = json.loads(about)
    words = head.pop("scans")
    parts: list[dict[str, Any]] = [{} for _ in words]
    for name, value in arrays.items():
        match = NAME.fullmatch(name)
        if match is None or int(match[1]) >= len(parts):
            raise ValueError(f"an array named {name}")
        parts[int(match[1])][match[2]] = value
    return [ScanTokens(**part, metadata=scan_about) for part, scan_about in zip(parts, words, strict=True)], head


def _foreign(arrays: dict[str, NDArray[Any]]) -> list[ScanTokens]:
    """Tokens from the arrays of another program: `tokens`, optionally `mask` and `positions`, and nothing else."""
    if "tokens" not in arrays or set(arrays) - set(ARRAYS):
        raise ValueError(f"arrays named {', '.join(sorted(arrays)[:5])}; expected `tokens [token, width]`")
    named: dict[str, Any] = dict(arrays)
    return [ScanTokens(**named)]
