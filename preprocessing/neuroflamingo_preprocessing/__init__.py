"""Scan files to prepared tensors: reading, alignment, resampling, normalisation. See README.md beside this package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.geometry import GeometryStep
    from neuroflamingo_preprocessing.preparing import Prepared, prepare, prepare_many
    from neuroflamingo_preprocessing.reading import read_scan
    from neuroflamingo_preprocessing.scan import Scan
    from neuroflamingo_preprocessing.spec import ScanSpec

_HOME = {
    "GeometryStep": "geometry",
    "Prepared": "preparing",
    "Scan": "scan",
    "ScanSpec": "spec",
    "prepare": "preparing",
    "prepare_many": "preparing",
    "read_scan": "reading",
}

__all__ = ["GeometryStep", "Prepared", "Scan", "ScanSpec", "prepare", "prepare_many", "read_scan"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
