"""Scan stores: what is there is whole, whatever happens to the process that writes, the disk, or the bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo_preprocessing import scan_store
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, ScanError
from neuroflamingo_preprocessing.scan_store import ScanStore, item_key

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
    return list((store.path / "items").rglob(".draft-*"))


def test_what_goes_in_comes_out(store: ScanStore) -> None:
    tensors = windows()
    assert store.put(key_of(0), tensors, AXES, ABOUT)
    item = store[key_of(0)]
    assert np.array_equal(item.read(), np.stack(tensors)) and item.about == ABOUT
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


@pytest.mark.parametrize(
    "key",
    ["../../etc/passwd", "/etc/passwd", "", "A" * 64, "ａ" * 64, "a" * 63, "a" * 65, "..", "a" * 63 + "\0", "%2e" * 21],
)
def test_keys_that_are_none(store: ScanStore, key: str) -> None:
    for act in (
        lambda: store[key],
        lambda: key in store,
        lambda: store.put(key, windows(), AXES, ABOUT),
        lambda: store.drop(key),
    ):
        with pytest.raises(NotFoundError):
            act()
    with pytest.raises(NotFoundError):
        store["f" * 64]


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


STEPS = ["_write_tensor", "_sha256", "_sync", "_sync_folder"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_disk_that_fails_leaves_nothing(
    store: ScanStore, monkeypatch: pytest.MonkeyPatch, step: str, after: int
) -> None:
    true, calls = getattr(scan_store, step), []

    def failing(*arguments):
        calls.append(step)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        return true(*arguments)

    monkeypatch.setattr(scan_store, step, failing)
    try:
        store.put(key_of(0), windows(), AXES, ABOUT)
    except OutputError as error:
        assert error.exit_code == 74 and "No space left" in str(error)
    monkeypatch.undo()
    assert left_over(store) == []
    if key_of(0) in store:
        assert store.fault(key_of(0), thorough=True) is None
    else:
        assert store.put(key_of(0), windows(), AXES, ABOUT)


WRITER = """
import sys
from pathlib import Path
from tests.preprocessing.test_scan_store import AXES, ABOUT, key_of, make, windows
store = make(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(1000):
    store.put(key_of(number), windows(number), AXES, ABOUT)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(6))
def test_a_killed_writer_leaves_whole_items_only(tmp_path: Path, moment: int) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "s")], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2 + 0.07 * moment)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    store = ScanStore(tmp_path / "s")
    whole = list(store)
    assert all(store.fault(key, thorough=True) is None for key in whole)
    store.sweep()
    assert left_over(store) == []
    for number in range(len(whole) + 1):
        store.put(key_of(number), windows(number), AXES, ABOUT)
    assert all(np.array_equal(store[key_of(n)].read(), np.stack(windows(n))) for n in range(min(3, len(whole) + 1)))


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
    with pytest.raises(ModelError, match="another preparation"):
        make(tmp_path / "store", spec="2" * 64)
    head = tmp_path / "store" / "store.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"schema": 99}))
    with pytest.raises(ModelError, match="no scan store of this version"):
        ScanStore(tmp_path / "store")


def test_drafts_of_living_processes_and_other_machines_stay(store: ScanStore) -> None:
    store.put(key_of(0), windows(), AXES, ABOUT)
    place = store[key_of(0)].folder.parent
    host = scan_store.socket.gethostname()
    names = [f".draft-{host}-{os.getpid()}-a", ".draft-elsewhere-1-b", f".draft-{host}-4194305-c"]
    for name in names:
        (place / name).mkdir()
    assert store.sweep() == 1 and sorted(p.name for p in left_over(store)) == sorted(names[:2])
