"""Warnings about scans of one prompt that do not belong together: the same twice, a follow-up before its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.scan_order import order_fault

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.prepared_input import PreparedInput


def pair_warnings(
    sources: Sequence[Any], taken: Sequence[PreparedInput], shown: Sequence[PreparedInput], *, series: int | None = None
) -> tuple[str, ...]:
    """Warn about scans that are given twice, and about a follow-up that seems older than its baseline.

    Args:
        sources: the scans of the report as the user gave them.
        taken: the same, prepared.
        shown: scans of the examples.
        series: number of the DICOM series.
    """
    warnings = []
    for (one, first), (other, second) in combinations(enumerate(taken, start=1), 2):
        if same_scan(first, second):
            warnings.append(f"scans {one} and {other} are the same scan: between them nothing can have changed")
    for number, example in enumerate(shown, start=1):
        if any(same_scan(example, scan) for scan in taken):
            warnings.append(f"example {number} is the scan of the report: the model may repeat its report")
    for (one, first), (other, second) in pairwise(enumerate(sources, start=1)):
        if (fault := order_fault(first, second, series=series)) is not None:
            warnings.append(f"{fault}, scan {other} is older than scan {one}: give the baseline first")
    return tuple(warnings)


def same_scan(one: PreparedInput, other: PreparedInput) -> bool:
    """Whether two inputs are the same, as files or, in other containers, to the last digit of what the model sees."""
    digest = one.provenance.sha256
    if digest is not None and digest == other.provenance.sha256:
        return True
    return one.tensor.shape == other.tensor.shape and np.array_equal(one.tensor, other.tensor)
