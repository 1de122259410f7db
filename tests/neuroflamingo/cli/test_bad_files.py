"""Bad files at the command line: the message of four lines, the exit code, and nothing that looks like a crash."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo.inference import loaded_model as opened_module

AFFINE = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -100], [0, 0, 6, -70], [0, 0, 0, 1]])
SHAPE = (30, 32, 28)
WORDS = ("expected: ", "seen: ", "try: ")


def good(**fields: object) -> bytes:
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16), AFFINE)  # type: ignore[attr-defined]
    raw = image.to_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)  # type: ignore[attr-defined]
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + raw[348:]


def packed(raw: bytes) -> bytes:
    return gzip.compress(raw, 1)


BAD: dict[str, tuple[bytes, str]] = {
    "nothing.nii": (b"", "not a NIfTI file"),
    "words.nii.gz": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "not a NIfTI file"),
    "page.nii.gz": (packed(b"<!DOCTYPE html>" * 50), "not a NIfTI file"),
    "bzip2.nii.gz": (bz2.compress(good()), "not a NIfTI file"),
    "cut.nii.gz": (packed(good())[:-2000], "truncated or damaged"),
    "checksum.nii.gz": (packed(good())[:-8] + bytes(8), "truncated or damaged"),
    "junk.nii.gz": (packed(good()) + b"junk", "truncated or damaged"),
    "cut.nii": (good()[:30_000], "truncated or damaged"),
    "no_place.nii": (good(sform_code=0, qform_code=0), "left and right cannot be told"),
    "two_sides.nii": (good(qform_code=1, srow_x=[6, 0, 0, -90]), "disagree about which side is left"),
    "metres.nii": (good(xyzt_units=1), "too large for a head"),
    "bomb.nii": (good(dim=[3, 10_000, 10_000, 10_000, 1, 1, 1, 1]), "claims 1e+12 voxels"),
    "bomb.nii.gz": (packed(good()[:352]) + packed(bytes(2**24)) * 64, "more than its header says"),
    "smaller.nii.gz": (packed(good(dim=[3, 30, 30, 28, 1, 1, 1, 1])), "more than its header says"),
    "series.nii": (good(dim=[4, 30, 32, 28, 30_000, 1, 1, 1]), "truncated or damaged"),
    "colours.nii": (good(datatype=128, bitpix=24), "voxels of this type cannot be read"),
}


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> opened_module.LoadedModel:
    return opened_module.open_model(tiny_model, device="cpu")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write one of the files into the working folder; crash files would go to another."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    folder = tmp_path / "patient-Jane-Doe"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def write(name: str) -> str:
        (folder / name).write_bytes(BAD[name][0])
        return str(folder / name)

    return write


def assert_message(lines: list[str], name: str, words: str) -> None:
    """What, expected, seen, try: four lines, which name the file and no folder."""
    assert len(lines) == 4, lines
    assert name in lines[0] and words in lines[0]
    for line, start in zip(lines[1:], WORDS, strict=True):
        assert line.strip().startswith(start) and line.strip() != start.strip()
    assert "Traceback" not in "".join(lines) and "Jane" not in "".join(lines)


@pytest.mark.parametrize("name", BAD)
def test_check_scan(name: str, write: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(name)
    assert main(["check-scan", file]) == 65
    out, err = capsys.readouterr()
    assert err == "" and "cannot be used" in out
    assert_message(out.rstrip("\n").splitlines()[-4:], name, BAD[name][1])
    assert main(["check-scan", file, "--json"]) == 65
    (found,) = json.loads(capsys.readouterr().out)
    assert not found["usable"] and all(found["fault"][key] for key in ("what", "expected", "seen", "try"))
    assert not (tmp_path / "home" / "crashes").exists()


@pytest.mark.parametrize("name", BAD)
def test_report(
    name: str,
    write: Callable[[str], str],
    tmp_path: Path,
    loaded: opened_module.LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(opened_module.ModelFolder, "load", lambda self: loaded)
    file = write(name)
    assert main(["report", file, "--quiet"]) == 65
    out, err = capsys.readouterr()
    lines = err.rstrip("\n").splitlines()
    assert out == "" and lines[0].startswith("error: ")
    words = BAD[name][1] if name != "series.nii" else "holds 30000 volumes"
    assert_message(lines, name, words)
    assert [path.name for path in Path.cwd().iterdir()] == [name], "nothing is written"
    assert not (tmp_path / "home" / "crashes").exists()


def test_as_a_program_of_its_own(write: Callable[[str], str]) -> None:
    """The same without pytest around it: no traceback and no warning of a library on standard error."""
    names = ("page.nii.gz", "checksum.nii.gz", "two_sides.nii", "bomb.nii.gz")
    files = [write(name) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "neuroflamingo", "check-scan", *files], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 65 and done.stderr == ""
    assert done.stdout.count("cannot be used") == len(names) and "Traceback" not in done.stdout


def test_a_name_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a" * 300 + ".nii.gz"
    for arguments in (["report", name], ["check-scan", name]):
        assert main(arguments) == 66
        said = capsys.readouterr().err
        assert "there is no file aaaa" in said and all(word in said for word in WORDS), said
    for odd in (name, "b" * 70_000, "c\0.nii.gz", "d" * 200 + "/" + "e" * 300 + ".nii"):
        Path("list.jsonl").write_text(json.dumps({"scan": "x.nii.gz"}) + "\n" + json.dumps({"scan": odd}) + "\n")
        assert main(["prepare", "list.jsonl", "-o", "store", "--encoder", "vit3d"]) == 65
        said = capsys.readouterr().err
        assert f"line 2: there is no file {odd[0]}" in said and all(word in said for word in WORDS), said
        assert len(said) < 1000
    assert not Path("store").exists()


@pytest.mark.parametrize("verb", [["report"], ["check-scan"], ["encode", "--encoder", "tiny-t1w-cnn", "-o", "a.npz"]])
def test_what_is_no_file_is_named_before_a_model_is_loaded(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Two scans, since of several the model is loaded first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opened_module.ModelFolder, "load", None)
    Path("whole.nii").write_bytes(bytes(400))
    os.mkfifo("pipe.nii")
    Path("annexed.nii.gz").symlink_to(".git/annex/objects/Xy/MD5E-s1--a.nii.gz/MD5E-s1--a.nii.gz")
    wanted = {"pipe.nii": (65, "is a pipe"), "annexed.nii.gz": (66, "datalad get"), "/dev/null": (65, "is a device")}
    for name, (code, words) in {**wanted, "gone.nii": (66, "check the path"), "": (66, "an empty name")}.items():
        assert main([*verb, "whole.nii", name]) == code
        assert words in capsys.readouterr().err


def test_an_output_whose_name_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a" * 247 + ".nii").write_bytes(bytes(400))
    assert main(["report", "a" * 247 + ".nii"]) == 73
    said = capsys.readouterr().err
    assert "the name is too long" in said and "at most 255 bytes" in said and "folder" not in said
