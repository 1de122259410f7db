"""The script of docs/train.md that composes the small pieces: at most 100 lines, it runs, and its loss falls."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import neuroflamingo.data
import neuroflamingo.training

SCRIPT = Path(__file__).parents[3] / "docs" / "own_training.py"
PIECES = ("build_labels", "mix", "freeze", "add_lora", "parameter_groups", "NeuroFlamingo.assemble")


def test_it_is_short_and_uses_the_pieces():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    assert not [piece for piece in PIECES if f"{piece}(" not in text]


def test_it_learns_to_read_its_scans(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    losses = importlib.import_module(SCRIPT.stem).main()
    said = capsys.readouterr().out
    assert losses[-1] < 0.1 * losses[0]
    assert "a new scan, left: <image> mass on the left" in said
    assert "a new scan, right: <image> mass on the right" in said


@pytest.mark.parametrize("package", [neuroflamingo.data, neuroflamingo.training])
def test_every_exported_name_is_there(package):
    assert not [name for name in package.__all__ if getattr(package, name).__name__ != name]
    with pytest.raises(AttributeError, match="attribute nothing"):
        package.nothing  # noqa: B018


def test_the_packages_load_no_torch():
    code = "import sys, neuroflamingo.data, neuroflamingo.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
