"""Provenance tells what was used and nothing that names a person or a place on the disk."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from neuroflamingo.provenance import Stopwatch, command_line, redact
from neuroflamingo_preprocessing.files import sha256_of, sha256_of_text
from neuroflamingo_preprocessing.software import git_commit, software


def test_folders_are_redacted_and_options_kept() -> None:
    words = [
        "/usr/local/bin/neuroflamingo",
        "report",
        "/data/Hospital/Jane_Doe/sub-01_T1w.nii.gz",
        "../Jane_Doe/scan.nii.gz",
        "~/scans/a.nii.gz",
        "--example",
        "/data/Jane/b.nii.gz=/data/Jane/b.txt",
        "--output=/home/jane/out.html",
        "--seed",
        "3",
        "local.nii.gz",
        "--prompt",
        "<image>Report / findings: ",
    ]
    seen = command_line(words)
    assert seen[0] == "neuroflamingo"
    assert not any(name in " ".join(seen) for name in ("Jane", "Hospital", "home", "scans"))
    assert seen[2] == "<FOLDER>/sub-01_T1w.nii.gz"
    assert "<FOLDER>/b.nii.gz=<FOLDER>/b.txt" in seen
    assert seen[8:11] == ("--seed", "3", "local.nii.gz")
    assert redact("/data/<x>/a.nii.gz") == "<FOLDER>/a.nii.gz"
    for word in ("data/Jane_Doe/a.nii.gz", "./Jane_Doe/a.nii.gz", "Jane_Doe\\a.nii.gz", "./a.nii.gz"):
        assert redact(word) == "<FOLDER>/a.nii.gz"
    assert redact("b/a.nii.gz=Jane/b.txt") == "<FOLDER>/a.nii.gz=<FOLDER>/b.txt"
    assert redact("--output=Jane/") == "--output=<FOLDER>" and redact("Jane_Doe/a.ome.zarr") == "<FOLDER>/a.ome.zarr"
    assert redact("<image>Report / findings: ") == "<image>Report / findings: "


def test_names_of_folders_that_are_there_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Jane_Doe", "report", "Jane_Doe/out", "scan.zarr"):
        (tmp_path / name).mkdir()
    words = [
        "neuroflamingo",
        "report",
        "Jane_Doe/scan.nii.gz",
        "-o",
        "Jane_Doe",
        "--model",
        "Jane_Doe/out",
        "./scan.zarr",
    ]
    seen = command_line(words)
    assert seen[1:] == ("report", "<FOLDER>/scan.nii.gz", "-o", "<FOLDER>", "--model", "<FOLDER>", "<FOLDER>/scan.zarr")


def test_hashes_are_those_of_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert sha256_of_text("é") == hashlib.sha256("é".encode()).hexdigest()


def test_software_names_versions() -> None:
    import torch

    record = software()
    assert record.libraries["torch"] == torch.__version__
    assert record.libraries["nibabel"] and record.python and record.version


def test_commit_is_that_of_the_checkout() -> None:
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = git_commit()
    assert commit == (run.stdout.strip() if run.returncode == 0 else None)
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}", commit)


def test_stages_add_up_and_survive_failures() -> None:
    clock = Stopwatch()
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), clock.stage("read"):
            raise ValueError("broken")
    assert set(clock.seconds) == {"read"} and clock.peak_mb["read"] > 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", clock.started)
