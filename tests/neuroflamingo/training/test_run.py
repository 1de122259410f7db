"""`train` from a recipe to a model folder: interrupted and resumed, begun anew, best weights, LoRA, averages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import neuroflamingo
from neuroflamingo.model.folder import model_name
from neuroflamingo.training import checkpoints, train
from neuroflamingo.training.loop import Loop
from neuroflamingo.training.run import DONE
from neuroflamingo.training.validation import Validation
from neuroflamingo_preprocessing.errors import ConfigError, NeuroFlamingoError, NotFoundError
from tests.neuroflamingo.training.small_runs import whole_recipe, write_language_model, write_samples
from tests.tiny import tiny_scans


@pytest.fixture(autouse=True)
def as_before():
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_samples(folder)
    write_samples(folder, 6, 100, "held_out.jsonl")
    write_language_model(folder / "lm")
    return folder


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def logits(model_folder: Path) -> torch.Tensor:
    model, processor = neuroflamingo.load(model_folder, device="cpu")
    batch = processor("<image> w10 w20", scan_tokens=[[tiny_scans(1, 1)[0, 0]]])
    with torch.no_grad():
        return model(**batch).logits


def test_from_a_recipe_to_a_model(material, tmp_path):
    done = train(whole_recipe(material), folder=tmp_path / "run", quiet=True)
    assert done == tmp_path / "run" / "model" and model_name(done) == "run"
    lines = log(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6]
    assert lines[5]["validation_reliance"] == pytest.approx(
        lines[5]["validation_loss_other_scan"] - lines[5]["validation_loss"], abs=0.2
    )  # the loss counts texts without scans too, the reliance does not
    assert logits(done).isfinite().all()
    model, _ = neuroflamingo.load(done, device="cpu")
    assert model.config.training["recipe"]["optim"]["steps"] == 6
    before = (done / DONE).stat().st_mtime_ns
    assert train(whole_recipe(material), folder=tmp_path / "run", quiet=True) == done, "a finished run is left alone"
    assert (done / DONE).stat().st_mtime_ns == before


def test_interrupted_and_called_again(material, tmp_path, monkeypatch):
    whole = train(whole_recipe(material), folder=tmp_path / "whole", quiet=True)
    real = Loop._micro_step

    def cut(self, number, *arguments):
        if (self.progress.step, number) == (5, 1):
            raise KeyboardInterrupt
        real(self, number, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "_micro_step", cut)
        train(whole_recipe(material), folder=tmp_path / "cut", quiet=True)
    again = train(whole_recipe(material), folder=tmp_path / "cut", quiet=True)
    assert torch.equal(logits(whole), logits(again))
    said = ("step", "loss", "norm", "lr", "validation_loss", "validation_reliance")
    ours, theirs = ([{key: line.get(key) for key in said} for line in log(p)] for p in (whole.parent, again.parent))
    assert ours == theirs


def test_the_best_weights_are_the_model(material, tmp_path, monkeypatch):
    """And patience ends the run: the second validation is the best, three worse ones follow."""
    found = iter([3.0, 1.0, 2.0, 2.5, 2.6])
    monkeypatch.setattr(Validation, "figures", lambda self, runner: {"loss": next(found)})
    recipe = whole_recipe(material, validation={"every": 1, "patience": 3}, checkpoint={"every": 2, "keep": 9})
    done = train(recipe, folder=tmp_path / "run", quiet=True)
    root = tmp_path / "run" / "checkpoints"
    best = checkpoints.load(root / checkpoints.BEST)
    assert best.progress.best == {"loss": 1.0, "step": 2.0} and best.progress.step == 2
    assert len(log(tmp_path / "run")) == 5
    assert (root / "step-0000005").is_dir()
    second = checkpoints.load(root / "step-0000002")
    assert all(torch.equal(value, second.weights[name]) for name, value in best.weights.items())
    model, _ = neuroflamingo.load(done, device="cpu")
    trained = dict(model.named_parameters())
    for name, value in best.weights.items():
        if name in trained:
            torch.testing.assert_close(trained[name], value)


def test_the_average_is_what_is_kept(material, tmp_path):
    done = train(whole_recipe(material, optim={"steps": 4, "ema": 0.5}), folder=tmp_path / "run", quiet=True)
    last = checkpoints.load(tmp_path / "run" / "checkpoints" / "step-0000004")
    model, _ = neuroflamingo.load(done, device="cpu")
    trained = dict(model.named_parameters())
    name = next(name for name in last.average if name.endswith("to_q.weight"))
    best = checkpoints.load(tmp_path / "run" / "checkpoints" / checkpoints.BEST)
    torch.testing.assert_close(trained[name], best.weights[name])
    assert not torch.allclose(last.weights[name], last.average[name], atol=1e-6)
    if best.progress.step == 4:
        torch.testing.assert_close(best.weights[name], last.average[name])


def test_lora_is_merged_into_the_model(material, tmp_path):
    lora = {"rank": 4, "alpha": 8, "targets": ["q_proj", "to_q", "ff.1"]}
    recipe = whole_recipe(material, trained={"parts": ["new_tokens"], "lora": lora}, optim={"steps": 4, "lr": 0.05})
    done = train(recipe, folder=tmp_path / "run", quiet=True)
    best = checkpoints.load(tmp_path / "run" / "checkpoints" / checkpoints.BEST)
    assert all(".lora_" in name or name.startswith("new_tokens") for name in best.weights)
    model, _ = neuroflamingo.load(done, device="cpu")
    assert not any("lora" in name for name, _ in model.named_parameters())
    down, up = (best.weights[name] for name in sorted(best.weights) if "layers.0.gated" in name and "to_q" in name)
    start = train(whole_recipe(material, name="s", optim={"steps": 1, "lr": 1e-9}), folder=tmp_path / "s", quiet=True)
    weight = "lang_encoder.model.layers.0.gated_cross_attn_layer.attn.to_q.weight"
    first, _ = neuroflamingo.load(start, device="cpu")
    moved = dict(model.named_parameters())[weight] - dict(first.named_parameters())[weight]
    torch.testing.assert_close(moved, 2.0 * up @ down, atol=1e-5, rtol=1e-4)


def test_another_recipe_in_the_same_folder(material, tmp_path):
    train(whole_recipe(material, optim={"steps": 1}), folder=tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.01"):
        train(whole_recipe(material, optim={"steps": 1, "lr": 0.5}), folder=tmp_path / "run", quiet=True)
    other = whole_recipe(material, optim={"steps": 2, "lr": 0.5})
    anew = train(other, folder=tmp_path / "run", resume=False, quiet=True)
    assert len(log(anew.parent)) == 2


def test_a_folder_that_is_no_run_is_left_alone(material, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in (True, False):
        with pytest.raises(ConfigError, match="is no run"):
            train(whole_recipe(material), folder=tmp_path, resume=resume, quiet=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_going_on_from_a_checkpoint_with_other_settings(material, tmp_path):
    first = whole_recipe(material, optim={"steps": 4}, checkpoint={"every": 2})
    train(first, folder=tmp_path / "run", quiet=True)
    place = tmp_path / "run" / "checkpoints" / "step-0000002"
    slower = whole_recipe(material, optim={"steps": 4, "lr": 0.001})
    with pytest.raises(ConfigError, match="has later checkpoints than step-0000002"):
        train(slower, folder=tmp_path / "run", resume=place, quiet=True)
    train(slower, folder=tmp_path / "slower", resume=place, quiet=True)
    assert [line["step"] for line in log(tmp_path / "slower")] == [3, 4]
    assert all(line["lr"] <= 0.001 for line in log(tmp_path / "slower"))
    with pytest.raises(NotFoundError, match="there is no checkpoint"):
        train(slower, folder=tmp_path / "none", resume=tmp_path / "nowhere", quiet=True)


@pytest.mark.slow
def test_checkpointed_and_offloaded_runs_have_the_same_losses(material, tmp_path):
    losses = {}
    for how in ("off", "on", "offload"):
        recipe = whole_recipe(material, run={"precision": "fp32", "gradient_checkpointing": how})
        train(recipe, folder=tmp_path / how, quiet=True)
        losses[how] = [line["loss"] for line in log(tmp_path / how)]
    assert losses["on"] == pytest.approx(losses["off"], abs=1e-5)
    assert losses["offload"] == pytest.approx(losses["off"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_a_cluster_asks_the_command_to_stop(material, tmp_path):
    recipe = whole_recipe(material, optim={"steps": 100_000}, validation={"every": 200_000})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.model_dump_json())
    command = [sys.executable, "-m", "neuroflamingo", "train", str(path), "-o", str(tmp_path / "run")]
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(map(str, (root, root / "encoders", root / "preprocessing")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    lines = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 75, errors
    assert "SIGUSR1 ended training; the run is saved at step" in errors and "run the same command again" in errors
    saved = checkpoints.newest(tmp_path / "run" / "checkpoints", recipe.model_dump(mode="json"))
    assert saved is not None and saved.progress.step >= len(lines.read_text().splitlines())


def test_a_language_model_in_half_precision(material, tmp_path):
    """Frozen in bfloat16, with what trains in float32 beside it; float32 arithmetic on it is refused."""
    recipe = whole_recipe(material, run={"precision": "auto"}, optim={"steps": 8, "lr": 0.02})
    half = recipe.model.language_model.model_copy(update={"dtype": "bfloat16"})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"language_model": half})})
    train(recipe, folder=tmp_path / "run", quiet=True)
    losses = [line["loss"] for line in log(tmp_path / "run")]
    assert losses[-1] < losses[0]
    best = checkpoints.load(tmp_path / "run" / "checkpoints" / checkpoints.BEST)
    assert {value.dtype for value in best.weights.values()} == {torch.float32}
    single = recipe.model_copy(update={"run": recipe.run.model_copy(update={"precision": "fp32"})})
    with pytest.raises(ConfigError, match="cannot be combined with a language model in half precision"):
        train(single, folder=tmp_path / "single", quiet=True)


def test_errors_of_data_come_before_anything_is_written(material, tmp_path):
    recipe = whole_recipe(material, data={"source": str(material), "train": ["nowhere.jsonl"]})
    with pytest.raises(NeuroFlamingoError, match="nowhere"):
        train(recipe, folder=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_start_that_fails_leaves_no_run_behind(material, tmp_path):
    faulty = whole_recipe(
        material, optim={"steps": 6}, model=whole_recipe(material).model.model_dump() | {"start": "no"}
    )
    with pytest.raises(NotFoundError, match="no weights to start from"):
        train(faulty, folder=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(faulty.model_dump(mode="json")))  # by an older version
    (tmp_path / "run" / "log.jsonl").write_text("")
    assert train(whole_recipe(material), folder=tmp_path / "run", quiet=True) == tmp_path / "run" / "model"
    with pytest.raises(ConfigError, match="another recipe"):
        train(faulty, folder=tmp_path / "run", quiet=True)
    with pytest.raises(NotFoundError):
        train(faulty, folder=tmp_path / "run", resume=False, quiet=True)
    assert (tmp_path / "run" / "model" / DONE).is_file(), "what cannot start over takes nothing away"
