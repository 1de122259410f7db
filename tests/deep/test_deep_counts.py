"""A hundredth of the deep counts, with the same seeds; `python -m tests.deep.counts` is the whole."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from tests.deep import mutants

KILL = """
import sys
from pathlib import Path
from tests.deep import kills
if __name__ == "__main__":
    kills.inputs(Path(sys.argv[2]))
    print(dict(kills.run(sys.argv[1], int(sys.argv[3]), Path(sys.argv[2]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", mutants.KINDS)
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    count = mutants.KINDS[kind][1] // 100
    with tempfile.TemporaryDirectory(dir=mutants.memory_folder()) as folder:
        outcome = mutants.run(kind, count, Path(folder))
    assert not outcome.faults
    assert outcome.counts["read"] > count / 200, "the mutants are not all nonsense"
    assert sum(outcome.counts.values()) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "count"), [("report", 2), ("encode", 3), ("prepare", 2), ("convert", 3), ("train", 3)]
)
def test_killed_verbs_leave_whole_files_and_run_again(verb: str, count: int, tmp_path: Path) -> None:
    script = tmp_path / "kill.py"
    script.write_text(KILL)
    done = subprocess.run(
        [sys.executable, str(script), verb, str(tmp_path), str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "run again" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("what", "count"), [("workers", 1), ("Dask workers", 1)])
def test_killed_workers_cost_nothing_that_another_run_does_not_give(what: str, count: int, tmp_path: Path) -> None:
    words = ["-m", "tests.deep.worker_kills", what, str(tmp_path), str(count)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("kind", "number"), [("DICOM files", 16701)])
def test_mutants_that_were_faults_once(kind: str, number: int, tmp_path: Path) -> None:
    """An element of group 0000 in a file without preamble, which pydicom reads and does not write."""
    attempt = mutants.KINDS[kind][0](tmp_path)
    with pytest.raises(NeuroFlamingoError) as caught:
        attempt(np.random.default_rng([number, sum(kind.encode())]))
    assert caught.value.exit_code == 65
