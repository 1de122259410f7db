"""Names that steer a terminal, or lie in a patient's folder: neither reaches any output."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from neuroflamingo.cli import main
from neuroflamingo.inference import loaded_model as opened_module
from neuroflamingo.progress import say, visible, visible_lines

ROOT = Path(__file__).resolve().parents[3]
STEERS = "bad\x1b[31m\x07\x9b2J\x7f\r\u202egig.nii.gz"
RAW = set("\x1b\x07\x9b\x7f\r\u202e")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, aligned: None) -> Path:
    """The working folder of a user, and a model that is loaded already."""
    loaded = opened_module.open_model(tiny_model, device="cpu")
    monkeypatch.setattr(opened_module.ModelFolder, "load", lambda self: loaded)
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_escape_sequences_in_a_name_reach_no_output(folder: Path, head_file: Path, capsys) -> None:
    (folder / STEERS).write_bytes(head_file.read_bytes())
    (folder / "cut\x1b[2J.nii.gz").write_bytes(head_file.read_bytes()[:999])
    assert main(["report", STEERS]) == 0
    assert main(["check-scan", STEERS, "cut\x1b[2J.nii.gz"]) == 65
    assert main(["report", "cut\x1b[2J.nii.gz"]) == 65
    assert main(["report", "gone\x1b[2J.nii.gz"]) == 66
    assert main(["report", "x", "--model", "no\x1b[2J"]) != 0
    out, err = capsys.readouterr()
    assert "bad" in out and "cut" in err and "gone" in err
    assert not (set(out) | set(err)) & RAW
    texts = {path.suffix: path.read_text() for path in folder.glob("bad*") if path.suffix in (".txt", ".html", ".json")}
    assert {".txt", ".html", ".json"} <= set(texts)
    assert not set(texts[".txt"]) & RAW and not set(texts[".html"]) & RAW
    assert json.loads(texts[".json"])


def test_a_patients_folder_reaches_no_output(folder: Path, head_file: Path, capsys) -> None:
    place = folder / "QUARX_Zebulon_1953" / "anat"
    place.mkdir(parents=True)
    (place / "scan.nii.gz").write_bytes(head_file.read_bytes())
    (place / "scan.json").write_text('{"MagneticFieldStrength": 3}')
    (place / "other.nii.gz").write_bytes(head_file.read_bytes())
    (place / "other.txt").write_text("FINDINGS: No mass.")
    near = Path("QUARX_Zebulon_1953") / "anat"
    words = ["report", str(near / "scan.nii.gz"), "--example", f"{near / 'other.nii.gz'}={near / 'other.txt'}"]
    assert main([*words, "--quiet", "--force"]) == 0
    written = [path for path in folder.iterdir() if path.is_file()]
    assert len(written) == 4
    for path in written:
        text = path.read_text()
        assert "QUARX" not in text and "Zebulon" not in text, path.name
    assert "<FOLDER>/scan.nii.gz" in (folder / "scan.prov.json").read_text()


def test_one_function_prints() -> None:
    """Any other call of `print` could show what lies in a file raw."""
    allowed = {"neuroflamingo/progress.py": 2, "neuroflamingo/cli/errors.py": 1}
    packages = (
        ROOT / "neuroflamingo",
        *(ROOT / name / f"neuroflamingo_{name}" for name in ("encoders", "preprocessing")),
    )
    found: dict[str, int] = {}
    for package in packages:
        for path in package.rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            count = sum(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)
            if count:
                found[path.relative_to(ROOT).as_posix()] = count
    assert found == allowed


def test_what_is_shown_of_odd_characters(capsys) -> None:
    box = "\N{REPLACEMENT CHARACTER}"
    assert visible("a\tb\nc\x1b") == f"a{box}b{box}c{box}" and visible("Müller ß 頭 µ") == "Müller ß 頭 µ"
    assert visible_lines("a\tb\nc\x1b\r\n") == f"a\tb\nc{box}{box}\n"
    say("a", "b\x1b", sep="-", end="!\n")
    assert capsys.readouterr().out == f"a-b{box}!\n"


def test_a_stream_that_has_ascii_only(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from neuroflamingo.progress import say; say('M\\u00fcller \\udcc3')"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii:strict", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    assert done.stdout == b"M?ller ?\n"


@pytest.mark.parametrize(
    "words", [["--version"], ["encoders", "list"], ["encoders", "list", "--json"], ["report", "--help"]]
)
@pytest.mark.parametrize("to", ["a closed pipe", "a full disk"])
def test_output_that_nobody_takes_is_74(words: list[str], to: str) -> None:
    program = [sys.executable, "-m", "neuroflamingo", *words]
    if to == "a full disk":
        with open("/dev/full", "w") as full:
            done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    else:
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.close()
        err = process.stderr.read() if process.stderr else ""
        done = subprocess.CompletedProcess(program, process.wait(), "", err)
    assert done.returncode == 74 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("device", ["mps", "mps:7", "meta", "xpu", "vulkan"])
def test_devices_that_are_not_here_are_usage(device: str, folder: Path, head_file: Path, monkeypatch, capsys) -> None:
    monkeypatch.undo()
    assert main(["report", str(head_file), "-o", str(folder / "x.json"), "-d", device, "-q"]) == 2
    assert device in capsys.readouterr().err
