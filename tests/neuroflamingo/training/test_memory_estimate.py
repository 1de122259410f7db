"""The memory estimate: measured on the meta device, it is what autograd keeps of the real model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml

from neuroflamingo.cli import main
from neuroflamingo.recipe.schema import LoraSettings, Recipe, TrainedSettings
from neuroflamingo.settings import check_settings
from neuroflamingo.training import trainable
from neuroflamingo.training.assembly import build
from neuroflamingo.training.memory import Estimate, advice, combine, measure, saved_bytes
from neuroflamingo.training.rehearsal import rehearse
from tests.tiny import FAMILIES, TOKENS, WIDTH, tiny_model, tiny_tokenizer

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def recipe(**sections: Any) -> Recipe:
    text = {"architecture": LLAMA_7B, "dtype": "bfloat16"} | sections.pop("text", {})
    model = {"token_width": 1024, "cross_attention": {"every": 4}, "language_model": text}
    base = {"name": "trial", "model": model, "data": {"train": ["none.jsonl"]}, "optim": {"steps": 10, "batch": 4}}
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return check_settings(Recipe, base, "the recipe")


def really_saved(model: Any, text: int, scans: int, tokens: int) -> int:
    """Bytes that autograd keeps of one row on the CPU, each storage once, parameters apart."""
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage, storage.nbytes()
        return tensor

    ids = torch.ones(1, text, dtype=torch.long)
    ids[0, torch.arange(scans)] = model.config.image_token_id
    given = torch.zeros(1, scans, tokens, WIDTH)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, scan_tokens=given, use_cache=False, logits_to_keep=1)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("trained", ["resampler gated_blocks", "language_model", "lora"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox", "gemma2", "qwen2", "mpt", "gptj", "bloom"])
def test_what_autograd_keeps_is_what_was_estimated(family, trained):
    # With dropout on the scores a CPU's attention is not fused.
    model, _ = tiny_model(family, changes={"attn_pdrop": 0.0} if family == "gpt2" else None)
    if trained == "lora":
        trainable.add_lora(model, LoraSettings(rank=2, targets=("to_q", "to_kv", "ff.1")))
        trainable.freeze(model, TrainedSettings(parts=()))
    else:
        trainable.freeze(model, TrainedSettings(parts=tuple(trained.split())))
    model.train()
    real = really_saved(model, 47, 1, TOKENS)
    guessed, _ = saved_bytes(model.to("meta"), 47, 1, TOKENS)
    assert guessed == pytest.approx(real, rel=0.1)


def test_weights_gradients_and_moments_are_counted():
    asked = recipe()
    model, _ = build(asked, meta=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    sizes = measure(asked, model, "bf16")
    one = combine(asked, sizes)
    assert one.weights == pytest.approx(4 * trained + 2 * frozen + sizes.copies, rel=1e-3)
    assert one.gradients == 4 * trained and one.optimizer == 8 * trained
    assert one.total == sum(vars(one).values())
    ddp, averaged = combine(asked, sizes, world=2), combine(recipe(optim={"ema": 0.9}), sizes)
    assert ddp.gradients == 8 * trained and ddp.activations == one.activations // 2
    assert averaged.optimizer == 12 * trained
    sharded = combine(recipe(run={"parallel": "fsdp"}), sizes, world=4)
    assert sharded.optimizer == 8 * trained // 4 and 0 < sharded.gathered < one.weights
    assert sharded.total < one.total
    small = combine(recipe(text={"quantize": "4bit"}), sizes)
    assert small.weights < one.weights / 1.5
    for how in ("on", "offload"):
        assert combine(recipe(run={"gradient_checkpointing": how}), sizes).activations < one.activations / 3


def test_advice_names_settings_that_take_less_and_is_kept():
    asked = recipe()
    model, _ = build(asked, meta=True)
    sizes = measure(asked, model, "bf16")
    now = combine(asked, sizes).total
    found = advice(asked, sizes)
    assert [total for _, total in found] == sorted(total for _, total in found) and found[-1][1] < now
    said = dict(found)
    assert {"run.gradient_checkpointing=on", "optim.batch=1 with optim.accumulate=4", "data.max_tokens=256"} <= set(
        said
    )
    changed = recipe(run={"gradient_checkpointing": "on"})
    remeasured = combine(changed, measure(changed, build(changed, meta=True)[0], "bf16"))
    assert remeasured.total == pytest.approx(said["run.gradient_checkpointing=on"], rel=0.01)
    assert any("fsdp" in setting for setting, _ in advice(asked, sizes, world=2))


@pytest.mark.slow
def test_a_dry_run_says_recipe_parameters_steps_and_memory(tmp_path):
    found = rehearse(recipe(trained={"lora": {"rank": 16}, "parts": ["new_tokens"]}), world=1)
    text = found.text
    for words in ("# recipe", "# parameters", "# steps", "# memory, estimated, on one device"):
        assert words in text
    assert "max_tokens: 512" in text and "10 optimiser steps" in text and "40 samples drawn" in text
    assert "lora" in text and "weight decay 0.1" in text and "samples are not counted" in text
    assert [fault.exit_code for fault in found.faults] == [78, 66]  # no tokenizer, no none.jsonl
    rows = [line.split() for line in text.splitlines()]
    assert any(row[:1] == ["activations"] and float(row[1]) > 1 for row in rows)
    assert "on each of 8 devices (ddp)" in rehearse(recipe(optim={"batch": 8}), world=8).text


def test_a_dry_run_counts_the_samples_that_are_here(tmp_path):
    turns = [[{"role": "user", "text": f"w{n}"}, {"role": "assistant", "text": "w9"}] for n in range(8)]
    lines = [json.dumps({"id": str(number), "kind": "text", "turns": turns[number]}) for number in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    small = {"architecture": {"model_type": "llama", "vocab_size": 64, **FAMILIES["llama"]}, "dtype": "float32"}
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    small["tokenizer"] = str(tmp_path / "tokenizer")
    found = rehearse(recipe(text=small, data={"source": str(tmp_path), "train": ["train.jsonl"]}))
    assert not found.faults and "text: 8 samples, 100% of the draws, each seen 5.0 times" in found.text
    assert "It will not fit" not in found.text


def test_lines_leave_out_what_is_not_there():
    lines = list(Estimate(2**30, 0, 0, 0, 2**29, 0, 0).lines())
    assert lines == [f"{'weights':<14}     1.00 GB", f"{'activations':<14}     0.50 GB", f"{'all':<14}     1.50 GB"]


def test_the_command_line_prints_it_and_stops(tmp_path, monkeypatch, capsys):
    asked = recipe().model_dump(mode="json")
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(asked))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "trial.yaml", "--dry-run", "--set", "optim.steps=7"]) == 78  # without a tokenizer
    assert "7 optimiser steps" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["trial.yaml"]
    assert main(["train", "trial.yaml", "--dry-run", "--set", "trained.patterns=[nothing_at_all]"]) == 78
