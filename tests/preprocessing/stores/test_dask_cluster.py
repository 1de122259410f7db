"""The same run on a Dask cluster: the same items, also when a worker is killed; errors that say what is missing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.inputs import Input
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores import dask_cluster
from neuroflamingo_preprocessing.stores.build import prepare_into_store, work_all
from neuroflamingo_preprocessing.stores.jobs import PrepareJob, Task
from neuroflamingo_preprocessing.stores.scans import ScanStore

SCANS = 24
ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ready series of connectivity's size."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(SCANS):
        np.save(tmp_path / "in" / f"sub-{number:02}.npy", rng.standard_normal((30, 20)).astype(np.float32))
        lines.append(json.dumps({"scan": f"in/sub-{number:02}.npy"}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers late."""
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 300.0)


@pytest.fixture
def cluster() -> Iterator[object]:
    """Two worker processes, on this machine only."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,  # type: ignore[arg-type]
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


CARD = encoder_card("fc-baseline", parcels=30)


def content(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in (store / "items").rglob("*") if p.is_file()}


def kill_one(cluster: object, done: threading.Event) -> None:
    """Kill the process of a worker as soon as the first item is there, without a word to its nanny."""
    while not list(Path("killed/items").glob("??/*/commit.json")) and not done.is_set():
        time.sleep(0.005)
    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_scans_only(place: Path, cluster: object) -> None:
    prepare_into_store("m.jsonl", "alone", CARD, Preparation())
    address = cluster.scheduler_address  # type: ignore[attr-defined]
    assert address.startswith("tcp://127.0.0.1:")
    done = threading.Event()
    killer = threading.Thread(target=kill_one, args=(cluster, done))
    killer.start()
    try:
        summary = prepare_into_store("m.jsonl", "killed", CARD, Preparation(), scheduler=address)
    finally:
        done.set()
        killer.join()
    assert summary.failed == 0 and summary.done + summary.present == SCANS
    assert content(Path("killed")) == content(Path("alone")) and len(ScanStore("killed")) == SCANS
    assert Path("killed/index.parquet").read_bytes() == Path("alone/index.parquet").read_bytes()
    lines = [json.loads(line) for line in Path("killed/log.jsonl").read_text().splitlines()]
    keys = [line["key"] for line in lines if line["status"] == "done"]
    assert len(set(keys)) == len(keys), "none is done twice"
    again = prepare_into_store("m.jsonl", "killed", CARD, Preparation(), scheduler=address)
    assert (again.done, again.present) == (0, SCANS)


@pytest.mark.slow
def test_a_scan_that_kills_every_worker(place: Path, cluster: object) -> None:
    prepare_into_store("m.jsonl", "killed", CARD, Preparation())
    address = cluster.scheduler_address  # type: ignore[attr-defined]
    job = Killing((place / "killed").absolute(), CARD, Preparation())
    tasks = [Task(Input(place / "in" / f"sub-{n:02}.npy"), f"sub-{n:02}.npy", str(n)) for n in range(4)]
    ends = {task.name: made for task, made in work_all(job, tasks, scheduler=address)}
    assert [ends[f"sub-{n:02}.npy"].status for n in range(4)] == ["present", "present", "failed", "present"]
    assert ends["sub-02.npy"].exit_code == 75 and "worker died" in (ends["sub-02.npy"].error or "")


class Killing(PrepareJob):
    """One of its scans ends whatever process works on it."""

    def origin(self, task: Task) -> tuple[str, dict]:
        if task.name == "sub-02.npy":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().origin(task)


@pytest.mark.slow
def test_local_from_the_command_line(place: Path, capsys) -> None:
    common = ["m.jsonl", "--encoder", "fc-baseline", "--option", "parcels=30", "-q"]
    assert main(["encode", *common, "-o", "here"]) == 0
    assert main(["encode", *common, "-o", "there", "--scheduler", "local", "--nprocs", "2"]) == 0
    assert f"there: {SCANS} encoded" in capsys.readouterr().out
    assert content(Path("here")) == content(Path("there"))


@pytest.mark.slow
def test_what_is_no_scheduler(place: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["prepare", "m.jsonl", "-o", "s", "--encoder", "fc-baseline", "--option", "parcels=30", "-q"]
    for wrong in ("here", "host:8786", "http://host:80", "tcp://", ""):
        assert main([*common, "--scheduler", wrong]) == 2
    assert "is not an address" in capsys.readouterr().err
    assert main([*common, "--scheduler", "tcp://127.0.0.1:1", "--nprocs", "2"]) == 2
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 0.5)
    with socket.socket() as mute:  # listens, and says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        for port in (1, mute.getsockname()[1]):
            assert main([*common, "--scheduler", f"tcp://127.0.0.1:{port}"]) == 75
            assert "does not answer" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "distributed", None)
        assert main([*common, "--scheduler", "local"]) == 69
        assert "neuroflamingo[cluster]" in capsys.readouterr().err
    assert not list(Path("s").rglob("commit.json"))


@pytest.mark.slow
def test_a_scheduler_that_goes_away(place: Path, cluster: object, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = dask_cluster._spread

    def closing(*arguments: Any) -> Iterator[Any]:
        """It goes after the first result."""
        results = spread(*arguments)
        yield next(results)
        cluster.close()  # type: ignore[attr-defined]
        yield from results

    monkeypatch.setattr(dask_cluster, "_spread", closing)
    with pytest.raises(NeuroFlamingoError, match="was lost") as raised:
        prepare_into_store("m.jsonl", "s", CARD, Preparation(), scheduler=cluster.scheduler_address)  # type: ignore[attr-defined]
    assert raised.value.exit_code == 75
    rest = prepare_into_store("m.jsonl", "s", CARD, Preparation())
    assert rest.failed == 0 and rest.done + rest.present == SCANS and len(ScanStore("s")) == SCANS
