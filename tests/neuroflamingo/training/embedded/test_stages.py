"""The whole recipe at toy size: every stage, a model that loads, and nothing done twice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import neuroflamingo
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.read import load_any_recipe
from neuroflamingo.training import train
from neuroflamingo.training.embedded.stages import weights_digest
from neuroflamingo.training.twin import tiny_stages
from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError
from tests.neuroflamingo.training.embedded.small_stages import last_state, launch, small_stages

RECIPE = Path(__file__).parents[4] / "configs" / "tiny-t1w.yaml"
SHIPPED = load_any_recipe(RECIPE)
assert isinstance(SHIPPED, EmbeddedRecipe)
TOY = tiny_stages(SHIPPED)


@pytest.mark.slow
def test_all_stages_give_a_model_that_loads_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    folder = train(TOY, folder=tmp_path / "run", quiet=True)
    model, processor = neuroflamingo.load(folder, device="cpu")
    assert len(model.config.encoder_weights_sha256) == 64 and processor.card.name == "tiny-t1w-cnn"
    assert set(model.config.training["thresholds"]) == {"presence", "atrophy", "white_matter", "ventricles"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("best/weights.safetensors")}
    assert len(before) == 3
    again, _ = neuroflamingo.load(train(TOY, folder=tmp_path / "run", quiet=True), device="cpu")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert weights_digest(model.encoder) == weights_digest(again.encoder)

    with pytest.raises(ConfigError, match="another recipe"):
        train(TOY.model_copy(update={"seed": 1}), folder=tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="not from a chosen checkpoint"):
        train(TOY, folder=tmp_path / "run", resume=tmp_path / "run" / "encoder" / "checkpoints" / "best", quiet=True)


@pytest.mark.slow
def test_keys_of_a_stage_that_has_not_begun_may_change(tmp_path: Path) -> None:
    """A run of which the encoder is trained takes another fusion, but no other encoder and no other painting."""
    recipe = small_stages(2)
    broken = recipe.model_copy(update={"language_model": recipe.language_model.model_copy(update={"start": "gone"})})
    launch(recipe, tmp_path / "run")
    for stage in ("language_model", "fusion"):
        shutil.rmtree(tmp_path / "run" / stage)
    shutil.rmtree(tmp_path / "run" / "model")
    encoder = last_state(tmp_path / "run" / "encoder", 2)

    def changed(section: str, **values: Any) -> EmbeddedRecipe:
        return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})

    for other, key in (
        (changed("encoder", crowded=0.1), r"encoder\.crowded"),
        (changed("paint", real_share=0.1), r"paint\.real_share"),
    ):
        with pytest.raises(ConfigError, match="another recipe") as refused:
            train(other, folder=tmp_path / "run", quiet=True)
        assert re.search(key, str(refused.value))
    with pytest.raises(NotFoundError, match="gone"):
        train(broken, folder=tmp_path / "run", quiet=True)
    train(changed("fusion", latents=8), folder=tmp_path / "run", quiet=True)
    assert all(torch.equal(v, encoder[k]) for k, v in last_state(tmp_path / "run" / "encoder", 2).items())
    with pytest.raises(ConfigError, match="another recipe"):
        train(changed("fusion", latents=4), folder=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("key", ["heads", "validation_heads", "outlines"])
def test_what_is_painted_into_must_be_there(key: str, tmp_path: Path) -> None:
    recipe = TOY.model_copy(update={"paint": TOY.paint.model_copy(update={key: "nowhere"})})
    with pytest.raises(NotFoundError, match=rf"paint\.{key}") as refused:
        train(recipe, folder=tmp_path / "run", quiet=True)
    assert "--set paint" in (refused.value.hint or "") and not (tmp_path / "run").exists()
