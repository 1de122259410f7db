"""Killed in the midst of every stage, a training of stages ends with the very same weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.neuroflamingo.training.embedded.small_stages import STAGES, last_state, launch, log, small_stages

STEPS = 5
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing and beginning anew is done by fork")


@pytest.mark.slow
def test_killed_in_every_stage_and_before_its_first_checkpoint(tmp_path: Path) -> None:
    recipe = small_stages(STEPS)
    launch(recipe, tmp_path / "whole")
    places = ",".join(f"{stage}:{number}" for stage in STAGES for number in (2, 4))
    said = launch(recipe, tmp_path / "killed", NEUROFLAMINGO_TEST_KILL=places)
    assert said.count(f"ended by signal {-signal.SIGKILL}") == 2 * len(STAGES), said
    for stage in STAGES:
        ours, theirs = (last_state(tmp_path / run / stage, STEPS) for run in ("whole", "killed"))
        assert ours.keys() == theirs.keys() and len(ours) > 40
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), f"{stage}: {name}"
        told = [
            [
                {key: line.get(key) for key in ("step", "loss", "norm", "lr", "validation_full_finding_f1")}
                for line in lines
            ]
            for lines in (log(tmp_path / run / stage) for run in ("whole", "killed"))
        ]
        assert told[0] == told[1] and len(told[0]) == STEPS
    models = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed")]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
