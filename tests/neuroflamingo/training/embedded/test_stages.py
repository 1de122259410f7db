"""The whole recipe at toy size: every stage, a model that loads, and nothing done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import neuroflamingo
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.read import load_any_recipe
from neuroflamingo.training import train
from neuroflamingo.training.embedded.stages import weights_digest
from neuroflamingo.training.twin import tiny_stages
from neuroflamingo_preprocessing.errors import ConfigError

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
