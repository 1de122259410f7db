"""NeuroFlamingo: brain scans in, checkable report text out. Public names load on first use, so importing stays fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo.config import NeuroFlamingoConfig
    from neuroflamingo.findings.schema import Finding
    from neuroflamingo.gated_attention import GatedCrossAttentionBlock
    from neuroflamingo.loading import load
    from neuroflamingo.model import NeuroFlamingo
    from neuroflamingo.pipeline import write_report
    from neuroflamingo.processing import NeuroFlamingoProcessor
    from neuroflamingo.report import Report
    from neuroflamingo.resampler import PerceiverResampler

_HOME = {
    "Finding": "findings.schema",
    "GatedCrossAttentionBlock": "gated_attention",
    "NeuroFlamingo": "model",
    "NeuroFlamingoConfig": "config",
    "NeuroFlamingoProcessor": "processing",
    "PerceiverResampler": "resampler",
    "Report": "report",
    "load": "loading",
    "write_report": "pipeline",
}

__all__ = [
    "Finding",
    "GatedCrossAttentionBlock",
    "NeuroFlamingo",
    "NeuroFlamingoConfig",
    "NeuroFlamingoProcessor",
    "PerceiverResampler",
    "Report",
    "load",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
