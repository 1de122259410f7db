"""Examples in docstrings run and give what they show."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import neuroflamingo_encoders
import neuroflamingo_preprocessing
from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.tokens.store import TokenStore
from neuroflamingo_preprocessing.read import read_scan
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import ScanSpec
from neuroflamingo_preprocessing.stores.scans import ScanStore

PACKAGES = (neuroflamingo_preprocessing, neuroflamingo_encoders)
CORE = (Scan, ScanSpec, read_scan, ScanStore, EncoderCard, BrainEncoder, EncoderOutput, TokenStore)
"""Core of the two packages, which must have an example."""


def _examples() -> Iterator[Any]:
    """Every docstring with an example in the modules of the two packages."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for package in PACKAGES:
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            source = importlib.util.find_spec(info.name)
            assert source is not None and source.origin is not None
            if ">>>" in Path(source.origin).read_text(encoding="utf-8"):
                module = importlib.import_module(info.name)
                yield from (pytest.param(test, id=test.name) for test in finder.find(module) if test.examples)


@pytest.mark.parametrize("example", list(_examples()))
def test_an_example_gives_what_it_shows(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example, out=printed.append)
    assert runner.failures == 0, "".join(printed)


@pytest.mark.parametrize("member", CORE, ids=lambda member: member.__name__)
def test_core_classes_have_an_example(member: Any) -> None:
    assert ">>>" in (inspect.getdoc(member) or "")
