"""Training data: manifests, what is kept of them, and how samples become token ids, labels and scans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo.data.batches import TrainingBatches
    from neuroflamingo.data.manifest import Sample, Turn, read_manifest, write_manifest
    from neuroflamingo.data.mixing import Mixture, mix
    from neuroflamingo.data.sequences import build_labels, encode_sample

__all__ = [
    "Mixture",
    "Sample",
    "TrainingBatches",
    "Turn",
    "build_labels",
    "encode_sample",
    "mix",
    "read_manifest",
    "write_manifest",
]

_WHERE = {
    "Mixture": "mixing",
    "Sample": "manifest",
    "TrainingBatches": "batches",
    "Turn": "manifest",
    "build_labels": "sequences",
    "encode_sample": "sequences",
    "mix": "mixing",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
