"""The hooks run without network, and the check of files finds what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import check_files

ROOT = Path(__file__).resolve().parent.parent
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))


def test_hooks_need_no_network() -> None:
    assert [repo["repo"] for repo in HOOKS["repos"]] == ["local"]
    assert {hook["language"] for hook in HOOKS["repos"][0]["hooks"]} == {"system"}


def test_the_ci_runs_the_hooks() -> None:
    assert "\nhooks: " in (ROOT / "Makefile").read_text()
    assert "make --no-print-directory hooks" in (ROOT / ".ci" / "run").read_text()
    names = {hook["id"] for hook in HOOKS["repos"][0]["hooks"]}
    assert names == {"ruff-check", "ruff-format", "codespell", "files", "layering", "pyright"}


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.yaml", b"a: [1, 2", "expected ',' or ']'"),
        ("a.toml", b"a = ", "Invalid value"),
        ("a.yml", b"a: b: c", "mapping values are not allowed"),
        ("large.bin", b"\0" * (check_files.MAX_BYTES + 1), "at most"),
        ("text.md", b"one\n<<<<<<< ours\n", "merge conflict"),
    ],
)
def test_faults_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, fault: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert check_files.main([str(path)]) == 1
    assert fault in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("a.yaml", b"a: [1]"), ("a.toml", b"a = 1"), ("a.md", b"Title\n====\n")])
def test_sound_files_pass(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert check_files.main([str(tmp_path / name)]) == 0
