"""Training by recipe: research trainings of any encoder with any language model, and the stages of embedded models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo.training.recipe import Recipe, load_recipe
    from neuroflamingo.training.run import train

__all__ = ["Recipe", "load_recipe", "train"]

_WHERE = {"Recipe": "recipe", "load_recipe": "recipe", "train": "run"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
