"""A stage by the training loop: resumed equals uninterrupted, the best weights are kept, a bad loss stops it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.training import checkpoints
from neuroflamingo.training.embedded.stage import StageTask, plan_of, train_stage
from neuroflamingo.training.parallel import accelerate_for
from neuroflamingo.training.task import Counts
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError
from tests.neuroflamingo.training.embedded.small_stages import small_stages


class Stop(Exception):
    pass


def recipe(ema: float = 0.9, start: Path | None = None, **optim) -> EmbeddedRecipe:
    small = small_stages()
    plain = small.encoder.optim.model_dump() | {"steps": 12, "batch": 8, "lr": 0.1, "warmup": 2, "ema": ema} | optim
    stage = small.encoder.model_dump() | {"optim": plain, "validation": {"every": 3}, "start": start and str(start)}
    return EmbeddedRecipe.model_validate(small.model_dump() | {"encoder": stage})


class Sums(StageTask):
    """Learns the sum of three numbers, through a layer with statistics of its own."""

    choose_by = "score"

    def __init__(self, recipe: EmbeddedRecipe, stop_at: int | None = None, broken_at: int | None = None) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        super().__init__(model, plan_of(recipe, "encoder"), accelerate_for(recipe))
        self.stop_at, self.broken_at = stop_at, broken_at
        self.run_in(model)

    def buffers(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers())

    def micro_batches(self, first: int) -> Iterator[Tensor]:
        for number in count(first):
            yield torch.randn(self.batch, 3, generator=torch.Generator().manual_seed(number))

    def count(self, batch: Tensor) -> Counts:
        return Counts(samples=len(batch))

    def loss(self, batch: Tensor, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
        if micro_step == self.stop_at:
            raise Stop
        loss = (self.runner(batch) - batch.sum(1, keepdim=True)).square().sum() / step.samples
        loss = loss * (float("nan") if micro_step == self.broken_at else 1.0)
        return loss, {"half": float(loss.detach()) / 2}

    def figures(self) -> dict[str, float]:
        assert not self.model.training
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(99))
        return {"score": -float((self.model(x) - x.sum(1, keepdim=True)).square().mean())}


def stage(folder: Path, recipe: EmbeddedRecipe, stop_at: int | None = None) -> tuple[nn.Module, dict[str, float]]:
    task = Sums(recipe, stop_at)
    return task.model, train_stage(task, folder, recipe.encoder.start, quiet=True)


def lines(folder: Path, key: str) -> list[float]:
    told = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in told if key in line]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_equals_uninterrupted(tmp_path: Path, ema: float, accumulate: int) -> None:
    asked = recipe(ema, accumulate=accumulate)
    whole, figures = stage(tmp_path / "whole", asked)
    with pytest.raises(Stop):
        stage(tmp_path / "parts", asked, stop_at=7 * accumulate)
    parts, again = stage(tmp_path / "parts", asked)
    assert figures == again
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    for key in ("loss", "half", "norm", "validation_score"):
        assert lines(tmp_path / "whole", key) == lines(tmp_path / "parts", key)


def test_checkpoints_are_hashed_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    whole, _ = stage(tmp_path / "whole", recipe())
    with pytest.raises(Stop):
        stage(tmp_path / "parts", recipe(), stop_at=7)
    newest, before = checkpoints.numbered(tmp_path / "parts" / "checkpoints")[:2]
    assert (newest.name, before.name) == ("step-0000006", "step-0000004")
    data = (newest / "weights.safetensors").read_bytes()
    (newest / "weights.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    parts, _ = stage(tmp_path / "parts", recipe())
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first, figures = stage(tmp_path, recipe())
    second, again = stage(tmp_path, recipe(), stop_at=0)
    assert figures == again and torch.equal(first[0].weight, second[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("file", [False, True])
def test_a_stage_goes_on_from_weights_of_another(tmp_path: Path, file: bool) -> None:
    _, first = stage(tmp_path / "first", recipe())
    start = tmp_path / "first" / "checkpoints" / "best"
    longer = recipe(start=start / "weights.safetensors" if file else start, lr=0.02)
    _, second = stage(tmp_path / "second", longer)
    assert second["score"] > first["score"]
    with pytest.raises(Stop):
        stage(tmp_path / "parts", longer, stop_at=7)
    assert stage(tmp_path / "parts", longer)[1] == second  # resumed from its own state, not from the start


def test_weights_that_are_not_there_or_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no weights to start from"):
        stage(tmp_path / "third", recipe(start=tmp_path / "gone"))
    other = tmp_path / "other.safetensors"
    save_file({"0.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(ModelError, match="do not fit"):
        stage(tmp_path / "third", recipe(start=other))
    fitting = Sums(recipe()).model.state_dict()
    save_file(fitting | {"3.weight": torch.zeros(2)}, other)
    with pytest.raises(ModelError, match=r"do not fit[\s\S]*3\.weight"):
        stage(tmp_path / "third", recipe(start=other))
    other.write_bytes(b"a pickle")
    with pytest.raises(ModelError, match="do not fit"):
        stage(tmp_path / "third", recipe(start=other))


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    model, figures = stage(tmp_path, recipe())
    assert figures["score"] == max(lines(tmp_path, "validation_score"))
    best = load_file(tmp_path / "checkpoints" / "best" / "weights.safetensors")
    assert best.keys() == model.state_dict().keys()
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path: Path) -> None:
    asked = recipe()
    with pytest.raises(NeuroFlamingoError, match="the loss of step 6 is not finite") as caught:
        train_stage(Sums(asked, broken_at=5), tmp_path, None, quiet=True)
    saved = checkpoints.newest(tmp_path / "checkpoints", asked.model_dump(mode="json"))
    assert saved is not None and saved.progress.step == 5
    assert f"--set encoder.start={tmp_path / 'checkpoints' / 'step-0000005'}" in str(caught.value)


def test_moments_of_parameters_that_lie_otherwise_in_memory_are_resumed(tmp_path: Path) -> None:
    """A fused optimiser walks through memory: moments of `channels_last` weights must lie as these do."""

    class Pictures(Sums):
        def __init__(self, recipe: EmbeddedRecipe, stop_at: int | None = None) -> None:
            super().__init__(recipe, stop_at)
            torch.manual_seed(0)
            layers = (nn.Conv3d(2, 3, 3), nn.Flatten(), nn.Linear(3, 1))
            self.model = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            self.run_in(self.model)

        def micro_batches(self, first: int) -> Iterator[Tensor]:
            for number in count(first):
                yield torch.randn(self.batch, 2, 3, 3, 3, generator=torch.Generator().manual_seed(number))

        def loss(self, batch: Tensor, step: Counts, micro_step: int) -> tuple[Tensor, dict[str, float]]:
            if micro_step == self.stop_at:
                raise Stop
            return (self.runner(batch)[:, 0] - batch.mean((1, 2, 3, 4))).square().mean(), {}

        def figures(self) -> dict[str, float]:
            return {"score": 0.0}

    asked = recipe(0.0, weight_decay=0.0)
    whole, parts = Pictures(asked), Pictures(asked, stop_at=7)
    assert not whole.model[0].weight.is_contiguous()  # type: ignore[index]
    train_stage(whole, tmp_path / "whole", None, quiet=True)
    with pytest.raises(Stop):
        train_stage(parts, tmp_path / "parts", None, quiet=True)
    again = Pictures(asked)
    train_stage(again, tmp_path / "parts", None, quiet=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
