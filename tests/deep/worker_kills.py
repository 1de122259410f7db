"""Workers killed at random moments, of this machine and of a Dask cluster: the run ends, and another completes it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.build import prepare_into_store
from neuroflamingo_preprocessing.stores.scans import ScanStore
from tests.deep.kills import ended, fork, left_over

SERIES = 24
CARD = encoder_card("fc-baseline", parcels=30)


def inputs(folder: Path) -> Path:
    """Ready series of connectivity's size, and the manifest that names them."""
    rng, lines = np.random.default_rng(0), []
    for number in range(SERIES):
        np.save(folder / f"sub-{number:02}.npy", rng.standard_normal((30, 20)).astype(np.float32))
        lines.append(json.dumps({"scan": f"sub-{number:02}.npy"}))
    (folder / "m.jsonl").write_text("\n".join(lines))
    return folder / "m.jsonl"


def content(store: Path) -> dict[str, bytes]:
    """Every file of a store's items."""
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in (store / "items").rglob("*") if p.is_file()}


def check(store: Path) -> None:
    """Every item that a store offers is whole."""
    if (store / "store.json").exists():
        opened = ScanStore(store)
        assert all(opened.fault(key, thorough=True) is None for key in opened)


def workers(count: int, folder: Path) -> Counter[str]:
    """Kill one of two worker processes of `prepare` so often; each time the command is run again.

    Raises:
        AssertionError: the command does not end, a file is not whole, or the store is not that of an undisturbed run.
    """
    manifest, moments, counts = inputs(folder), random.Random("kills of workers"), Counter[str]()
    words = [
        "prepare",
        str(manifest),
        "--encoder",
        "fc-baseline",
        "--option",
        "parcels=30",
        "--nprocs",
        "2",
        "-q",
        "-o",
    ]
    begin = time.monotonic()
    assert ended(fork([*words, str(folder / "alone")])) == 0
    whole, right = time.monotonic() - begin, content(folder / "alone")
    for _ in range(count):
        store = folder / "killed"
        shutil.rmtree(store, ignore_errors=True)
        child = fork([*words, str(store)])
        counts["killed" if _kill_worker(child, moments, moments.uniform(0, whole)) else "was done"] += 1
        code = ended(child)
        assert code in (0, 1), f"prepare whose worker was killed: exit {code}"
        counts[f"ended with {code}"] += 1
        check(store)
        assert ended(fork([*words, str(store)])) == 0 and content(store) == right and not left_over(store)
    return counts


def _kill_worker(parent: int, moments: random.Random, delay: float) -> bool:
    time.sleep(delay)
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        below = psutil.Process(parent).children(recursive=True)
        alive = [one.pid for one in below if any("spawn_main" in word for word in one.cmdline())]
        if alive:
            os.kill(moments.choice(alive), signal.SIGKILL)
            return True
    return False


def dask(count: int, folder: Path) -> Counter[str]:
    """Kill one of two workers of a Dask cluster so often, while a store is prepared there.

    Raises:
        AssertionError: a scan is lost, or the store is not that of an undisturbed run.
    """
    from distributed import LocalCluster

    manifest, moments, counts = inputs(folder), random.Random("kills of Dask workers"), Counter[str]()
    prepare_into_store(manifest, folder / "alone", CARD, Preparation())
    right = content(folder / "alone")
    where: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": None, "silence_logs": 50}
    for _ in range(count):
        store = folder / "killed"
        shutil.rmtree(store, ignore_errors=True)
        with LocalCluster(n_workers=2, threads_per_worker=1, **where) as local:
            cluster: Any = local  # its types are those of an asynchronous one
            victim = moments.choice(list(cluster.workers.values())).pid
            timer = threading.Timer(moments.uniform(0, 0.5), _kill, [victim])
            timer.start()
            summary = prepare_into_store(manifest, store, CARD, Preparation(), scheduler=cluster.scheduler_address)
            timer.join()
        assert summary.failed == 0 and summary.done + summary.present == SERIES, summary
        assert content(store) == right and not left_over(store)
        counts["killed"] += 1
    return counts


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    print(dict({"workers": workers, "Dask workers": dask}[sys.argv[1]](int(sys.argv[3]), Path(sys.argv[2]))))
