"""Two processes train the stages: with the losses of one where no layer takes statistics of its own batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import neuroflamingo
from neuroflamingo.training import checkpoints
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


def assert_same_numbers(ours: Path, theirs: Path) -> None:
    for key in ("loss", "norm", "tokens_per_s"):
        told = [[line[key] * (line["seconds"] if "_s" in key else 1.0) for line in log(run)] for run in (ours, theirs)]
        print(ours.name, key, max([abs(a - b) / abs(b) for a, b in zip(*told, strict=True) if b] or [0]))
    one, other = (
        load_file(run / "checkpoints" / f"step-{STEPS:07d}" / "weights.safetensors") for run in (ours, theirs)
    )
    assert one.keys() == other.keys()
    print(max(((value - other[name]).abs().max().item(), name) for name, value in one.items()))


def test_all_stages_have_the_numbers_of_one_process(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launch(small_stages(STEPS), folder, 2)
    for stage in STAGES:
        assert_same_numbers(folder / stage, alone / stage)
        saved = checkpoints.load(folder / stage / "checkpoints" / f"step-{STEPS:07d}")
        assert saved.progress.samples == 2 * STEPS
    model, _ = neuroflamingo.load(folder / "model", device="cpu")
    assert model.config.training["encoder_sha256"]


def test_a_batch_that_two_processes_cannot_share(alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from neuroflamingo.training.embedded.stage import plan_of
    from neuroflamingo.training.parallel import accelerate_for
    from neuroflamingo_preprocessing.errors import ConfigError

    accelerator = accelerate_for(small_stages(STEPS), tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(ConfigError, match=r"encoder\.optim\.batch: 3 processes cannot share it evenly"):
        plan_of(small_stages(STEPS), "encoder").share(accelerator)
