"""Small files of tokens that claim or become much; importing this adds them to those of `bombs`."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo_encoders.tokens.files import read_tokens, write_tokens
from neuroflamingo_encoders.tokens.format import ScanTokens
from tests.preprocessing.formats.bombs import BOMBS, DEEP, NESTED, Call, bomb, npy, sparse, zeros_in_zip


@bomb
def token_npz_becomes_300_mb(folder: Path) -> Call:
    return partial(read_tokens, zeros_in_zip(folder, "t.npz", "tokens.npy", 300))


@bomb
def token_npz_header_nested(folder: Path) -> Call:
    with zipfile.ZipFile(folder / "t.npz", "w") as archive:
        archive.writestr("tokens.npy", npy(NESTED))
    return partial(read_tokens, folder / "t.npz")


@bomb
def token_npz_about_nested(folder: Path) -> Call:
    metadata = io.BytesIO()
    np.save(metadata, np.frombuffer(DEEP.encode(), np.uint8))
    with zipfile.ZipFile(folder / "t.npz", "w") as archive:
        archive.writestr("about.npy", metadata.getvalue())
    return partial(read_tokens, folder / "t.npz")


def safetensors(folder: Path, header: bytes, length: int | None = None) -> Call:
    raw = struct.pack("<Q", len(header) if length is None else length) + header + bytes(1000)
    (folder / "t.safetensors").write_bytes(raw)
    return partial(read_tokens, folder / "t.safetensors")


BOMBS["safetensors_header_of_an_exabyte"] = lambda folder: safetensors(folder, b"{}", 2**60)
BOMBS["safetensors_header_nested"] = lambda folder: safetensors(folder, b'{"a":' + DEEP.encode())
BOMBS["safetensors_claims_800_tb"] = lambda folder: safetensors(
    folder,
    json.dumps({"tokens": {"dtype": "F32", "shape": [10**7, 2 * 10**7], "data_offsets": [0, 8 * 10**14]}}).encode(),
)


def store(folder: Path, change: Callable[[Path], Any]) -> Call:
    write_tokens(folder / "t.zarr", [ScanTokens(np.ones((5, 4), np.float32))], {})
    change(folder / "t.zarr" / "scans" / "00000" / "tokens" / "zarr.json")
    return partial(read_tokens, folder / "t.zarr")


def claim(path: Path) -> None:
    told = json.loads(path.read_text())
    told["shape"] = told["chunk_grid"]["configuration"]["chunk_shape"] = [10**7, 2 * 10**7]
    path.write_text(json.dumps(told))


def chunk(path: Path) -> None:
    from numcodecs import Zstd

    path.with_name("c").joinpath("0", "0").write_bytes(Zstd(level=1).encode(np.zeros(2**29, np.uint8)))  # type: ignore[arg-type]


BOMBS["zarr_chunk_becomes_512_mb"] = lambda folder: store(folder, chunk)
BOMBS["zarr_json_claims_800_tb"] = lambda folder: store(folder, claim)
BOMBS["zarr_json_of_10_gb"] = lambda folder: store(folder, lambda path: sparse(path, 10**10))
BOMBS["zarr_json_nested"] = lambda folder: store(folder, lambda path: path.write_text(DEEP))
