"""`train`: the one call behind `neuroflamingo train`, for research recipes and for the stages of embedded models."""

from __future__ import annotations

from pathlib import Path

from neuroflamingo.training.recipe import is_recipe
from neuroflamingo.training.sections import read_yaml


def train(
    config: str | Path,
    overrides: list[str] | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Path:
    """Train by a recipe; gives the folder of the finished model.

    Args:
        config: YAML file: a `Recipe`, or the stages of an embedded model (`TrainSettings`).
        overrides: `section.key=value` items.
        folder: where everything goes; `runs/NAME` by default.
        resume: go on with what is there; False begins anew.
        quiet: no progress on standard error.

    Raises:
        ConfigError: the recipe is faulty, or the folder belongs to another one.
    """
    if not is_recipe(read_yaml(config, overrides)):
        from neuroflamingo.training.stages.run import train_stages

        return train_stages(config, overrides, folder=folder, resume=resume, quiet=quiet)
    raise NotImplementedError
