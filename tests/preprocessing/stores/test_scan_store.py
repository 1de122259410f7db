"""Scan stores: what is there is whole, whatever happens to the process that writes, the disk, or the bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo_preprocessing.drafts import draft_file, draft_folder
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, ScanError
from neuroflamingo_preprocessing.files import sha256_of
from neuroflamingo_preprocessing.stores.dataset import ScanDataset
from neuroflamingo_preprocessing.stores.items import item_key
from neuroflamingo_preprocessing.stores.scans import ScanStore

AXES = ("channel", "x", "y", "z")
ABOUT = {"name": "sub-01_T1w.nii.gz", "warnings": [], "windows": []}


def make(path: Path, spec: str = "1" * 64) -> ScanStore:
    return ScanStore.create(path, encoder="vit3d", card_digest="0" * 64, spec_digest=spec)


def key_of(number: int) -> str:
    return item_key(f"{number:064x}", "1" * 64, {})


def windows(number: int = 0, count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(number)
    return [rng.standard_normal((1, 70, 40, 66)).astype(np.float32) for _ in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    return make(tmp_path / "store")


def left_over(store: ScanStore) -> list[Path]:
    return list((store.path / "items").rglob(".neuroflamingo-*"))


def test_what_goes_in_comes_out(store: ScanStore) -> None:
    tensors = windows()
    assert store.put(key_of(0), tensors, AXES, ABOUT)
    item = store[key_of(0)]
    assert np.array_equal(item.read(), np.stack(tensors)) and item.metadata == ABOUT
    assert np.array_equal(item.read((1, 0, slice(3, 67), slice(1, 9), 5)), tensors[1][0, 3:67, 1:9, 5])
    array = item.open()
    assert array.chunks == (1, 1, 64, 40, 64) and array.shards == (1, 1, 128, 40, 128)
    assert array.metadata.dimension_names == ("window", *AXES)
    assert not store.put(key_of(0), windows(9), AXES, ABOUT) and np.array_equal(item.read(), np.stack(tensors))
    assert list(store) == [key_of(0)] and len(store) == 1 and store.fault(key_of(0), thorough=True) is None
    assert left_over(store) == [] and list(ScanStore(store.path)) == list(store)


def test_series_are_one_chunk_and_a_shard_holds_a_window(store: ScanStore) -> None:
    store.put(key_of(1), [np.ones((424, 200), np.float32)] * 3, ("parcel", "time"), ABOUT)
    assert store[key_of(1)].open().chunks == (1, 424, 200)
    assert len([p for p in store[key_of(1)].folder.rglob("c/**/*") if p.is_file()]) == 3


def test_keys_are_what_an_item_is_made_of() -> None:
    base = ("a" * 64, "b" * 64, {"atlas": "c"})
    others = [("d" * 64, *base[1:]), (base[0], "d" * 64, base[2]), (*base[:2], {"atlas": "d"}), (*base[:2], {})]
    assert len({item_key(*parts) for parts in (base, *others)}) == 5 and item_key(*base) == item_key(*base)


HEX = "0123456789abcdef" * 4
NO_KEYS = [
    *("", ".", "..", "/", "//", "~", " ", "\0", "\n", "*", "?" * 64, "con", "nul", "-rf"),
    *("../" * n + "etc/passwd" for n in (1, 2, 8, 20)),
    *("/etc/passwd", "//etc/passwd", "C:\\Windows", "\\\\host\\share", "file:///etc/passwd", "./" + HEX, HEX + "/.."),
    *(HEX[:2] + "/" + HEX[3:], "/" + HEX[1:], HEX[:-3] + "/..", "..\\" + HEX[3:], HEX[:32] + "/../" + HEX[36:]),
    *("%2e" * 21 + "a", "%2e%2e%2f" + HEX[9:], "..%c0%af" + HEX[8:], "&#46;&#46;/" + HEX[11:]),
    *(HEX.upper(), "A" * 64, HEX[:-1] + "F", "Abc" + HEX[3:]),
    *(
        "\uff41" * 64,
        "\u0430" + HEX[1:],
        "\uff10" + HEX[1:],
        "\u0660" + HEX[1:],
        "\u0966" + HEX[1:],
        "\u00b2" + HEX[1:],
    ),
    *("\u212f" + HEX[1:], "\u0435" + HEX[1:], "\U0001d41a" + HEX[1:], "a\u0301" + HEX[2:], "\u200b" + HEX[1:]),
    *("\u202e" + HEX[1:], "\ufeff" + HEX[1:], "\u2024\u2024\u2215" + HEX[3:], "\u2025/" + HEX[2:], "\ud800" + HEX[1:]),
    *(HEX[:-1], HEX + "0", HEX * 2, HEX[:32], "a" * 255, "a" * 256, "a" * 4096, "a" * 10**6),
    *(
        HEX[:-1] + "\0",
        "\0" + HEX[1:],
        HEX + "\0",
        HEX[:-1] + "\n",
        HEX + "\n",
        "\t" + HEX[1:],
        HEX[:-1] + " ",
        " " + HEX,
    ),
    *("0x" + HEX[2:], "-" + HEX[1:], "+" + HEX[1:], "_" + HEX[1:], "1e" + HEX[:61] + ".", "g" * 64, HEX[:-1] + "g"),
    *(
        HEX[:-4] + ".tmp",
        ".neuroflamingo-" + HEX[15:],
        HEX[:-5] + ".json",
        "commit.json",
        "store.json",
        "../store.json",
    ),
]


def test_there_are_enough_of_them() -> None:
    assert len(set(NO_KEYS)) == len(NO_KEYS) >= 60


@pytest.mark.parametrize("key", NO_KEYS, ids=range(len(NO_KEYS)))
def test_keys_that_are_none(tmp_path: Path, key: str) -> None:
    store = make(tmp_path / "store")
    (tmp_path / "outside").write_text("not to be touched")
    before = sorted(tmp_path.rglob("*"))
    for act in (
        lambda: store[key],
        lambda: key in store,
        lambda: store.put(key, [np.zeros((2, 2), np.float32)], ("parcel", "time"), ABOUT),
        lambda: store.drop(key),
        lambda: store.fault(key),
    ):
        with pytest.raises(NotFoundError, match="not a key of a store"):
            act()
    assert sorted(tmp_path.rglob("*")) == before


def test_items_that_are_links_or_lie_elsewhere(store: ScanStore, tmp_path: Path) -> None:
    """What stands under a key's name without its own marker is not there; links in an item are faults."""
    with pytest.raises(NotFoundError):
        store["f" * 64]
    for number in range(2):
        store.put(key_of(number), windows(number, 1), AXES, ABOUT)
    folder = store[key_of(0)].folder
    moved = tmp_path / "moved"
    (folder / "tensor").rename(moved)
    (folder / "tensor").symlink_to(moved)
    assert "points elsewhere" in (store.fault(key_of(0)) or "")
    (folder / "commit.json").rename(tmp_path / "commit.json")
    (folder / "commit.json").symlink_to(tmp_path / "commit.json")
    assert store.fault(key_of(0)) is not None
    store.drop(key_of(0))
    assert (tmp_path / "commit.json").is_file() and moved.is_dir() and list(store) == [key_of(1)]


