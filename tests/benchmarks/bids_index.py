"""Indexing a BIDS dataset of 5,000 files beside pybids without metadata and beside bids2table's own index.

500 subjects with two anatomical images and three runs each, and a sidecar for every image; empty files. "Again" is what
every later run of `prepare` does: look at the times of the folders and read the kept parquet; pybids indexes anew.
Part of `make bench` through bench_preparing.py, or alone:

    python tests/benchmarks/bids_index.py --rounds 5
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

FIRST, AGAIN = "BIDS index of 5,000 files", "BIDS index of 5,000 files, again"
GOALS = {FIRST: 5.0, AGAIN: 50.0}
SUBJECTS = 500
ANAT = ("T1w", "T2w")
FUNC = tuple(f"task-rest_run-{number}_bold" for number in (1, 2, 3))


@lru_cache(maxsize=1)
def dataset() -> Path:
    """The dataset; removed at the end. Old enough when it is given that its index is kept."""
    place = Path(tempfile.mkdtemp(prefix="bench-bids-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    os.environ["NEUROFLAMINGO_HOME"] = str(place / "home")
    root = place / "ds"
    for number in range(SUBJECTS):
        for kind, names in (("anat", ANAT), ("func", FUNC)):
            folder = root / f"sub-{number:04}" / kind
            folder.mkdir(parents=True)
            for name in names:
                (folder / f"sub-{number:04}_{name}.nii.gz").touch()
                (folder / f"sub-{number:04}_{name}.json").write_text("{}")
    (root / "dataset_description.json").write_text('{"Name": "bench", "BIDSVersion": "1.10.0"}')
    time.sleep(2.1)
    return root


def ours(again: bool) -> Callable[[], Any]:
    from neuroflamingo_preprocessing.bids.index import bids_index

    root = dataset()

    def work() -> Any:
        if not again:
            shutil.rmtree(root.parent / "home", ignore_errors=True)
        return bids_index(root).table

    if again:
        work()
    return work


def with_pybids() -> Callable[[], Any]:
    from bids import BIDSLayout, BIDSLayoutIndexer

    root = dataset()
    return lambda: BIDSLayout(root, validate=False, indexer=BIDSLayoutIndexer(validate=False, index_metadata=False))


def with_bids2table() -> Callable[[], Any]:
    from bids2table import index_dataset

    root = dataset()
    return lambda: index_dataset(root)


SYSTEMS: dict[str, dict[str, Callable[[], Callable[[], Any]]]] = {
    FIRST: {"neuroflamingo": lambda: ours(False), "pybids": with_pybids, "bids2table": with_bids2table},
    AGAIN: {"neuroflamingo": lambda: ours(True), "pybids": with_pybids},
}


def agree(first: Any, other: Any) -> None:
    """Not timed: asking pybids for the subjects takes longer than its index."""
    assert _subjects(first) == _subjects(other) == {f"{number:04}" for number in range(SUBJECTS)}


def _subjects(index: Any) -> set[str]:
    return set(index.get_subjects() if hasattr(index, "get_subjects") else index["sub"].to_pylist())


if __name__ == "__main__":
    from comparing import Comparison

    sys.exit(Comparison(__file__, "bench-bids", SYSTEMS, GOALS, agree, __doc__ or "").main())
