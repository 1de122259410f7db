"""What trains: parts, patterns, low-rank branches, the optimiser's groups."""

from __future__ import annotations

import pytest
import torch

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.parameters import grouped_names
from neuroflamingo.recipe.schema import LoraSettings, OptimSettings, TrainedSettings
from neuroflamingo.training.trainable import add_lora, describe_groups, freeze, merge_lora, parameter_groups
from neuroflamingo_encoders import build_encoder
from neuroflamingo_preprocessing.errors import ConfigError
from tests.neuroflamingo.training.small_runs import trained_names
from tests.tiny import tiny_batch, tiny_model

GATED = ("to_q", "to_kv", "to_out", "ff.1", "ff.3")
GPT_TARGETS = {"gpt2": ("c_attn", *GATED), "gptj": ("q_proj", "v_proj", *GATED), "llama": LoraSettings().targets}


def trained_groups(model: NeuroFlamingo) -> set[str]:
    belongs = grouped_names(model)
    return {belongs[name] for name in trained_names(model)}


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("parts", [("resampler",), ("gated_blocks",), ("language_model",), ()])
def test_parts_train_and_nothing_else(family, parts):
    model, _ = tiny_model(family)
    freeze(model, TrainedSettings(parts=parts))
    whole = {"language_model", "embeddings"}
    assert trained_groups(model) == (whole if "language_model" in parts else set(parts))


def test_new_tokens_train_and_embeddings_as_a_whole():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor, padding_side="right")
    freeze(model, TrainedSettings(parts=("new_tokens",)))
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    touched = set()
    for name in trained_names(model):
        gradient = model.get_parameter(name).grad
        assert gradient is not None, name
        touched |= set(gradient.abs().sum(-1).nonzero()[:, 0].tolist()) if len(gradient) > 2 else set()
    assert touched <= set(model.config.new_token_ids)
    freeze(model, TrainedSettings(parts=("embeddings",)))
    assert trained_groups(model) == {"embeddings"}


@pytest.mark.parametrize(
    ("family", "matrices"),
    [("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}), ("gpt2", {"c_attn", "c_proj"}), ("bloom", None)],
)
def test_attention_only_as_paligemma_is_tuned(family, matrices):
    model, processor = tiny_model(family)
    freeze(model, TrainedSettings(parts=("attention",)))
    names = trained_names(model)
    assert names and all(".decoder_layer." in name and "attn" in name.lower() + ".attn" for name in names)
    assert not any("mlp" in name or "norm" in name or "gated" in name for name in names)
    if matrices is not None:
        assert {name.split(".")[-2] for name in names} == matrices
    batch = tiny_batch(processor, padding_side="right")
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in names), name


def test_patterns_train_and_an_idle_one_is_an_error():
    model, _ = tiny_model("llama")
    freeze(model, TrainedSettings(parts=(), patterns=(r"decoder_layer\.mlp", r"_gate$")))
    assert {name.split(".")[-2] for name in trained_names(model) if "mlp" in name} == {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert sum(name.endswith("_gate") for name in trained_names(model)) == 6
    with pytest.raises(ConfigError, match=r"patterns: nothing_like_this"):
        freeze(model, TrainedSettings(patterns=("nothing_like_this",)))
    with pytest.raises(ConfigError, match="not a regular expression"):
        freeze(model, TrainedSettings(patterns=("(",)))


def test_last_blocks_of_the_encoder_train_in_eval_mode():
    encoder = build_encoder("brainiac-vitb", tiny=True)
    width = encoder.card.output.width
    model, processor = tiny_model(
        "llama", encoder=encoder, resampler={"dim": width, "depth": 1, "num_latents": 3, "heads": 2, "dim_head": 8}
    )
    freeze(model, TrainedSettings(parts=(), encoder_blocks=1)).train()
    names = trained_names(model)
    assert names and all(name.startswith("encoder.blocks.") for name in names)
    assert len({name.split(".")[2] for name in names}) == 1
    assert not any(module.training for module in model.encoder.modules())
    scans = encoder.example((1, 1, *(axis.size for axis in encoder.card.scan.axes)), torch.Generator().manual_seed(0))
    ids = processor("<image> w1 w2", scans=[scans[0, 0]])
    model(**ids, labels=ids["input_ids"]).loss.backward()
    idle = [name for name in names if model.get_parameter(name).grad is None]
    assert idle == []
    with pytest.raises(ConfigError, match="does not have 99 blocks"):
        freeze(model, TrainedSettings(encoder_blocks=99))
    chosen = add_lora(model, LoraSettings(rank=2, targets=(r"encoder\.blocks\..*",), encoder_blocks=1))
    last = ".".join(names[0].split(".")[:3]) + "."
    assert chosen and all(name.startswith(last) for name in chosen)


@pytest.mark.parametrize("family", GPT_TARGETS)
def test_lora_in_place_trains_only_branches_and_merges_to_the_same_logits(family):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor, padding_side="right")
    with torch.no_grad():
        bare = model(**batch).logits
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    lora = LoraSettings(rank=4, alpha=8.0, targets=GPT_TARGETS[family])
    chosen = add_lora(model, lora)
    freeze(model, TrainedSettings(parts=(), lora=lora))
    assert type(model) is NeuroFlamingo
    assert trained_groups(model) == {"lora"}
    assert len(trained_names(model)) == 2 * len(chosen)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, bare)
    groups = parameter_groups(model, OptimSettings(steps=1))
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    losses = []
    for _ in range(6):
        loss = model.train()(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    with torch.no_grad():
        after = model.eval()(**batch).logits
    assert merge_lora(model) == chosen
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, after, atol=1e-5, rtol=1e-5)
    merged = model.state_dict()
    assert merged.keys() == plain.keys()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {f"{name}.weight" for name in chosen}


