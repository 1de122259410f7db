"""Drafts: a folder that is replaced is always there, living drafts stay, what killed processes left is removed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neuroflamingo_preprocessing import drafts
from neuroflamingo_preprocessing.drafts import STALE_S, draft_file, draft_folder, replace_folder, sweep_drafts
from neuroflamingo_preprocessing.errors import OutputError
from neuroflamingo_preprocessing.files import check_writable

HOLD = """
import sys, time
from pathlib import Path
from neuroflamingo_preprocessing.drafts import draft_file, draft_folder
with draft_file(sys.argv[1]) as one, draft_folder(sys.argv[1]) as other:
    (other / "part").write_text("half")
    print(one.name, other.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path: Path):
    """Another process that is writing two drafts, and their names."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out.json")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    names = process.stdout.readline().split()
    yield process, [tmp_path / name for name in names]
    process.kill()
    process.wait()


def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes(tmp_path: Path, writer) -> None:
    process, names = writer
    assert sweep_drafts(tmp_path) == 0 and all(name.exists() for name in names)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sweep_drafts(tmp_path) == 2 and not list(tmp_path.iterdir())


def test_containers_with_one_name_and_one_process_number(tmp_path: Path, writer, monkeypatch) -> None:
    """The sweep of a second container, where the first one's process number is another's or nobody's."""
    _, names = writer
    with monkeypatch.context() as other, draft_file(tmp_path / "mine.json") as mine:
        other.setattr(socket, "gethostname", lambda: "worker")
        other.setattr(os, "getpid", lambda: 1)
        other.setattr(os, "kill", lambda pid, number: (_ for _ in ()).throw(ProcessLookupError))
        assert sweep_drafts(tmp_path) == 0 and mine.exists() and all(name.exists() for name in names)


def test_drafts_of_other_machines_stay_for_a_day(tmp_path: Path, writer) -> None:
    _, names = writer
    other = tmp_path / ".neuroflamingo-0a1b2c3d-17-abc.tmp"
    other.mkdir()
    (other / "part").write_text("half")
    older = tmp_path / ".neuroflamingo-host-of-before-17-abc.tmp"
    older.write_text("named as versions before named them")
    foreign = tmp_path / ".neuroflamingo-notes"
    foreign.write_text("not a draft")
    assert sweep_drafts(tmp_path) == 0
    long_ago = time.time() - STALE_S - 60
    for path in (other / "part", other, older, foreign, *names):
        os.utime(path, (long_ago, long_ago))
    assert sweep_drafts(tmp_path) == 2
    assert sorted(tmp_path.iterdir()) == sorted([foreign, *names]), "an old draft that is locked is alive"


def test_without_locks_only_age_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(drafts, "fcntl", None)
    with draft_file(tmp_path / "a") as mine:
        assert sweep_drafts(tmp_path) == 0 and mine.exists()
        long_ago = time.time() - STALE_S - 60
        os.utime(mine, (long_ago, long_ago))
        assert sweep_drafts(tmp_path) == 1 and not mine.exists()


def test_the_next_run_in_a_folder_removes_them(tmp_path: Path, writer) -> None:
    process, names = writer
    process.kill()
    process.wait()
    check_writable(tmp_path / "report.html")
    assert not any(name.exists() for name in names)


def test_a_draft_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (draft_file, draft_folder):
        with pytest.raises(OutputError, match="cannot be created"), make(tmp_path / "file" / "inside"):
            pass


KILL_AT_EACH_RENAME = """
import os, signal, sys
from pathlib import Path
from neuroflamingo_preprocessing import drafts
folder, moment, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "yes"
if not exchange:
    drafts.exchange = lambda one, other: False  # a file system that cannot
steps = 0
def next_step(*_):
    global steps
    steps += 1
    if steps == moment:
        os.kill(os.getpid(), signal.SIGKILL)
with drafts.draft_folder(folder / "best") as draft:
    (draft / "which").write_text("new")
    rename, exchanged, rmtree = Path.rename, drafts.exchange, drafts.shutil.rmtree
    def before_and_after(act):
        def call(*arguments, **how):
            next_step()
            try:
                return act(*arguments, **how)
            finally:
                next_step()
        return call
    Path.rename = before_and_after(rename)
    drafts.exchange = before_and_after(exchanged)
    drafts.shutil.rmtree = before_and_after(rmtree)
    drafts.replace_folder(draft, folder / "best")
"""


@pytest.mark.parametrize("exchange", ["yes", "no"])
def test_a_folder_that_is_replaced_is_there_after_a_kill_at_any_step(tmp_path: Path, exchange: str) -> None:
    seen, codes = set(), []
    for moment in range(1, 40):
        place = tmp_path / str(moment)
        (place / "best").mkdir(parents=True)
        (place / "best" / "which").write_text("old")
        done = subprocess.run(
            [sys.executable, "-c", KILL_AT_EACH_RENAME, str(place), str(moment), exchange], check=False
        )
        codes.append(done.returncode)
        if exchange == "yes":
            assert (place / "best" / "which").exists(), "there is no moment without"
        sweep_drafts(place)
        assert [path.name for path in place.iterdir()] == ["best"]
        seen.add((place / "best" / "which").read_text())
        if done.returncode == 0:
            break
    assert codes[-1] == 0 and len(codes) > 4 and set(codes[:-1]) == {-signal.SIGKILL}
    assert seen == {"old", "new"}


def test_a_failed_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(drafts, "exchange", lambda one, other: False)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "which").write_text("old")
    with draft_folder(tmp_path / "best") as draft:
        gone = draft.with_name("gone")
        with pytest.raises(OSError):
            replace_folder(gone, tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "which").read_text() == "old"


def test_replacing_in_one_step_is_what_this_system_does(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    if sys.platform.startswith("linux"):
        assert drafts.exchange(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "a" / "which").read_text() == "b"
    shutil.rmtree(tmp_path / "a")
    assert not drafts.exchange(tmp_path / "a", tmp_path / "b")
