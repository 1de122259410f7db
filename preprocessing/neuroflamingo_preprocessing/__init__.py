"""Scan files to prepared tensors: reading, alignment, resampling, normalisation. See README.md beside this package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.dataset import CounterSampler, ScanDataset
    from neuroflamingo_preprocessing.geometry import GeometryStep
    from neuroflamingo_preprocessing.inputs import find_inputs
    from neuroflamingo_preprocessing.native import save_native, to_native
    from neuroflamingo_preprocessing.parcels import parcel_series, read_atlas
    from neuroflamingo_preprocessing.preparing import Prepared, prepare, prepare_many
    from neuroflamingo_preprocessing.reading import read_scan
    from neuroflamingo_preprocessing.run_preparing import PreparedRun, prepare_run
    from neuroflamingo_preprocessing.runs import Run, read_run
    from neuroflamingo_preprocessing.scan import Scan
    from neuroflamingo_preprocessing.scan_store import ScanStore
    from neuroflamingo_preprocessing.series import RobustScaling, prepare_series
    from neuroflamingo_preprocessing.spec import ScanSpec

_HOME = {
    "CounterSampler": "dataset",
    "GeometryStep": "geometry",
    "Prepared": "preparing",
    "PreparedRun": "run_preparing",
    "RobustScaling": "series",
    "Run": "runs",
    "Scan": "scan",
    "ScanDataset": "dataset",
    "ScanSpec": "spec",
    "ScanStore": "scan_store",
    "find_inputs": "inputs",
    "parcel_series": "parcels",
    "prepare": "preparing",
    "prepare_many": "preparing",
    "prepare_run": "run_preparing",
    "prepare_series": "series",
    "read_atlas": "parcels",
    "read_run": "runs",
    "read_scan": "reading",
    "save_native": "native",
    "to_native": "native",
}

__all__ = [
    "CounterSampler",
    "GeometryStep",
    "Prepared",
    "PreparedRun",
    "RobustScaling",
    "Run",
    "Scan",
    "ScanDataset",
    "ScanSpec",
    "ScanStore",
    "find_inputs",
    "parcel_series",
    "prepare",
    "prepare_many",
    "prepare_run",
    "prepare_series",
    "read_atlas",
    "read_run",
    "read_scan",
    "save_native",
    "to_native",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
