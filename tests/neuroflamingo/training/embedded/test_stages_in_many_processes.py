"""Two processes train the stages, with the losses of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import neuroflamingo
from neuroflamingo.training import checkpoints
from neuroflamingo.training.embedded.stage import plan_of
from neuroflamingo.training.parallel import accelerate_for
from neuroflamingo_preprocessing.errors import ConfigError
from tests.neuroflamingo.training.embedded.small_stages import STAGES, launch, log, small_stages

STEPS = 4
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    launch(small_stages(STEPS), folder)
    return folder


def figures(folder: Path, key: str) -> list[float]:
    return [line[key] for line in log(folder)]


def assert_same_numbers(ours: Path, theirs: Path) -> None:
    for key in ("loss", "norm"):
        assert figures(ours, key) == pytest.approx(figures(theirs, key), rel=1e-4), key
    name = f"step-{STEPS:07d}"
    saved, expected = (checkpoints.load(run / "checkpoints" / name) for run in (ours, theirs))
    assert (saved.progress.samples, saved.progress.tokens) == (expected.progress.samples, expected.progress.tokens)
    assert saved.weights.keys() == expected.weights.keys()
    for name, value in saved.weights.items():
        torch.testing.assert_close(value, expected.weights[name], atol=1e-3, rtol=1e-3, msg=name)


def test_all_stages_have_the_losses_of_one_process(alone: Path, tmp_path: Path) -> None:
    """The encoder's nearly: torch's batch norm on one process is off by up to 0.03 in float32, and errors grow."""
    folder = tmp_path / "run"
    launch(small_stages(STEPS), folder, 2)
    assert_same_numbers(folder / "language_model", alone / "language_model")
    assert figures(folder / "encoder", "loss")[0] == pytest.approx(figures(alone / "encoder", "loss")[0], rel=2e-4)
    for stage in STAGES:
        assert figures(folder / stage, "loss") == pytest.approx(figures(alone / stage, "loss"), rel=0.03)
        saved = checkpoints.load(folder / stage / "checkpoints" / f"step-{STEPS:07d}")
        assert saved.progress.samples == 2 * STEPS
    model, _ = neuroflamingo.load(folder / "model", device="cpu")
    assert len(model.config.encoder_weights_sha256) == 64


def test_fusion_on_the_encoder_of_one_process(alone: Path, tmp_path: Path) -> None:
    """A run moves from one process to two between its stages."""
    folder = tmp_path / "run"
    shutil.copytree(alone, folder, ignore=lambda place, names: {"fusion", "model"} if place == str(alone) else ())
    shutil.rmtree(folder / "tokens")
    launch(small_stages(STEPS), folder, 2)
    assert_same_numbers(folder / "fusion", alone / "fusion")
    tokens = [(run / "tokens" / "fusion" / "tokens.f16").read_bytes() for run in (alone, folder)]
    assert tokens[0] == tokens[1]


def test_a_batch_that_three_processes_cannot_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accelerator = accelerate_for(small_stages(STEPS), tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(ConfigError, match=r"encoder\.optim\.batch: 3 processes cannot divide it evenly"):
        plan_of(small_stages(STEPS), "encoder").share(accelerator.num_processes)
