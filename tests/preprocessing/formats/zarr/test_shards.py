"""Shards read without zarr hold what zarr reads; damage, lies and losses are refused, never read as zeros."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import zstd
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.zarr.shards import read_layout, read_part
from neuroflamingo_preprocessing.stores.scans import ScanStore

KEY = "0" * 64
SHAPE = (2, 70, 65, 20)


def voxels(window: int) -> np.ndarray:
    values = np.random.default_rng(window).normal(size=SHAPE).astype(np.float32)
    values[:, :64, :64] *= window  # whole chunks of zeros in window 0
    return values


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = ScanStore.create(tmp_path_factory.mktemp("s") / "s", encoder="x", card_digest=KEY, spec_digest=KEY)
    store.put(KEY, [voxels(0), voxels(1)], ("channel", "x", "y", "z"), {})
    return store[KEY].folder


@pytest.fixture(scope="module")
def whole(item: Path) -> np.ndarray:
    """All that zarr reads of the item."""
    return np.asarray(zarr.open_array(item / "tensor", mode="r")[...])


def boxed(item: Path, part: Any) -> np.ndarray | None:
    layout = read_layout(item / "tensor")
    assert layout is not None
    return read_part(item / "tensor", layout, part)


@given(st.data())
def test_any_box_is_what_zarr_reads(item: Path, whole: np.ndarray, data: Any) -> None:
    part: list[Any] = []
    for size in (2, *SHAPE)[: data.draw(st.integers(0, 5))]:
        low = data.draw(st.integers(0, size - 1))
        part.append(data.draw(st.sampled_from([low, slice(low, data.draw(st.integers(low + 1, size))), slice(None)])))
    found = boxed(item, tuple(part))
    assert found is not None and found.dtype == np.float32
    np.testing.assert_array_equal(found, whole[tuple(part)])


@pytest.mark.parametrize(
    "part", [(slice(None, None, 2),), (-1,), (slice(1, 1),), ([0, 1],), (np.array([0]),), (0,) * 6]
)
def test_other_parts_are_left_to_zarr(item: Path, part: Any) -> None:
    assert boxed(item, part) is None


def test_other_forms_are_left_to_zarr(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"shards": None},
        {"compressors": BloscCodec()},
        {"fill_value": 1},
        {"dtype": "int32"},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ]
    usual: dict[str, Any] = {"shape": (8, 8), "chunks": (4, 4), "shards": (8, 8), "dtype": "float32"}
    for number, form in enumerate(forms):
        zarr.create_array(tmp_path / str(number), **(usual | form))
        assert read_layout(tmp_path / str(number)) is None


def copied(item: Path, into: Path) -> tuple[ScanStore, Path]:
    """A store of the same item, and the shard of its window 1."""
    store = ScanStore.create(into / "s", encoder="x", card_digest=KEY, spec_digest=KEY)
    store.put(KEY, [voxels(0), voxels(1)], ("channel", "x", "y", "z"), {})
    return store, store[KEY].folder / "tensor" / "c" / "1" / "0" / "0" / "0" / "0"


def test_a_lost_shard_is_an_error_not_zeros(item: Path, tmp_path: Path) -> None:
    store, shard = copied(item, tmp_path)
    shard.unlink()
    assert np.array_equal(store[KEY].read((0,)), voxels(0))
    with pytest.raises(ScanError, match="is damaged"):
        store[KEY].read((1,))


def test_links_are_not_followed(item: Path, tmp_path: Path) -> None:
    store, shard = copied(item, tmp_path)
    for file in (shard, store[KEY].folder / "tensor" / "zarr.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(tmp_path / file.name)
        with pytest.raises(ScanError, match="is damaged"):
            store[KEY].read((1,))


def test_one_changed_byte_anywhere_is_seen(item: Path, tmp_path: Path) -> None:
    store, shard = copied(item, tmp_path)
    good = shard.read_bytes()
    places = np.linspace(0, len(good) - 1, 60).astype(int)
    for place in (*places, *range(len(good) - 68, len(good))):  # the last 68 bytes are the index
        raw = bytearray(good)
        raw[place] ^= 1
        shard.write_bytes(raw)
        with pytest.raises(ScanError, match="is damaged"):
            store[KEY].read((1,))
    for length in (0, 3, 67, 68, len(good) // 2, len(good) - 1):
        shard.write_bytes(good[:length])
        with pytest.raises(ScanError, match="is damaged"):
            store[KEY].read((1,))


def test_lies_cost_little(item: Path, tmp_path: Path) -> None:
    """Checksums that are right, and contents that are not: sizes beyond the file, chunks that swell, 800 TB."""
    store, shard = copied(item, tmp_path)
    good = shard.read_bytes()
    index = np.frombuffer(good[-68:-4], "<u8").reshape(4, 2).copy()

    def with_index(body: bytes, entries: np.ndarray) -> bytes:
        raw = entries.astype("<u8").tobytes()
        return body + raw + google_crc32c.value(raw).to_bytes(4, "little")

    def packed(values: bytes) -> bytes:
        raw = zstd.compress(values, 1)
        return raw + google_crc32c.value(raw).to_bytes(4, "little")

    swollen, short = packed(bytes(2**28)), packed(bytes(100))
    beyond = index.copy()
    beyond[0, 1] = len(good)
    wrapped = index.copy()
    wrapped[0] = [2**64 - 100, 200]
    lies = [with_index(good[:-68], entries) for entries in (beyond, wrapped)]
    lies += [with_index(chunk, np.array([[0, len(chunk)]] * 4)) for chunk in (swollen, short)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for lie in lies:
        shard.write_bytes(lie)
        with pytest.raises(ScanError, match="is damaged"):
            store[KEY].read((1,))
    meta = store[KEY].folder / "tensor" / "zarr.json"
    said = json.loads(meta.read_text())
    said["shape"][2] = said["chunk_grid"]["configuration"]["chunk_shape"][2] = 2**30 * 64
    meta.write_text(json.dumps(said))
    with pytest.raises(ScanError, match="is damaged"):
        store[KEY].read((1,))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # kilobytes


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_whose_files_are_one_chunk_each(tmp_path: Path, dtype: str) -> None:
    """As `TokenStore` writes them: the same numbers as zarr reads, or a refusal."""
    values = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(dtype)
    how: Any = {"compressors": [ZstdCodec(level=1), Crc32cCodec()], "zarr_format": 3}
    zarr.create_array(tmp_path / "a", data=values, chunks=(1, 7, 5), dimension_names=tuple("wtd"), **how)
    layout = read_layout(tmp_path / "a")
    assert layout is not None and layout.whole and layout.chunk == layout.shard == (1, 7, 5)
    for part in (1, ..., slice(0, 2), (2, slice(1, 4)), (slice(None), 3)):
        np.testing.assert_array_equal(read_part(tmp_path / "a", layout, part), values[part])
    chunk = tmp_path / "a/c/1/0/0"
    good = chunk.read_bytes()
    for bad in (
        good[:-1],
        good[:20] + bytes([good[20] ^ 1]) + good[21:],
        b"",
        (tmp_path / "a/c/0/0/0").read_bytes()[:8],
    ):
        chunk.write_bytes(bad)
        with pytest.raises(ValueError, match="chunk"):
            read_part(tmp_path / "a", layout, 1)
    chunk.unlink()
    assert read_part(tmp_path / "a", layout, 1) is None, "zarr knows that it is all zeros"
    claims = json.loads((tmp_path / "a/zarr.json").read_text())
    claims["shape"][1] = claims["chunk_grid"]["configuration"]["chunk_shape"][1] = 10**9
    (tmp_path / "a/zarr.json").write_text(json.dumps(claims))
    bomb = read_layout(tmp_path / "a")
    assert bomb is not None
    with pytest.raises(ValueError, match="claims"):
        read_part(tmp_path / "a", bomb, 0)
