"""The report: a value (`Report`), the pictures in it, and its forms as page, JSON and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo.report.model import Report

__all__ = ["Report"]


def __getattr__(name: str) -> Any:
    if name == "Report":
        from neuroflamingo.report.model import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
