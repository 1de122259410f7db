"""The parquet index of a store: what it says, and that markers are believed and not it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.spec import ScanSpec
from neuroflamingo_preprocessing.stores.item_index import INDEX, write_index
from neuroflamingo_preprocessing.stores.scans import ScanStore
from tests.preprocessing.stores.store_faults import about, key_of, numbers, scan_store

SHAPE = (6, 5)


def put(store: ScanStore, number: int, **more: object) -> None:
    store.put(key_of(number), [numbers(number, *SHAPE)] * 2, ("parcel", "time"), about(number) | more)


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    store = scan_store(tmp_path / "s")
    put(store, 0)
    put(store, 1, name="sub-01_ses-2_task-rest_run-3_bold.nii.gz", quality={"tsnr": 40, "method": "robust"})
    put(store, 2, name="scan.nii", warnings=[], quality=None)
    write_index(store)
    return store


def test_pandas_reads_it(store: ScanStore) -> None:
    frame = pandas.read_parquet(store.path / INDEX).set_index("key")
    assert sorted(frame.index) == list(frame.index) == list(store)
    row = frame.loc[key_of(1)]
    assert (row["name"], row["sub"], row["ses"], row["task"], row["run"]) == (
        "sub-01_ses-2_task-rest_run-3_bold.nii.gz",
        *("01", "2", "rest", "3"),
    )
    assert row["entities"] == "sub-01_ses-2_task-rest_run-3" and row["input_sha256"] == f"{1:064x}"
    assert list(row["shape"]) == [2, *SHAPE] and row["dtype"] == "float32" and row["windows"] == 2
    assert row["warnings"] == 1 and frame.loc[key_of(2), "warnings"] == 0
    assert row["quality_tsnr"] == 40 and np.isnan(row["quality_coverage"]) and "quality_method" not in frame
    assert row["bytes"] == sum(p.stat().st_size for p in store[key_of(1)].folder.rglob("[!c]*") if p.is_file())


@pytest.mark.parametrize("harm", ["gone", "half", "flipped", "text", "empty", "link", "other", "forged", "folder"])
def test_a_damaged_index_is_made_again(store: ScanStore, harm: str, tmp_path: Path) -> None:
    path = store.path / INDEX
    whole, table = path.read_bytes(), store.index()
    path.unlink()
    if harm == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "flipped":
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    elif harm == "text":
        path.write_text("key,name\n")
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "link":
        (tmp_path / "elsewhere").write_bytes(whole)
        path.symlink_to(tmp_path / "elsewhere")
    elif harm == "other":
        pq.write_table(pa.table({"key": list(store)}), path)
    elif harm == "forged":  # an item that no marker knows, and one that is missing
        rows = table.to_pylist()
        pq.write_table(pa.Table.from_pylist([rows[0] | {"key": "f" * 64}, *rows[1:]], schema=table.schema), path)
    elif harm == "folder":
        path.mkdir()
    assert store.index().equals(table)
    if harm != "folder":
        assert path.read_bytes() == whole and not path.is_symlink()


def test_it_follows_the_markers(store: ScanStore) -> None:
    (store[key_of(0)].folder / "commit.json").unlink()
    put(store, 5)
    assert store.index().column("key").to_pylist() == list(store) == sorted(key_of(n) for n in (1, 2, 5))
    (store[key_of(1)].folder / "about.json").write_text("{")
    (store.path / INDEX).unlink()
    assert store.index().column("key").to_pylist() == sorted(key_of(n) for n in (2, 5)), (
        "what cannot be read is left out"
    )
    empty = scan_store(store.path.parent / "empty")
    assert empty.index().num_rows == 0 and empty.index().column_names[:2] == ["key", "name"]


def test_a_manifest_may_be_parquet(tmp_path: Path, spec: ScanSpec) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    frame = pandas.DataFrame({"scan": ["a.nii.gz", "b.nii.gz"], "repetition_time": [0.8, None], "age": [3, 4]})
    frame.to_parquet(tmp_path / "m.parquet")
    found = find_inputs(tmp_path / "m.parquet", spec)
    assert [(one.path.name, one.repetition_time) for one in found] == [("a.nii.gz", 0.8), ("b.nii.gz", None)]
    pandas.DataFrame({"scan": ["a.nii.gz", "c.nii.gz", None]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ScanError, match="has 2 faults") as raised:
        find_inputs(tmp_path / "m.parquet", spec)
    assert "line 2: there is no file c.nii.gz" in str(raised.value) and "line 3: no `scan`" in str(raised.value)
    frame[["age"]].to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ScanError, match="has 2 faults"):
        find_inputs(tmp_path / "m.parquet", spec)
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ScanError, match="cannot be read"):
        find_inputs(tmp_path / "m.parquet", spec)
    frame[:0].to_parquet(tmp_path / "m.parquet")
    with pytest.raises(NotFoundError):
        find_inputs(tmp_path / "m.parquet", spec)
