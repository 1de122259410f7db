"""Recipes: every one loads, and every fault is named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.read import is_recipe, load_any_recipe, load_recipe, read_yaml
from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError

CONFIGS = sorted((Path(__file__).parents[4] / "configs").glob("*.yaml"))
RECIPES = [path for path in CONFIGS if not is_recipe(read_yaml(path))]  # those of stages


def load_settings(path: str | Path, overrides: list[str] | None = None) -> EmbeddedRecipe:
    recipe = load_any_recipe(path, overrides)
    assert isinstance(recipe, EmbeddedRecipe)
    return recipe


def test_there_are_recipes_and_all_load() -> None:
    assert RECIPES
    for recipe in RECIPES:
        settings = load_settings(recipe)
        ranges = sorted(settings.paint.ranges().values())
        assert len(ranges) == 4
        for (first, count), (second, _) in pairwise(ranges):
            assert first + count <= second, "seeds of two purposes overlap"
        last = settings.encoder.first_window + settings.encoder.window_growth * settings.encoder.optim.steps
        pool = settings.paint.encoder[1]
        assert settings.encoder.first_window <= pool <= last, "cases are painted that the encoder never sees"


def test_override() -> None:
    settings = load_settings(RECIPES[0], ["encoder.optim.lr=1e-4", "fusion.optim.batch=3"])
    assert settings.encoder.optim.lr == 1e-4 and settings.fusion.optim.batch == 3


def test_all_faults_in_one_message_with_the_nearest_key(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPES[0].read_text() + "fusio: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(recipe, ["encoder.optim.stepz=5", "language_model.optim.batch=-1"])
    message = str(caught.value)
    assert "3 faults" in message and "did you mean steps?" in message and "did you mean fusion?" in message
    assert "language_model.optim.batch" in message and caught.value.exit_code == 78


def test_a_key_one_section_too_high_is_told_where_it_belongs() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.steps: unknown key; did you mean optim\.steps\?"):
        load_settings(RECIPES[0], ["encoder.steps=5"])


def test_what_needs_a_research_recipe_says_so() -> None:
    with pytest.raises(ConfigError, match="has no model section") as caught:
        load_recipe(RECIPES[0])
    assert "stages of an embedded model" in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError):
        load_settings(recipe)


def test_missing_file() -> None:
    with pytest.raises(NotFoundError):
        load_settings("nowhere.yaml")
