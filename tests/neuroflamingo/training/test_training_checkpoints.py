"""Checkpoints: whole or not at all, checked, of one recipe; the newest good one is found."""

from __future__ import annotations

import errno
import json
import logging

import pytest
import torch

from neuroflamingo.training import checkpoints
from neuroflamingo.training.checkpoints import Checkpoint, Progress
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NotFoundError, OutputError

RECIPE = {"name": "a", "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "run": {"precision": "fp32"}}


def checkpoint(step: int, micro: int = 0) -> Checkpoint:
    weights = {"x": torch.full((3, 2), float(step)), "y": torch.tensor(float(micro))}
    gradients = {"x": torch.ones(3, 2)} if micro else {}
    moments = {"x.exp_avg": torch.randn(3, 2), "x.step": torch.tensor(float(step))}
    progress = Progress(step=step, micro=micro, loss=0.25, samples=4 * step, best={"loss": 1.5, "step": 2.0})
    return Checkpoint(progress, weights, moments, gradients=gradients)


def save(root, step: int, micro: int = 0, keep: int = 2):
    return checkpoints.save(root, checkpoint(step, micro), RECIPE, keep=keep)


def test_what_is_saved_comes_back_whole(tmp_path):
    wrote = checkpoint(12, 3)
    read = checkpoints.load(checkpoints.save(tmp_path, wrote, RECIPE, keep=2), RECIPE)
    assert read.progress == wrote.progress
    assert read.parts().keys() == wrote.parts().keys() == {"weights", "optimizer", "gradients"}
    for name, part in wrote.parts().items():
        for key, value in part.items():
            assert torch.equal(read.parts()[name][key], value)


def test_a_checkpoint_of_an_earlier_release_is_read(tmp_path):
    """It has no parts of the loss."""
    folder = save(tmp_path, 12, 3)
    state = json.loads((folder / "state.json").read_text())
    assert state["progress"].pop("parts") == {}
    (folder / "state.json").write_text(json.dumps(state))
    assert checkpoints.load(folder, RECIPE).progress == checkpoint(12, 3).progress


def test_the_newest_are_kept_and_best_always(tmp_path):
    checkpoints.save(tmp_path, checkpoint(1), RECIPE, keep=2, name=checkpoints.BEST)
    for step, micro in ((1, 0), (2, 0), (2, 3), (10, 0)):
        save(tmp_path, step, micro)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-0000002-3", "step-0000010"]
    found = checkpoints.newest(tmp_path, RECIPE)
    assert found is not None and found.progress.step == 10


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoints.newest(tmp_path / "none", RECIPE) is None


@pytest.mark.parametrize("fault", ["cut", "flipped", "gone", "no state", "half a state", "outside", "another format"])
def test_a_damaged_newest_one_falls_back_with_a_warning(tmp_path, caplog, fault):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    weights, state = newest / "weights.safetensors", newest / "state.json"
    data = weights.read_bytes()
    if fault == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif fault == "flipped":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif fault == "gone":
        weights.unlink()
    elif fault == "no state":
        state.unlink()
    elif fault == "half a state":
        state.write_text(state.read_text()[:60])
    elif fault == "outside":
        state.write_text(state.read_text().replace("weights.safetensors", "../step-0000001/weights.safetensors"))
    else:
        state.write_text(state.read_text().replace('"format": 1', '"format": 99'))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest(tmp_path, RECIPE)
    assert found is not None and found.progress.step == 1
    assert "step-0000002 is damaged" in caplog.text


def test_all_damaged_is_an_error(tmp_path):
    (save(tmp_path, 1) / "state.json").write_text("{")
    with pytest.raises(ModelError, match="none of the 1 checkpoints") as caught:
        checkpoints.newest(tmp_path, RECIPE)
    assert caught.value.exit_code == 65


def test_another_recipe_is_refused_and_the_keys_are_named(tmp_path):
    folder = save(tmp_path, 1)
    other = {"name": "a", "optim": {"lr": 0.2, "betas": (0.9, 0.99)}, "run": {"precision": "bf16"}}
    with pytest.raises(ConfigError) as caught:
        checkpoints.load(folder, other)
    assert "optim.lr: 0.1" in str(caught.value) and "optim.lr: 0.2" in str(caught.value)
    assert "precision" not in str(caught.value) and "betas" not in str(caught.value)


def test_how_it_runs_may_change(tmp_path):
    assert checkpoints.load(save(tmp_path, 1), RECIPE | {"run": {"precision": "bf16"}}).progress.step == 1


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError):
        checkpoints.load(tmp_path / "step-0000001")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "fsync_tree", full)
        with pytest.raises(OutputError, match="step-0000002 cannot be written") as caught:
            save(tmp_path, 2)
    assert caught.value.exit_code == 74 and "No space left" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    found = checkpoints.newest(tmp_path, RECIPE)
    assert found is not None and found.progress.step == 1


def test_the_best_one_can_be_written_again(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, checkpoint(step), RECIPE, keep=2, name=checkpoints.BEST)
    assert checkpoints.load(tmp_path / checkpoints.BEST).progress.step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
