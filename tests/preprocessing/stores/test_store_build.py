"""`prepare`: an input to a store; run again it does what is missing, a dead worker costs its own scans only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores import pool
from neuroflamingo_preprocessing.stores.build import prepare_into_store, work_all
from neuroflamingo_preprocessing.stores.jobs import Job, PrepareJob, Task
from neuroflamingo_preprocessing.stores.scans import ScanStore
from tests.preprocessing.stores.run_datasets import COMMON, LABELS, LAS, run, save, summary


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of four runs, and an atlas beside it."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        save(tmp_path / f"ds/sub-0{number}/func/sub-0{number}_task-rest_bold.nii.gz", run(number))
    (tmp_path / "ds" / "dataset_description.json").write_text("{}")
    save(tmp_path / "atlas.nii.gz", LABELS)
    return tmp_path


def rewrite(path: Path, content: bytes) -> None:
    """Other bytes in the same file, with the time that it had."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_dataset_then_again(place: Path, capsys) -> None:
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 0
    assert capsys.readouterr().out.startswith("store: 4 prepared, 0 already present, 0 failed; ")
    store = ScanStore("store")
    items = [store[key] for key in store]
    assert len(items) == 4 and store.head["encoder"] == "fc-baseline"
    series = {item.metadata["name"]: item.read() for item in items}
    wanted = np.stack([run(2)[n == LABELS].mean(0) for n in range(1, 31)])
    np.testing.assert_allclose(series["sub-02_task-rest_bold.nii.gz"][0], wanted, rtol=1e-5)
    assert (
        items[0].metadata["windows"] == [{"first_frame": 0, "frames": 12}]
        and len(items[0].metadata["input"]["sha256"]) == 64
    )
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path("store/items").rglob("*")}
    contents = {path: path.read_bytes() for path in place.glob("ds/sub-*/func/*_bold.nii.gz")}
    for path, content in contents.items():  # not read again while size and time are the same
        rewrite(path, bytes(len(content)))
    assert main([*COMMON, "--nprocs", "1", "-q", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["done"], said["present"]) == (0, 4) and said["seconds"] > 0
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path("store/items").rglob("*")} == before
    for path, content in contents.items():
        rewrite(path, content)
    Path("store/seen.jsonl").write_text('{"seen": "half a li')
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 0 and summary()["present"] == 4
    everything = "".join(p.read_text() for p in Path("store").rglob("*.json*"))
    assert str(place) not in everything and "/func/" not in everything