def test_damage_is_found(store: ScanStore) -> None:
    for number in range(5):
        store.put(key_of(number), windows(number), AXES, ABOUT)
    folders = [store[key_of(number)].folder for number in range(5)]
    shard = next(p for p in folders[0].rglob("*") if p.is_file() and "c" in p.relative_to(folders[0]).parts)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (folders[1] / "about.json").unlink()
    (folders[2] / "commit.json").write_text("{")
    (folders[3] / "about.json").unlink()
    (folders[3] / "about.json").symlink_to("/etc/passwd")
    assert store.fault(key_of(0)) is None and "other bytes" in (store.fault(key_of(0), thorough=True) or "")
    assert "about.json is missing" in (store.fault(key_of(1)) or "")
    assert "commit.json cannot be read" in (store.fault(key_of(2)) or "")
    assert "points elsewhere" in (store.fault(key_of(3)) or "") and store.fault(key_of(4), thorough=True) is None
    with pytest.raises(ScanError, match="is damaged"):
        store[key_of(0)].read()
    with pytest.raises(ModelError, match="cannot be read"):
        store[key_of(1)]
    store.drop(key_of(0))
    assert key_of(0) not in store and not folders[0].exists() and left_over(store) == []
    assert store.put(key_of(0), windows(0), AXES, ABOUT) and store.fault(key_of(0), thorough=True) is None


def test_items_without_a_marker_are_not_there(store: ScanStore) -> None:
    store.put(key_of(0), windows(), AXES, ABOUT)
    (store[key_of(0)].folder / "commit.json").unlink()
    assert key_of(0) not in store and list(store) == []
    with pytest.raises(NotFoundError):
        store[key_of(0)]


def _fill(path: Path, numbers: list[int]) -> None:
    store = make(path)
    for number in numbers:
        store.put(key_of(number), windows(number, 1), AXES, ABOUT)


@pytest.mark.slow
def test_eight_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tmp_path / "s", list(range(6)))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    store = ScanStore(tmp_path / "s")
    assert sorted(store) == sorted(key_of(n) for n in range(6)) and left_over(store) == []
    assert all(store.fault(key, thorough=True) is None for key in store)


