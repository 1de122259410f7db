"""Killed at any micro-step, in the midst of saving too, a training ends with the very same weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.neuroflamingo.training.small_runs import small_recipe, write_samples

SCRIPT = Path(__file__).with_name("run_small.py")
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing and beginning anew is done by fork")


def start(recipe, folder: Path, **environment: str) -> subprocess.Popen[str]:
    path = folder.with_suffix(".json")
    path.write_text(recipe.model_dump_json())
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "encoders", ROOT / "preprocessing")))
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), str(folder)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    said, errors = process.communicate(timeout=900)
    assert process.returncode == code, errors
    return said


def last_state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    last = folder / "checkpoints" / f"step-{step:07d}"
    return load_file(last / "weights.safetensors") | {
        f"optimizer {name}": value for name, value in load_file(last / "optimizer.safetensors").items()
    }


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["norm"]) for line in lines]


def assert_same(one: Path, other: Path, step: int) -> None:
    ours, theirs = last_state(one, step), last_state(other, step)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert losses(one) == losses(other)


@pytest.mark.slow
def test_killed_at_ten_micro_steps_and_in_four_saves(tmp_path):
    write_samples(tmp_path)
    recipe = small_recipe(tmp_path, optim={"steps": 14, "accumulate": 3, "ema": 0.9})
    rng = random.Random(5)
    places = [str(rng.randrange(1, 10)) for _ in range(10)]
    for number, where in ((2, "0s"), (4, "1s"), (6, "0s"), (9, "1s")):
        places.insert(number, where)
    runs = [
        start(recipe, tmp_path / "whole"),
        start(recipe, tmp_path / "killed", NEUROFLAMINGO_TEST_KILL=",".join(places)),
    ]
    _, said = map(finished, runs)
    assert said.count(f"ended by signal {-signal.SIGKILL}") >= 10, said
    assert_same(tmp_path / "whole", tmp_path / "killed", 14)


@pytest.mark.slow
def test_sigterm_saves_at_the_micro_step_and_ends_with_75(tmp_path):
    write_samples(tmp_path)
    recipe = small_recipe(
        tmp_path, optim={"steps": 100_000, "accumulate": 4, "schedule": "constant"}, checkpoint={"every": 100_000}
    )
    process = start(recipe, tmp_path / "stopped")
    log = tmp_path / "stopped" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=900)
    assert "SIGTERM ended training; the run is saved at step" in errors
    (saved,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    done = json.loads((saved / "state.json").read_text())["progress"]
    steps = done["step"] + 2
    again = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"steps": steps})})
    state = json.loads((saved / "state.json").read_text())
    state["recipe"]["optim"]["steps"] = steps
    (saved / "state.json").write_text(json.dumps(state))
    finished(start(again, tmp_path / "stopped"))
    finished(start(again, tmp_path / "whole"))
    assert_same(tmp_path / "whole", tmp_path / "stopped", steps)
