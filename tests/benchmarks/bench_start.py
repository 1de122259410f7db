"""From the command to its first voxel and to its end, beside an earlier commit, interleaved in one run.

The earlier commit is a checkout that `BASE` names; without one, this tree's figures alone. Run by `make bench`, or:

    git worktree add ../before fb98b0a
    BASE=../before python tests/benchmarks/bench_start.py --rounds 9 --write docs/performance.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from comparing import OURS, Comparison
from preparing_data import begin_with, folder

ROOT = Path(__file__).resolve().parent.parent.parent
PROBE = Path(__file__).resolve().with_name("start_probe.py")
HELP, LIST = "`--help`", "`encoders list`"
FIRST, WHOLE = "`report`, to the first voxel", "`report`, whole"
GOALS = {FIRST: 1.67, WHOLE: 1.0}
NOTE = (
    "Processor time of a process of its own, Python's start and end included; modules compiled before. "
    f"Load average when it began: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
)


def trees() -> dict[str, Path]:
    """This checkout, and the earlier one by its commit."""
    found = {OURS: ROOT}
    if base := os.environ.get("BASE"):
        ask = ["git", "-C", base, "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
        found[f"commit {commit}"] = Path(base).resolve()
    return found


def paint(place: Path) -> None:
    """One scan, by this checkout."""
    command(ROOT, "paint", "--cases", "1", "--output", str(place / "painted"))


def command(tree: Path, *words: str) -> str:
    """What a command of a checkout prints; its modules are compiled at the first call and kept for the next."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (tree, tree / "encoders", tree / "preprocessing")))
    environment["PYTHONPYCACHEPREFIX"] = str(folder() / "compiled")
    called = [sys.executable, str(PROBE), str(tree), *words]
    return subprocess.run(called, check=True, env=environment, capture_output=True, text=True, cwd=folder()).stdout


def scan() -> str:
    return str(next((folder() / "painted").glob("*.nii.gz")))


def first_voxel(tree: Path) -> None:
    command(tree, "--first-voxel", "report", scan(), "-o", "page.html", "--overwrite", "--quiet")


def whole_report(tree: Path) -> str:
    """The text of the report, which may not change; its page and the rest are written too."""
    command(tree, "report", scan(), "-o", str(folder()), "--overwrite", "--quiet")
    return json.loads(next(folder().glob("*.report.json")).read_text())["text"]


def agree(first: Any, other: Any) -> None:
    assert first == other, (first, other)


def beside(work: Callable[[Path], Any]) -> dict[str, Callable[[], Callable[[], Any]]]:
    """The same work for each checkout; there is nothing to set up."""

    def job(tree: Path) -> Callable[[], Callable[[], Any]]:
        return lambda: partial(work, tree)

    return {name: job(tree) for name, tree in trees().items()}


SYSTEMS = {
    HELP: beside(lambda tree: command(tree, "--help") and None),
    LIST: beside(lambda tree: command(tree, "encoders", "list") and None),
    FIRST: beside(first_voxel),
    WHOLE: beside(whole_report),
}


if __name__ == "__main__":
    sys.exit(
        Comparison(
            __file__,
            "bench-start",
            SYSTEMS,
            GOALS,
            agree,
            __doc__ or "",
            weighed=frozenset(),
            begin=begin_with(paint),
            note=NOTE,
        ).main()
    )
