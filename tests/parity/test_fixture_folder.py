"""The folder itself: every entry is of a kind that some test here checks, and its file holds what the index says."""

from __future__ import annotations


def test_kind_is_known(golden, known_kinds):
    assert golden.kind in known_kinds, f"{golden.name} is of kind {golden.kind!r}, which no test here checks"


def test_file_holds_results(golden):
    assert any(name.startswith("output.") for name in golden.tensors), f"{golden.name} holds no result to compare"
