"""A training that reads no scan stops with the reason; a validation says when the scans make no difference."""

from __future__ import annotations

import json

import pytest

from neuroflamingo.training.scan_gradients import STEPS
from neuroflamingo_preprocessing.errors import ModelError
from tests.neuroflamingo.training.small_runs import small_loop, small_recipe, write_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    write_samples(folder, 6, 100, "held_out.jsonl")
    return folder


def blind(loop):
    """This family drops the keyword, and is believed not to."""
    loop.task.model._keyword = True
    return loop


def test_a_training_without_a_gradient_from_the_scans_stops_and_says_so(samples, tmp_path):
    loop = blind(small_loop(small_recipe(samples, optim={"steps": 12}), tmp_path, "gptj"))
    with pytest.raises(ModelError, match=r"cross-attention of the gated blocks and the resampler got no") as caught:
        loop.run()
    assert caught.value.exit_code == 65
    assert loop.progress.step == STEPS - 1, "it stopped in the last of the first steps"


def test_a_resampler_that_is_cut_off_is_named(samples, tmp_path):
    loop = small_loop(small_recipe(samples, optim={"steps": 12}), tmp_path)
    loop.model.perceiver.register_forward_hook(lambda module, given, latents: latents.detach())
    with pytest.raises(ModelError, match="this training: the resampler got no gradient"):
        loop.run()


@pytest.mark.parametrize("placement", ["rule", "coin"])
def test_closed_gates_and_turns_without_scans_are_no_reason_to_stop(samples, tmp_path, placement):
    recipe = small_recipe(samples, optim={"steps": 7, "batch": 1, "accumulate": 1}, media_placement=placement)
    loop = small_loop(recipe, tmp_path)
    for block in loop.model.gated_blocks.values():
        block.attn_gate.data.zero_()
        block.ff_gate.data.zero_()
    loop.run()
    assert loop.progress.step == 7


def test_a_validation_in_which_the_scans_make_no_difference_warns(samples, tmp_path, capsys):
    changes = {
        "optim": {"steps": 2},
        "data": {"validation": ["held_out.jsonl"]},
        "validation": {"every": 1, "write": 0},
    }
    for family, expected in (("gptj", 2), ("llama", 0)):
        loop = small_loop(small_recipe(samples, **changes), tmp_path / family, family)
        loop.quiet = False
        if expected:
            blind(loop)
        loop.run()
        lines = [json.loads(line) for line in (loop.folder / "log.jsonl").read_text().splitlines()]
        assert all("validation_reliance" in line for line in lines)
        assert [("warning" in line) for line in lines] == [bool(expected)] * 2
        assert capsys.readouterr().err.count("reliance is exactly 0") == expected
