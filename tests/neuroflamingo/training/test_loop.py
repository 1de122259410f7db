"""The loop: accumulation, clipping, multipliers, averages, early stopping, signals, and what stops it."""

from __future__ import annotations

import json

import pytest
import torch

from neuroflamingo.training import checkpoints
from neuroflamingo.training.loop import Loop
from neuroflamingo.training.parallel import trained
from neuroflamingo.training.schedule import rate
from neuroflamingo_preprocessing.errors import ConfigError, NeuroFlamingoError, OutputError
from tests.neuroflamingo.training.small_runs import small_loop, small_recipe, write_samples


@pytest.fixture(autouse=True)
def as_before():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    write_samples(folder, 6, 100, "held_out.jsonl")
    return folder


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained(loop.model)}


def log(loop: Loop, figure: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (loop.folder / "log.jsonl").read_text().splitlines()]
    return [line[figure] for line in lines if figure in line]


def test_it_learns_and_says_so(samples, tmp_path):
    loop = small_loop(small_recipe(samples, optim={"steps": 12}), tmp_path)
    loop.run()
    losses = log(loop)
    assert len(losses) == 12 and losses[-1] < 0.75 * losses[0]
    for figure in ("norm", "lr", "seconds", "tokens_per_s", "scans_per_s", "data_wait", "memory_mb"):
        assert all(value > 0 for value in log(loop, figure)), figure
    assert loop.progress.samples == 12 * 8 and loop.progress.tokens > 12 * 8 * 2


