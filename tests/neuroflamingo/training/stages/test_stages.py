"""The whole recipe at toy size: every stage, a model that loads, and nothing done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import neuroflamingo
from neuroflamingo.training import train
from neuroflamingo.training.stages.run import weights_digest
from neuroflamingo_preprocessing.errors import ConfigError

RECIPE = Path(__file__).parents[4] / "configs" / "tiny-t1w.yaml"
TOY = [
    "paint.encoder=[1000000, 6]",
    "paint.bridge=[2000000, 4]",
    "paint.validation=[3000000, 3]",
    *(
        f"{stage}.{key}={value}"
        for stage in ("encoder", "language", "bridge")
        for key, value in (("steps", 2), ("batch", 2))
    ),
    "encoder.first_window=4",
    "encoder.window_growth=1",
    "language.layers=2",
    "bridge.latents=4",
]


@pytest.mark.slow
def test_all_stages_give_a_model_that_loads_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    folder = train(RECIPE, TOY, folder=tmp_path / "run", quiet=True)
    model, processor = neuroflamingo.load(folder, device="cpu")
    assert model.config.training["encoder_sha256"] and processor.card.name == "tiny-t1w-cnn"
    assert set(model.config.training["thresholds"]) == {"presence", "atrophy", "white_matter", "ventricles"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("best.safetensors")}
    assert len(before) == 3
    again, _ = neuroflamingo.load(train(RECIPE, TOY, folder=tmp_path / "run", quiet=True), device="cpu")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert weights_digest(model.encoder) == weights_digest(again.encoder)

    with pytest.raises(ConfigError, match="another recipe"):
        train(RECIPE, [*TOY, "seed=1"], folder=tmp_path / "run", quiet=True)