def test_what_is_damaged_or_new_is_made(place: Path, capsys) -> None:
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 0
    store = ScanStore("store")
    first, second, *_ = list(store)
    (store[first].folder / "about.json").write_text("{}")
    shard = next(p for p in store[second].folder.rglob("c/**/*") if p.is_file())
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    save(place / "ds/sub-09/func/sub-09_task-rest_bold.nii.gz", run(9))
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 0
    assert (summary()["done"], summary()["present"], summary()["dropped"]) == (2, 3, 1)
    assert main([*COMMON, "--nprocs", "1", "-q", "--verify"]) == 0
    assert (summary()["done"], summary()["present"], summary()["dropped"]) == (1, 4, 1)
    assert all(store.fault(key, thorough=True) is None for key in store) and len(store) == 5
    lines = [json.loads(line) for line in Path("store/log.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines].count("dropped") == 2


def test_some_fail_and_the_others_are_made(place: Path, capsys) -> None:
    (place / "ds/sub-01/func/sub-01_task-rest_bold.nii.gz").write_bytes(b"no scan")
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 1
    out, err = capsys.readouterr()
    assert (
        "3 prepared, 0 already present, 1 failed" in out and "sub-01_task-rest_bold.nii.gz is not a NIfTI file" in err
    )
    assert summary()["failures"][0]["exit_code"] == 65
    assert main([*COMMON, "--nprocs", "1", "-q", "--participant-label", "01"]) == 65
    assert main([*COMMON, "--nprocs", "1", "-q", "--participant-label", "sub-02,03"]) == 0
    assert summary()["scans"] == 2
    (place / "ds/sub-01/func/sub-01_task-rest_bold.nii.gz").unlink()
    (place / "ds/sub-01/func/sub-01_task-rest_bold.nii.gz").symlink_to("../../.git/annex/objects/gone")
    capsys.readouterr()
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 1
    assert "git-annex" in capsys.readouterr().err and (summary()["done"], summary()["present"]) == (0, 3)
    assert main([*COMMON, "-q", "--participant-label", "07"]) == 66
    assert "both 01 and sub-01" in capsys.readouterr().err


def test_parts_of_a_job_array(place: Path, capsys) -> None:
    for part in ("1", "2", "3"):
        assert main([*COMMON, "--nprocs", "1", "-q", "--num-parts", "3", "--part-id", part]) == 0
    assert [summary(name=f"summary.{n}-of-3.json")["scans"] for n in (1, 2, 3)] == [2, 1, 1]
    assert len(ScanStore("store")) == 4
    assert main([*COMMON, "-q", "--num-parts", "3", "--part-id", "4"]) == 2
    assert main([*COMMON, "-q", "--num-parts", "3"]) == 2


def test_a_dry_run_writes_nothing(place: Path, capsys) -> None:
    assert main([*COMMON, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "4 scans for fc-baseline" in text and "sub-00_task-rest_bold.nii.gz" in text and "under a minute" in text
    assert main([*COMMON, "--dry-run", "--json", "--nprocs", "3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (
        plan["scans"] == 4 and plan["workers"] == 3 and plan["unreadable"] == 0 and plan["memory_per_worker_mb"] > 200
    )
    assert not Path("store").exists()


def test_a_manifest_with_repetition_times(place: Path) -> None:
    rng = np.random.default_rng(0)
    np.save("a.npy", (9000 + rng.normal(0, 100, (424, 210))).astype(np.float32))
    Path("m.jsonl").write_text(
        '{"scan": "a.npy", "repetition_time": 0.735}\n{"scan": "a.npy", "repetition_time": 1.47}\n'
    )
    common = ["prepare", "m.jsonl", "-o", "series", "--encoder", "brainlm-13m", "--raw", "--nprocs", "1", "-q"]
    assert main(common) == 0
    shapes = sorted(ScanStore("series")[key].read().shape for key in ScanStore("series"))
    assert shapes == [(1, 424, 200), (2, 424, 200)]
    assert main([*common[:5], "swift", "--nprocs", "1", "-q"]) == 65  # another encoder's input into the same store


def test_another_atlas_is_another_item(place: Path) -> None:
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 0
    save(place / "atlas.nii.gz", LABELS[::-1].copy())
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 0
    assert len(ScanStore("store")) == 8


def _dies(job: Job, task: Task):
    if "sub-02" in task.path.name:
        os._exit(9)
    return _TRUE(job, task)


_TRUE = pool.work


def _begin_dying(job: Job) -> None:
    pool._JOB = job
    pool.work = _dies


@pytest.mark.slow
def test_a_dead_worker_costs_its_own_scan_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = encoder_card("fc-baseline", parcels=30)
    how = Preparation.of(card.scan, atlas="atlas.nii.gz")
    with monkeypatch.context() as patched:
        patched.setattr(pool, "_begin", _begin_dying)
        done = prepare_into_store("ds", "store", card, how, processes=2)
    assert (done.done, done.failed) == (3, 1)
    assert done.failures[0]["file"].startswith("sub-02") and "worker died" in done.failures[0]["error"]
    assert done.failures[0]["exit_code"] == 75
    again = prepare_into_store("ds", "store", card, how, processes=2)
    assert (again.done, again.present, again.failed) == (1, 3, 0)
    assert list(work_all(PrepareJob(Path("store"), card, how), [], 2)) == []


@pytest.mark.slow
def test_a_worker_has_one_thread_and_does_not_load_torch(tmp_path: Path) -> None:
    """torch takes longer to load than a head takes to prepare; what is loaded later has one thread all the same."""
    nib.Nifti1Image(run(0)[..., 0], LAS).to_filename(tmp_path / "a.nii")
    code = (
        "import json, sys\n"
        "from neuroflamingo_preprocessing.stores.pool import use_one_thread\n"
        "from neuroflamingo_encoders import encoder_card\n"
        "use_one_thread()\n"
        "from neuroflamingo_preprocessing import prepare, read_scan\n"
        "spec = encoder_card('vit3d').scan\n"
        "spec = spec.model_copy(update={'steps': tuple(s for s in spec.steps if s.name != 'affine_alignment')})\n"
        "prepare(read_scan('a.nii'), spec)\n"
        "before = 'torch' in sys.modules\n"
        "import torch, threadpoolctl\n"
        "threads = {one['num_threads'] for one in threadpoolctl.threadpool_info()}\n"
        "print(json.dumps([before, torch.get_num_threads(), sorted(threads)]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, 1, [1]]
