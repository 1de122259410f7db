"""Training by recipe: all stages of an embedded model, each resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo.training.run import train
    from neuroflamingo.training.settings import TrainSettings, load_settings

__all__ = ["TrainSettings", "load_settings", "train"]

_WHERE = {"TrainSettings": "settings", "load_settings": "settings", "train": "run"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
