"""Trainings with multiprocessing forced to spawn, as on macOS and Windows: the same losses as in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuroflamingo.recipe import find, load_recipe
from neuroflamingo.training import train
from neuroflamingo.training.twin import tiny_twin

SCRIPT = Path(__file__).with_name("run_spawned.py")
ROOT = Path(__file__).parents[3]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twin whose batches are made by two workers, in a file that is YAML too."""
    folder = tmp_path_factory.mktemp("spawned")
    said = tiny_twin(load_recipe(find.find_config("openflamingo-3b")), folder / "twin").model_dump(mode="json")
    said["optim"] |= {"steps": 3}
    said["data"] |= {"workers": 2}
    said["validation"] |= {"write": 2, "max_new_tokens": 4}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(said), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(recipe: Path) -> list[float]:
    """The losses without workers, in this process."""
    train(recipe, ["data.workers=0"], folder=recipe.parent / "alone", quiet=True)
    return losses(recipe.parent / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["function", "command"])
def test_spawned_workers(how: str, recipe: Path, expected: list[float], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "encoders", ROOT / "preprocessing")))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), how, str(recipe), str(folder)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert losses(folder) == pytest.approx(expected, abs=1e-6)
    assert (folder / "model" / "model.safetensors").is_file()
