"""Outputs are whole or absent, whatever kills the run; JSON is read within limits."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from neuroflamingo_preprocessing.errors import ConfigError, ModelError, OutputError, ScanError
from neuroflamingo_preprocessing.files import (
    check_writable,
    load_json,
    read_json,
    write_bytes_atomic,
    write_text_atomic,
)

OLD, NEW = b"old content", b"new content " * 4096

KILLED_AT = """
import os, signal, sys
from neuroflamingo_preprocessing import files
step, path = sys.argv[1], sys.argv[2]
original = getattr(os, step)
def die_instead(*args, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, step, die_instead)
files.write_bytes_atomic(path, b"new content " * 4096, overwrite=True)
"""


def test_writes_new_file_with_the_permissions_of_the_umask(tmp_path: Path) -> None:
    target = write_bytes_atomic(tmp_path / "a.json", NEW)
    assert target.read_bytes() == NEW
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_existing_file_is_refused_then_replaced_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "a.html"
    target.write_bytes(OLD)
    for write in (write_bytes_atomic, check_writable):
        with pytest.raises(OutputError, match="--overwrite") as caught:
            write(target, NEW) if write is write_bytes_atomic else write(target)
        assert caught.value.exit_code == 73
        assert target.read_bytes() == OLD
    assert write_bytes_atomic(target, NEW, overwrite=True).read_bytes() == NEW


def test_a_file_that_appears_during_the_write_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.html"
    link = os.link

    def other_run_was_faster(*arguments: str) -> None:
        target.write_bytes(OLD)
        link(*arguments)

    monkeypatch.setattr(os, "link", other_run_was_faster)
    with pytest.raises(OutputError, match="appeared"):
        write_bytes_atomic(target, NEW)
    assert target.read_bytes() == OLD


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_killed_before_the_rename_leaves_the_old_file(tmp_path: Path, step: str) -> None:
    target = tmp_path / "a.html"
    target.write_bytes(OLD)
    run = subprocess.run([sys.executable, "-c", KILLED_AT, step, str(target)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert target.read_bytes() == OLD
    assert write_bytes_atomic(target, NEW, overwrite=True).read_bytes() == NEW


def test_killed_after_the_rename_leaves_the_new_file(tmp_path: Path) -> None:
    target = tmp_path / "a.html"
    target.write_bytes(OLD)
    run = subprocess.run([sys.executable, "-c", KILLED_AT, "unlink", str(target)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert target.read_bytes() == NEW


def test_disk_full_is_an_input_output_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_text_atomic(tmp_path / "a.txt", "text")
    assert caught.value.exit_code == 74
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_hold_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "a.html", tmp_path / "folder", tmp_path / "absent" / "a.html", Path(os.devnull)):
        for write in (
            lambda p: write_bytes_atomic(p, NEW, overwrite=True),
            lambda p: check_writable(p, overwrite=True),
        ):
            with pytest.raises(OutputError) as caught:
                write(place)
            assert caught.value.exit_code == 73
    assert Path(os.devnull).is_char_device()


def test_check_writable_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_names_that_utf8_cannot_hold_do_not_stop_the_report(tmp_path: Path) -> None:
    assert write_text_atomic(tmp_path / "a.txt", "sub-\udcff").read_text() == "sub-?"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "Expecting property name"),
        (b"\xfa\xfe", "can't decode"),
        (b"[1]", "another kind: list"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * 70 + b"{}", "72 bytes, at most 64 are read"),
        (None, "No such file"),
    ],
)
def test_json_that_cannot_be_read_says_why(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    most = 64 if "at most" in says else 2**20
    for error, code in ((ScanError, 65), (ModelError, 65), (ConfigError, 78)):
        with pytest.raises(error, match=rf"^a\.json cannot be read\n  expected: a card\n  seen: .*{says}") as caught:
            read_json(file, expected="a card", error=error, most=most)
        assert caught.value.exit_code == code


def test_json_behind_a_link_is_read_only_where_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"a": 1}', encoding="utf-8")
    (tmp_path / "b.json").symlink_to("a.json")
    assert load_json(tmp_path / "b.json") == {"a": 1}
    with pytest.raises(ValueError, match="a link"):
        load_json(tmp_path / "b.json", links=False)