def test_accumulated_micro_steps_are_one_step(samples, tmp_path):
    """Twice four samples are eight: the same loss, norm (clipped once) and weights, whatever their lengths."""
    halves = small_loop(small_recipe(samples, optim={"batch": 4, "accumulate": 2, "clip_norm": 0.5}), tmp_path / "a")
    whole = small_loop(small_recipe(samples, optim={"batch": 8, "accumulate": 1, "clip_norm": 0.5}), tmp_path / "b")
    halves.run()
    whole.run()
    assert log(halves) == pytest.approx(log(whole), rel=1e-5)
    assert log(halves, "norm") == pytest.approx(log(whole, "norm"), rel=1e-4)
    for (name, one), other in zip(weights(halves).items(), weights(whole).values(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=name)


def test_the_norm_is_clipped(samples, tmp_path):
    loop = small_loop(small_recipe(samples, optim={"steps": 1, "clip_norm": 1e-3}), tmp_path)
    loop.run()
    total = sum(float(p.grad.pow(2).sum()) for _, p in trained(loop.model) if p.grad is not None) ** 0.5
    assert total == pytest.approx(1e-3, rel=1e-3) and log(loop, "norm")[0] > 0.1


def first_loss(samples, folder, **data) -> float:
    loop = small_loop(small_recipe(samples, data=data, optim={"steps": 1}), folder)
    loop.run()
    return log(loop)[0]


def test_multipliers_and_reductions(samples, tmp_path):
    """The loss of a kind counts as often as is said; by kinds, each kind's mean counts once."""
    both = first_loss(samples, tmp_path / "both")
    pairs = first_loss(samples, tmp_path / "pairs", loss={"text": 0.0})
    text = first_loss(samples, tmp_path / "text", loss={"pairs": 0.0})
    assert pairs + text == pytest.approx(both, rel=1e-6) and min(pairs, text) > 0
    doubled = first_loss(samples, tmp_path / "doubled", loss={"pairs": 2.0, "text": 0.5})
    assert doubled == pytest.approx(2 * pairs + 0.5 * text, rel=1e-6)
    mean_pairs = first_loss(samples, tmp_path / "k1", loss={"text": 0.0}, reduction="kinds")
    mean_text = first_loss(samples, tmp_path / "k2", loss={"pairs": 0.0}, reduction="kinds")
    kinds = first_loss(samples, tmp_path / "k", loss={"pairs": 0.2}, reduction="kinds")
    assert kinds == pytest.approx(0.2 * mean_pairs + mean_text, rel=1e-6) and mean_pairs > pairs


def test_rates_count_optimiser_steps(samples, tmp_path):
    recipe = small_recipe(samples, optim={"steps": 6, "warmup": 2, "accumulate": 3, "schedule": "linear"})
    loop = small_loop(recipe, tmp_path)
    loop.run()
    assert log(loop, "lr") == [rate(step, recipe.optim) for step in range(6)]
    assert log(loop, "lr") == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_a_signal_in_the_midst_of_accumulation(samples, tmp_path, monkeypatch):
    """The sum of gradients so far is saved too, and the run ends as if nothing had happened."""
    recipe = small_recipe(samples, optim={"steps": 5, "accumulate": 3})
    whole = small_loop(recipe, tmp_path / "whole")
    whole.run()
    real = Loop._micro_step

    def signalled(self, number, *arguments):
        real(self, number, *arguments)
        if (self.progress.step, number) == (2, 1):
            self.stop.name = "SIGUSR1"

    stopped = small_loop(recipe, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_micro_step", signalled)
        with pytest.raises(NeuroFlamingoError, match=r"SIGUSR1 ended training.*step 2, micro-step 2") as caught:
            stopped.run()
    assert caught.value.exit_code == 75
    assert (stopped.root / "step-0000002-2" / "gradients.safetensors").exists()
    resumed = small_loop(recipe, tmp_path / "stopped")
    saved = checkpoints.newest(resumed.root, resumed.plan.recipe)
    assert saved is not None
    resumed.restore(saved)
    resumed.run()
    assert log(resumed) == log(whole) and log(resumed, "norm") == log(whole, "norm")
    for (name, one), other in zip(weights(resumed).items(), weights(whole).values(), strict=True):
        assert torch.equal(one, other), name


def test_a_loss_that_is_not_finite(samples, tmp_path, monkeypatch):
    """The samples are named, the state before the step is saved, nothing is spoilt."""
    loop = small_loop(small_recipe(samples, checkpoint={"every": 100}), tmp_path)
    real, seen = type(loop.model).forward, []

    def broken(self, **inputs):
        output = real(self, **inputs)
        seen.append(1)
        if len(seen) == 6:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(type(loop.model), "forward", broken)
    with pytest.raises(NeuroFlamingoError, match="the loss of step 3 is not finite") as caught:
        loop.run()
    ids = loop.task.batches.micro_batch(5)["ids"]
    assert all(name in str(caught.value) for name in ids) and "--resume" in str(caught.value)
    saved = checkpoints.newest(loop.root, loop.plan.recipe)
    assert saved is not None and saved.progress.step == 2
    assert all(bool(value.isfinite().all()) for value in saved.weights.values())


def test_out_of_memory_names_three_settings(samples, tmp_path, monkeypatch):
    loop = small_loop(small_recipe(samples), tmp_path)

    def large(self, **inputs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(type(loop.model), "forward", large)
    with pytest.raises(NeuroFlamingoError, match="out of memory in step 1") as caught:
        loop.run()
    assert caught.value.exit_code == 75
    for setting in ("optim.batch=2", "optim.accumulate=4", "run.gradient_checkpointing=on", "data.max_tokens"):
        assert setting in str(caught.value)


def test_other_errors_are_not_taken_for_lack_of_memory(samples, tmp_path, monkeypatch):
    loop = small_loop(small_recipe(samples), tmp_path)

    def broken(self, **inputs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(type(loop.model), "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        loop.run()


def test_a_full_disk_keeps_the_checkpoint_before(samples, tmp_path, monkeypatch):
    loop = small_loop(small_recipe(samples, checkpoint={"every": 2}), tmp_path)
    real, saves = checkpoints.save_file, []

    def full(tensors, path):
        saves.append(path)
        if len(saves) > 3:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OutputError, match="step-0000004 cannot be written"):
        loop.run()
    saved = checkpoints.newest(loop.root, loop.plan.recipe)
    assert saved is not None and saved.progress.step == 2
    assert [path.name for path in loop.root.iterdir()] == ["step-0000002"]


def test_processes_must_share_a_batch_evenly(samples, tmp_path, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(ConfigError, match="3 processes cannot divide it evenly"):
        small_loop(small_recipe(samples), tmp_path)


def test_half_precision_needs_a_gpu(samples, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        small_loop(small_recipe(samples, run={"precision": "fp16"}), tmp_path)


def test_bfloat16(samples, tmp_path):
    loop = small_loop(small_recipe(samples, run={"precision": "bf16"}, optim={"steps": 12}), tmp_path)
    loop.run()
    assert log(loop)[-1] < 0.75 * log(loop)[0]
    assert all(value.dtype == torch.float32 for value in weights(loop).values())


def test_trackers(samples, tmp_path):
    small_loop(small_recipe(samples, log={"trackers": ["tensorboard"]}), tmp_path).run()
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_here_is_not_left_out_in_silence(samples, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(ConfigError, match=r"log\.trackers: tensorboard is not installed") as caught:
        small_loop(small_recipe(samples, log={"trackers": ["tensorboard"]}), tmp_path)
    assert "neuroflamingo[track]" in str(caught.value)