def test_folders_that_are_no_store_of_this_kind(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ScanStore(tmp_path / "gone")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(OutputError, match="something else"):
        make(tmp_path / "letters")
    with pytest.raises(ModelError, match="cannot be read"):
        ScanStore(tmp_path / "letters")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        make(tmp_path / "file" / "inside")
    make(tmp_path / "store")
    with pytest.raises(ModelError, match="for something else"):
        make(tmp_path / "store", spec="2" * 64)
    head = tmp_path / "store" / "store.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"schema": 99}))
    with pytest.raises(ModelError, match="not a scan store of this version"):
        ScanStore(tmp_path / "store")


def test_the_sweep_of_a_store_reaches_every_folder_of_items(store: ScanStore) -> None:
    """Living drafts and those of other machines stay; see test_drafts.py."""
    store.put(key_of(0), windows(), AXES, ABOUT)
    place = store[key_of(0)].folder.parent
    with draft_folder(place / "a") as living, draft_file(store.path / "b") as written:
        for folder in (store.path, place):
            (folder / ".neuroflamingo-elsewhere-1-b.tmp").write_text("")
            old = folder / ".neuroflamingo-elsewhere-2-c.tmp"
            old.write_text("")
            os.utime(old, (0, 0))
        assert store.sweep() == 2 and living.exists() and written.exists()
        assert sorted(path.name for path in left_over(store)) == sorted(
            [living.name, ".neuroflamingo-elsewhere-1-b.tmp"]
        )


ORDERS = {
    "written": lambda files: sorted(files, key=lambda name: (name == "commit.json", name == "about.json", name)),
    "sorted": sorted,
    "reversed": lambda files: sorted(files, reverse=True),
}


@pytest.mark.parametrize("order", ORDERS)
def test_an_item_of_which_only_some_files_are_there_is_made_again(store: ScanStore, order: str) -> None:
    """What an interrupted copy or restore of a store leaves: any beginning of an item's files, in any order."""
    key = key_of(0)
    store.put(key, windows(), AXES, ABOUT)
    folder = store[key].folder
    whole = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    names = ORDERS[order](whole)
    assert len(names) > 3
    for count in range(len(names)):
        shutil.rmtree(folder)
        folder.mkdir()
        for name in names[:count]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(whole[name])
        assert store.put(key, windows(), AXES, ABOUT), names[:count]
        assert store.fault(key, thorough=True) is None
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(whole)
        assert not store.put(key, windows(), AXES, ABOUT) and not left_over(store)


def test_a_file_in_place_of_an_item_is_replaced(store: ScanStore) -> None:
    folder = store._folder(key_of(0))
    folder.parent.mkdir(parents=True)
    folder.write_text("what a copy that went wrong may leave")
    assert store.put(key_of(0), windows(), AXES, ABOUT) and store.fault(key_of(0), thorough=True) is None


def claim(folder: Path, **changes: object) -> None:
    """Change a `zarr.json`, and the marker with it, so that sizes and hashes agree."""
    file = folder / "tensor" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    marker = json.loads((folder / "commit.json").read_text())
    marker["files"]["tensor/zarr.json"] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (folder / "commit.json").write_text(json.dumps(marker))


def chunks(*shape: int) -> dict[str, object]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


BOMBS = [
    {"shape": [1, 1, 60_000, 60_000, 60_000]},
    {"shape": [2**47, 1, 70, 40, 66]},
    {"shape": [2**16 + 1, 1, 1, 1, 1], "chunk_grid": chunks(1, 1, 1, 1, 1)},
    {"shape": [1, 1, 10**15, 1, 1], "chunk_grid": chunks(1, 1, 10**15, 1, 1)},
    {"shape": [1, 1, 70, 40, 66], "chunk_grid": chunks(1, 1, 10**5, 10**5, 10**5)},
    {"shape": [1, 1, 20_000, 20_000, 20_000], "chunk_grid": chunks(1, 1, 20_000, 20_000, 20_000)},
    {"shape": [-1, 1, 70, 40, 66]},
    {"shape": [0, 1, 70, 40, 66]},
    {"shape": []},
    {"shape": [1.5, 1, 70, 40, 66]},
    {"shape": "many"},
    {"shape": [10**400]},
    {"data_type": "complex128"},
    {"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 10**12}}},
    {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
    {"codecs": None},
    {"zarr_format": 2},
    {"node_type": "group"},
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_a_zarr_json_that_claims_too_much(store: ScanStore, bomb: dict[str, object]) -> None:
    """A few kB that claim up to 800 TB and more: refused under 256 MB in 2 s of the processor, in a dataset too."""
    store.put(key_of(0), [np.ones((1, 70, 40, 66), np.float32)], AXES, ABOUT)
    claim(store[key_of(0)].folder, **bomb)
    store.index()  # loads pyarrow
    (store.path / "index.parquet").unlink()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert store.fault(key_of(0), thorough=True) is None, "the marker agrees"
    with pytest.raises(ScanError, match="is damaged"):
        store[key_of(0)].read(0)
    with pytest.raises(ScanError, match="is damaged"):
        ScanDataset(store)
    assert store.index().num_rows == 0
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024
