"""Known findings painted into real anatomy: scans whose truth is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo.painting.case import Case, paint_case
    from neuroflamingo.painting.export import paint_cases

__all__ = ["Case", "paint_case", "paint_cases"]

_WHERE = {"Case": "case", "paint_case": "case", "paint_cases": "export"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