def test_branches_are_the_same_for_the_same_seed_whatever_was_drawn_before():
    drawn = []
    for _ in range(2):
        model, _ = tiny_model("llama")
        torch.rand(3)
        add_lora(model, LoraSettings(rank=2), seed=5)
        drawn.append([model.get_parameter(n).clone() for n, _ in model.named_parameters() if "lora_A" in n])
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_lora_keeps_what_was_trained_before_it():
    model, _ = tiny_model("llama")
    freeze(model, TrainedSettings(parts=("resampler",)))
    add_lora(model, LoraSettings(rank=2, targets=("q_proj",)))
    assert trained_groups(model) == {"resampler", "lora"}
    branches = trained_names(model)
    add_lora(model, LoraSettings(rank=2, targets=("q_proj",)))
    assert trained_names(model) == branches
    for other in ({}, {"rank": 3, "targets": ("q_proj",)}):
        with pytest.raises(ConfigError, match="already has other LoRA adapters"):
            add_lora(model, LoraSettings(**other))


def test_lora_targets_by_regular_expression_resampler_and_the_ones_that_match_nothing():
    model, processor = tiny_model("llama")
    chosen = add_lora(model, LoraSettings(rank=2, targets=(r".*layers\.[02]\.decoder_layer\.mlp\.(up|down)_proj",)))
    assert [name.split(".")[3] for name in chosen] == ["0", "0", "2", "2"]
    merge_lora(model)
    with pytest.raises(ConfigError) as caught:
        add_lora(model, LoraSettings(targets=("q_proj", "qkv_proj", "lm_head")))
    assert "qkv_proj, lm_head" in str(caught.value) and "q_proj" in str(caught.value.expected)
    inside = add_lora(model, LoraSettings(rank=2, targets=("to_kv",), resampler=True))
    assert sum(name.startswith("perceiver.") for name in inside) == 2
    batch = tiny_batch(processor, padding_side="right")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    grad = model.train()(**batch).logits  # the resampler's shortcut in training must not pass the branches by
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).logits, grad, atol=1e-5, rtol=1e-5)


def test_groups_of_weight_decay():
    model, _ = tiny_model("llama")
    freeze(model, TrainedSettings())
    by_name = {}
    for group in parameter_groups(model, OptimSettings(steps=1, weight_decay=0.2)):
        assert len(group["names"]) == len(group["params"])
        by_name |= dict.fromkeys(group["names"], group["weight_decay"])
    assert set(by_name) == set(trained_names(model))
    assert {name.split(".")[-2] for name, decay in by_name.items() if decay == 0.2} >= {"to_q", "to_kv", "to_out"}
    for name, decay in by_name.items():
        table = "latents" in name or "embed" in name or "lm_head" in name or "new_token" in name
        assert decay == (0.2 if model.get_parameter(name).ndim == 2 and not table else 0.0), name
    upstream = parameter_groups(model, OptimSettings(steps=1, decay="gated"))
    assert all("gated_cross_attn_layer" in name for name in upstream[0]["names"])
    assert any(name.endswith("attn_gate") for name in upstream[0]["names"])
    assert not any("gated_cross_attn_layer" in name for name in upstream[1]["names"])
    words = describe_groups(model, OptimSettings(steps=1))
    assert words.startswith("weight decay 0.1: ") and "gated_blocks" in words
    freeze(model, TrainedSettings(parts=()))
    with pytest.raises(ConfigError, match="no parameters are trainable"):
        parameter_groups(model, OptimSettings(steps=1))
