"""The command `read-report`: table, JSON, marks, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from neuroflamingo.cli import main

TEXT = "FINDINGS: 3.2 x 2 cm mass in the left temporal lobe, likely a glioma. No midline shift. Foo bar baz."


def file_of(folder: Path, text: str | bytes, name: str = "report.txt") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read-report", file_of(tmp_path, TEXT)]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("glioma"))
    assert all(word in row for word in ("left", "temporal lobe", "32 x 20 mm", "possible, a mass"))
    assert "absent: midline shift" in out
    assert "coverage: 67%; 1 sentences not fully read" in out


def test_json_from_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert main(["read-report", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    finding = record["findings"][0]
    assert (finding["name"], finding["side"], finding["size_mm"], finding["class"]) == ("glioma", "left", 32, "mass")
    assert TEXT[finding["start"] : finding["end"]] == finding["words"]
    assert (record["absent"], record["coverage"]) == (["midline shift"], 0.667)


def test_several_reports_are_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [file_of(tmp_path, TEXT, "a.txt"), file_of(tmp_path, "Normal brain MRI.", "b.txt")]
    assert main(["read-report", "--json", *files]) == 0
    assert [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()] == ["a.txt", "b.txt"]


def test_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read-report", "--marked", file_of(tmp_path, f"HISTORY: Pain.\n{TEXT}")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["-", "Pain."]
    assert lines[1].startswith("read") and "[glioma]" in lines[1]
    assert lines[3].split() == ["NOT", "Foo", "bar", "baz."]


def test_escapes_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ([], ["--json"], ["--marked"]):
        assert (
            main(["read-report", *option, file_of(tmp_path, "A mass\x1b[31m\x07 <b>in</b> the \u202eleft lobe.")]) == 0
        )
        out = capsys.readouterr().out
        assert not {"\x1b", "\x07", "\u202e"} & set(out)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", 65, "is empty"),
        (b"\x00\x01\x02 mass", 65, "NUL"),
        (b"%PDF-1.4 \xff\xfe\x9c", 65, "read as text"),
        ("Im linken Lappen ist eine Raumforderung mit Ödem.", 65, "English"),
        (b"mass " * 210_000, 65, "too large"),
    ],
)
def test_what_is_refused(
    content: str | bytes, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["read-report", file_of(tmp_path, content)]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "expected: " in error or words == "is empty"


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read-report", "no-such-report.txt"]) == 66
    assert "no-such-report.txt" in capsys.readouterr().err
