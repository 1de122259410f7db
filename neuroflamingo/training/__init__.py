"""Training by recipe: research trainings of any encoder with any language model, and the stages of embedded models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroflamingo.training.building import build
    from neuroflamingo.training.parts import add_lora, freeze, merge_lora, parameter_groups
    from neuroflamingo.training.recipe import LoraSettings, OptimSettings, Recipe, TrainedSettings, load_recipe
    from neuroflamingo.training.run import train

__all__ = [
    "LoraSettings",
    "OptimSettings",
    "Recipe",
    "TrainedSettings",
    "add_lora",
    "build",
    "freeze",
    "load_recipe",
    "merge_lora",
    "parameter_groups",
    "train",
]

_WHERE = {
    "LoraSettings": "recipe",
    "OptimSettings": "recipe",
    "Recipe": "recipe",
    "TrainedSettings": "recipe",
    "add_lora": "parts",
    "build": "building",
    "freeze": "parts",
    "load_recipe": "recipe",
    "merge_lora": "parts",
    "parameter_groups": "parts",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
