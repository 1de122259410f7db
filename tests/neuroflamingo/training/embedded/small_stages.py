"""Stages at toy size for tests, and processes that run them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.read import load_any_recipe
from neuroflamingo.training.twin import tiny_stages

ROOT = Path(__file__).parents[4]
RECIPE = ROOT / "configs" / "tiny-t1w.yaml"
SCRIPT = Path(__file__).with_name("run_stages.py")
STAGES = ("encoder", "language_model", "fusion")


def small_stages(steps: int = 2, **run: Any) -> EmbeddedRecipe:
    """The shipped recipe with so many steps for each stage, in float32."""
    recipe = load_any_recipe(RECIPE)
    assert isinstance(recipe, EmbeddedRecipe)
    plain = tiny_stages(recipe).model_dump(mode="json")
    for stage in STAGES:
        plain[stage]["optim"] |= {"steps": steps, "batch": 2, "warmup": 1}
        plain[stage]["validation"]["every"] = 2
    plain["run"] = {"precision": "fp32", "deterministic": True} | run
    plain["checkpoint"]["every"] = 2
    return EmbeddedRecipe.model_validate(plain)


def launch(recipe: EmbeddedRecipe, folder: Path, processes: int = 1, **environment: str) -> str:
    """Train in processes of their own and wait; gives what they print."""
    path = folder.with_suffix(".json")
    path.write_text(recipe.model_dump_json())
    command = [sys.executable, str(SCRIPT), str(path), str(folder)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = [f"--nproc-per-node={processes}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command[1:1] = ["-m", "torch.distributed.run", *where]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "encoders", ROOT / "preprocessing")))
    variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def last_state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """All that the last checkpoint of a stage holds, and its best weights."""
    place = folder / "checkpoints"
    files = [*(place / f"step-{step:07d}").glob("*.safetensors"), *(place / "best").glob("*.safetensors")]
    assert len(files) >= 3
    return {
        f"{file.parent.name}/{file.stem}/{name}": value for file in files for name, value in load_file(file).items()
    }
