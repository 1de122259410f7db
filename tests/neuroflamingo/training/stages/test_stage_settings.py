"""Recipes: every one loads, and every fault is named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from neuroflamingo.recipe.read import read_yaml
from neuroflamingo.recipe.schema import is_recipe
from neuroflamingo.training.embedded.stage_settings import load_settings
from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError

CONFIGS = sorted((Path(__file__).parents[4] / "configs").glob("*.yaml"))
RECIPES = [path for path in CONFIGS if not is_recipe(read_yaml(path))]  # those of stages


def test_there_are_recipes_and_all_load() -> None:
    assert RECIPES
    for recipe in RECIPES:
        settings = load_settings(recipe)
        ranges = sorted(getattr(settings.paint, name) for name in type(settings.paint).model_fields)
        for (first, count), (second, _) in pairwise(ranges):
            assert first + count <= second, "seeds of two purposes overlap"
        last = settings.encoder.first_window + settings.encoder.window_growth * settings.encoder.steps
        pool = settings.paint.encoder[1]
        assert settings.encoder.first_window <= pool <= last, "cases are painted that the encoder never sees"


def test_override() -> None:
    settings = load_settings(RECIPES[0], ["encoder.learning_rate=1e-4", "bridge.batch=3"])
    assert settings.encoder.learning_rate == 1e-4 and settings.bridge.batch == 3


def test_all_faults_in_one_message_with_the_nearest_key(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPES[0].read_text() + "bridg: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(recipe, ["encoder.stepz=5", "language.batch=-1"])
    message = str(caught.value)
    assert "3 faults" in message and "did you mean steps?" in message and "did you mean bridge?" in message
    assert "language.batch" in message and caught.value.exit_code == 78


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError):
        load_settings(recipe)


def test_missing_file() -> None:
    with pytest.raises(NotFoundError):
        load_settings("nowhere.yaml")
