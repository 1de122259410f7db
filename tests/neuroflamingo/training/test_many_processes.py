"""Two processes, by DDP and by FSDP2, have the losses of one; a run moves from one to two and back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neuroflamingo.recipe.schema import Recipe
from tests.neuroflamingo.training.small_runs import small_recipe, write_samples

SCRIPT = Path(__file__).with_name("run_small.py")
ROOT = Path(__file__).parents[3]
STEPS = 20
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]


def recipe_for(folder: Path, steps: int = STEPS, parallel: str = "ddp", **run) -> Recipe:
    """Batches of two: a process now and then has no scan at all, or nothing but scans."""
    optim = {"steps": steps, "batch": 2, "accumulate": 2, "schedule": "constant", "clip_norm": 0.5, "lr": 1e-3}
    validation = {"every": 10, "write": 3, "max_new_tokens": 4, "choose_by": "loss"}
    data = {"source": str(folder), "train": ["train.jsonl"], "validation": ["held_out.jsonl"], "max_tokens": 24}
    return small_recipe(folder, optim=optim, run={"parallel": parallel} | run, validation=validation, data=data)


def launch(recipe: Recipe, folder: Path, processes: int, family: str = "llama") -> list[float]:
    """Run and wait; the losses that the log holds."""
    path = folder.with_suffix(".json")
    path.write_text(recipe.model_dump_json())
    command = [sys.executable, str(SCRIPT), str(path), str(folder), family]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = [f"--nproc-per-node={processes}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command[1:1] = ["-m", "torch.distributed.run", *where]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "encoders", ROOT / "preprocessing")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return figures(folder)


def figures(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    write_samples(folder, 5, 100, "held_out.jsonl", findings=True)
    return folder


@pytest.fixture(scope="module")
def alone(samples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    losses = launch(recipe_for(samples), folder, 1)
    assert len(losses) == STEPS and losses[-1] < losses[0]
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(samples, alone, tmp_path, parallel):
    folder = tmp_path / "run"
    losses = launch(recipe_for(samples, parallel=parallel), folder, 2)
    assert losses == pytest.approx(figures(alone), abs=1e-5)
    for name in ("norm", "validation_loss", "validation_loss_other_scan", "validation_hallucination_on_normals"):
        assert figures(folder, name) == pytest.approx(figures(alone, name), rel=1e-4), name
    ours = load_file(folder / "checkpoints" / f"step-{STEPS:07d}" / "weights.safetensors")
    theirs = load_file(alone / "checkpoints" / f"step-{STEPS:07d}" / "weights.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_from_one_to_two_and_back(samples, alone, tmp_path, parallel):
    folder = tmp_path / "run"
    for steps, processes in ((6, 1), (13, 2), (STEPS, 1)):
        losses = launch(recipe_for(samples, steps, parallel=parallel), folder, processes)
        let_go_on(folder, steps)
    assert losses == pytest.approx(figures(alone), abs=1e-5)


def let_go_on(folder: Path, steps: int) -> None:
    """Say in the checkpoints that the run was always to be as long as the whole one."""
    for state in folder.glob("checkpoints/*/state.json"):
        said = json.loads(state.read_text())
        following = {6: 13, 13: STEPS}.get(steps, STEPS)
        said["recipe"]["optim"]["steps"] = following
        state.write_text(json.dumps(said))


def test_tied_embeddings_and_layers_without_keywords_under_fsdp(samples, tmp_path):
    one = launch(recipe_for(samples, 4), tmp_path / "one", 1, "mpt")
    two = launch(recipe_for(samples, 4, "fsdp", gradient_checkpointing="on"), tmp_path / "two", 2, "mpt")
    assert two == pytest.approx(one, abs=1e-5)
