"""The loop: resumed equals uninterrupted, the best weights are kept, a bad loss stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neuroflamingo.training.embedded.stage_loop import run_stage
from neuroflamingo.training.embedded.stage_settings import LoopSettings
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError

SETTINGS = LoopSettings(
    steps=12, batch=4, learning_rate=0.1, warmup=2, validate_every=3, save_every=2, precision="fp32"
)


class Stop(Exception):
    pass


def stage(
    folder: Path, stop_at: int | None = None, average: float = 0.9, settings: LoopSettings = SETTINGS
) -> tuple[nn.Module, dict[str, float]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop_at:
            raise Stop
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    def validate(m: nn.Module) -> dict[str, float]:
        assert not m.training
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(99))
        return {"score": -float((m(x) - x.sum(1, keepdim=True)).square().mean())}

    return module, run_stage("test", folder, module, settings, loss_of, validate, "score", average, quiet=True)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_resumed_equals_uninterrupted(tmp_path: Path, average: float) -> None:
    whole, figures = stage(tmp_path / "whole", average=average)
    with pytest.raises(Stop):
        stage(tmp_path / "parts", stop_at=7, average=average)
    parts, again = stage(tmp_path / "parts", average=average)
    assert figures == again
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert not (tmp_path / "parts" / "state.safetensors").exists()


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first, figures = stage(tmp_path)
    second, again = stage(tmp_path, stop_at=0)
    assert figures == again and torch.equal(first[0].weight, second[0].weight)  # type: ignore[index]


def test_a_stage_goes_on_from_weights_of_another(tmp_path: Path) -> None:
    _, first = stage(tmp_path / "first")
    start = str(tmp_path / "first" / "best.safetensors")
    longer = SETTINGS.model_copy(update={"start": start, "learning_rate": 0.02})
    _, second = stage(tmp_path / "second", settings=longer)
    assert second["score"] > first["score"]
    with pytest.raises(Stop):
        stage(tmp_path / "parts", stop_at=7, settings=longer)
    assert stage(tmp_path / "parts", settings=longer)[1] == second  # resumed from its own state, not from the start
    with pytest.raises(NotFoundError, match="no weights to start from"):
        stage(tmp_path / "third", settings=SETTINGS.model_copy(update={"start": str(tmp_path / "gone")}))
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        stage(tmp_path / "third", settings=SETTINGS.model_copy(update={"start": str(tmp_path / "other.safetensors")}))


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    _, figures = stage(tmp_path)
    scores = [json.loads(line).get("score") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert figures["score"] == max(s for s in scores if s is not None)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        return module(torch.ones(1, 2)).sum() * (float("nan") if step == 5 else 1.0), {}

    with pytest.raises(NeuroFlamingoError, match="step 5 is not finite"):
        run_stage("test", tmp_path, module, SETTINGS, loss_of, lambda m: {"score": 0.0}, "score", quiet=True)
    assert (tmp_path / "state.safetensors").exists()
