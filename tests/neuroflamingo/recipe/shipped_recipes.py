"""The shipped recipes of trainings by path, and their models at full size on the meta device, each built once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.recipe.read import is_recipe, load_recipe, read_yaml
from neuroflamingo.recipe.schema import Recipe
from neuroflamingo.training.assembly import build

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
RECIPES = {path.stem: path for path in CONFIGS if is_recipe(read_yaml(path))}


@cache
def full_size(name: str) -> tuple[Recipe, NeuroFlamingo]:
    recipe = load_recipe(RECIPES[name])
    return recipe, build(recipe, meta=True)[0]
