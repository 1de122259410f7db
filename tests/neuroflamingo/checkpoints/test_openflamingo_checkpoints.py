"""Published layouts, made from the golden whole models: each is read to the last tensor, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from neuroflamingo.checkpoints.openflamingo import LoadReport, load_openflamingo
from neuroflamingo.model.fusion import fuse
from neuroflamingo.model.media import media_from_locations
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo_preprocessing.errors import ModelError

FOLDER = Path(__file__).parents[2] / "parity" / "openflamingo"
SPECS = {
    entry["name"]: entry
    for entry in json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))["fixtures"]
    if entry["kind"] == "flamingo"
}
OPT, LLAMA, NEOX = "flamingo_opt_n1", "flamingo_llama_n2", "flamingo_gptneox_n1"


class Bare(nn.Module):
    """The parts that a checkpoint is about, under their names."""

    def __init__(self, name: str, every: int | None = None, vis_dim: int | None = None) -> None:
        super().__init__()
        spec = SPECS[name]
        config = dict(spec["lm_config"])
        family = config.pop("model_type")
        width = vis_dim or spec["vis_dim"]
        self.spec = spec
        self.perceiver = PerceiverResampler(dim=width)
        self.lang_encoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
        fuse(self.lang_encoder, dim_visual=width, every=every or spec["cross_attn_every_n_layers"])
        self.requires_grad_(False).eval()

    def logits(self) -> torch.Tensor:
        tensors = load_file(FOLDER / self.spec["file"])
        ids = tensors["input.lang_x"]
        latents = self.perceiver(tensors["input.vision_features"])
        here = ids == self.spec["media_token_id"]
        media = media_from_locations(latents, here, ids.shape[1], immediate=True, cached=False)
        mask = tensors["input.attention_mask"]
        return self.lang_encoder(input_ids=ids, attention_mask=mask, media=media).logits[mask.bool()]


def stored(name: str) -> dict[str, torch.Tensor]:
    """Every tensor of a golden model once, under its first name."""
    tensors = load_file(FOLDER / SPECS[name]["file"])
    return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}


def whole(name: str) -> dict[str, torch.Tensor]:
    """Upstream's complete state dict: every tensor under all its names."""
    tensors = stored(name)
    return tensors | {alias: tensors[target] for alias, target in SPECS[name]["aliases"].items()}


def published(name: str) -> dict[str, torch.Tensor]:
    """What upstream's v2 saver keeps."""
    everything = whole(name)
    return {key: everything[key] for key in SPECS[name]["trainable_checkpoint_keys"]}


def aliased(name: str) -> dict[str, torch.Tensor]:
    """The v1 layout: trained tensors, the gated blocks under the name of their own list."""
    prefix = "lang_encoder.gated_cross_attn_layers."
    kept = {key: value for key, value in published(name).items() if ".gated_cross_attn_layer." not in key}
    return kept | {key: value for key, value in whole(name).items() if key.startswith(prefix)}


def golden_logits(name: str) -> torch.Tensor:
    tensors = load_file(FOLDER / SPECS[name]["file"])
    return tensors["output.logits"][tensors["input.attention_mask"].bool()]


@pytest.fixture(params=[OPT, LLAMA, NEOX])
def name(request) -> str:
    return request.param


def test_complete_state_dict(name):
    model = Bare(name)
    report = load_openflamingo(model, whole(name))
    torch.testing.assert_close(model.logits(), golden_logits(name), atol=1e-5, rtol=0)
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.left_over, report.merged) == ((), (), ())


@pytest.mark.parametrize("layout", [published, aliased, lambda name: aliased(name) | published(name)])
def test_trained_weights_on_the_right_language_model(name, layout):
    model = Bare(name)
    frozen = {key: value for key, value in stored(name).items() if key not in published(name)}
    assert frozen
    model.load_state_dict(frozen, strict=False)
    report = load_openflamingo(model, layout(name))
    torch.testing.assert_close(model.logits(), golden_logits(name), atol=1e-5, rtol=0)
    assert set(report.missing) == set(frozen)
    assert set(report.loaded) == set(model.state_dict()) - set(frozen)


@pytest.mark.parametrize("prefix", ["module.", "_fsdp_wrapped_module."])
def test_nested_and_wrapped(prefix):
    def wrapped(key: str) -> str:
        return prefix + key.replace(".decoder_layer.", ".decoder_layer._checkpoint_wrapped_module.").replace(
            "perceiver.", "perceiver._fsdp_wrapped_module._checkpoint_wrapped_module."
        )

    weights = {wrapped(key): value for key, value in whole(OPT).items()}
    file = {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {}, "lr_scheduler_state_dict": {}}
    model = Bare(OPT)
    report = load_openflamingo(model, file)
    torch.testing.assert_close(model.logits(), golden_logits(OPT), atol=1e-5, rtol=0)
    assert report.left_over == ("epoch", "lr_scheduler_state_dict", "optimizer_state_dict")
    assert report.missing == ()


def refused(model: nn.Module, file: dict[str, Any], *words: str) -> None:
    """The load raises an error that says all of `words`, and the model stays as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_openflamingo(model, file)
    assert caught.value.exit_code == 65
    for word in words:
        assert word in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_copies_that_disagree():
    file = whole(OPT)
    key = "lang_encoder.gated_cross_attn_layers.1.attn_gate"
    file[key] = file[key] + 1e-6
    refused(Bare(OPT), file, key, "lang_encoder.model.decoder.layers.1.gated_cross_attn_layer.attn_gate")


def test_tied_head_that_differs():
    file = published(OPT)
    file["lang_encoder.lm_head.weight"] = file["lang_encoder.lm_head.weight"] + 1
    refused(Bare(OPT), file, "lang_encoder.lm_head.weight", "lang_encoder.model.decoder.embed_tokens.weight")


def test_head_alone_fills_the_embeddings():
    file = published(OPT)
    del file["lang_encoder.model.decoder.embed_tokens.weight"]
    report = load_openflamingo(Bare(OPT), file)
    assert "lang_encoder.model.decoder.embed_tokens.weight" in report.loaded


@pytest.mark.parametrize(
    "key",
    [
        "surprise.weight",
        "perceiver.frame_embs",
        "lang_encoder.model.decoder.layers.0.decoder_layer.surprise.bias",
        "lang_encoder.gated_cross_attn_layers.0.attn.surprise",
        "perceiver.layers.0.0.to_q.lora_A.other.weight",
        "submodule.perceiver.latents",
    ],
)
def test_unknown_names(key):
    refused(Bare(OPT), published(OPT) | {key: torch.zeros(2)}, key)


@pytest.mark.parametrize("start", ["perceiver.layers.3.", "lang_encoder.model.decoder.layers.1.gated", "perceiver."])
def test_trained_tensors_that_are_missing(start):
    file = {key: value for key, value in published(OPT).items() if not key.startswith(start)}
    refused(Bare(OPT), file, start)


def test_other_interval():
    refused(Bare(LLAMA, every=1), published(LLAMA), "lacks", "layers 1, 3")
    refused(Bare(LLAMA, every=4), published(LLAMA), "cross_attn_every_n_layers=2")


def test_other_shapes():
    refused(Bare(OPT, vis_dim=10), published(OPT), "perceiver.latents", "[64, 8]", "[64, 10]")
    file = published(LLAMA)
    file["lang_encoder.model.embed_tokens.weight"] = torch.zeros(95, 40)
    refused(Bare(LLAMA), file, "[95, 40]", "[96, 40]", "<|endofchunk|>, <image>")


def test_a_model_without_memory():
    model = Bare(OPT)
    model.perceiver.to("meta")
    with pytest.raises(ModelError, match=r"float32 \[64, 8\] without memory"):
        load_openflamingo(model, published(OPT))


class WithTokens(Bare):
    """A model that knows its special tokens, with an embedding table that is longer than they need."""

    def __init__(self, name: str, rows: int) -> None:
        super().__init__(name)
        self.lang_encoder.resize_token_embeddings(rows)
        ids = {"image_token_id": self.spec["media_token_id"], "endofchunk_token_id": self.spec["eoc_token_id"]}
        self.config = SimpleNamespace(**ids)


def test_rows_after_the_special_tokens_may_be_missing():
    model = WithTokens(OPT, 100)
    table = model.lang_encoder.get_input_embeddings().weight
    before = table.clone()
    report = load_openflamingo(model, whole(OPT))
    assert torch.equal(table[:96], stored(OPT)["lang_encoder.model.decoder.embed_tokens.weight"])
    assert torch.equal(table[96:], before[96:])
    assert any("96 of 100 rows" in note for note in report.notes)
    torch.testing.assert_close(model.logits()[:, :96], golden_logits(OPT), atol=1e-5, rtol=0)
    file = published(OPT)
    for key in ("lang_encoder.lm_head.weight", "lang_encoder.model.decoder.embed_tokens.weight"):
        file[key] = file[key][:95]
    refused(WithTokens(OPT, 100), file, "[95, 40]", "[100, 40]")
    refused(WithTokens(OPT, 90), published(OPT), "[96, 40]", "[90, 40]")


def test_missing_embeddings_are_noted():
    report = load_openflamingo(
        WithTokens(NEOX, 96), {key: value for key, value in published(NEOX).items() if "embed_in" not in key}
    )
    assert any("no embeddings" in note for note in report.notes)
    assert "lang_encoder.gpt_neox.embed_in.weight" in report.missing


def test_other_language_model():
    refused(Bare(OPT), published(NEOX), "lang_encoder.gpt_neox")


@pytest.mark.parametrize("file", [{}, {"model_state_dict": {}}])
def test_nothing_to_read(file):
    refused(Bare(OPT), file, "no weights")


def test_entries_that_are_not_weights():
    refused(Bare(OPT), published(OPT) | {"surprise": 3}, "surprise")
    refused(Bare(OPT), {"model_state_dict": None}, "model_state_dict")
    refused(Bare(OPT), {"model_state_dict": published(OPT), "surprise": 3}, "surprise")


def test_a_model_without_gated_blocks():
    with pytest.raises(ModelError, match="assemble"):
        load_openflamingo(nn.Linear(2, 2), published(OPT))


def test_vision_tower_is_left_over():
    tower = {"vision_encoder.visual.conv1.weight": torch.zeros(2), "vision_encoder.logit_scale": torch.zeros(())}
    report = load_openflamingo(Bare(OPT), published(OPT) | tower)
    assert report.left_over == tuple(tower)
    assert any("vision tower" in note for note in report.notes)


@pytest.mark.parametrize("text_half", [{}, {"vision_encoder.token_embedding.weight": torch.ones(3)}])
def test_vision_tower_of_the_model_is_loaded(text_half):
    model = Bare(OPT)
    model.encoder = nn.ModuleDict({"visual": nn.Linear(2, 3)})
    middle = "visual." if text_half else ""
    tower = {f"vision_encoder.{middle}weight": torch.ones(3, 2), f"vision_encoder.{middle}bias": torch.ones(3)}
    report = load_openflamingo(model, published(OPT) | tower | text_half)
    assert model.encoder["visual"].weight.sum() == 6
    assert report.left_over == tuple(text_half)
    tower.popitem()
    fresh = Bare(OPT)
    fresh.encoder = nn.Linear(2, 4)
    report = load_openflamingo(fresh, published(OPT) | tower | text_half)
    assert set(report.left_over) == {*tower, *text_half}
    assert "encoder.weight" in report.missing


def test_buffers_of_old_releases():
    layer = "lang_encoder.gpt_neox.layers.0.decoder_layer.attention."
    model = Bare(NEOX)
    frequencies = model.lang_encoder.gpt_neox.rotary_emb.inv_freq
    old = {
        f"{layer}rotary_emb.inv_freq": frequencies.clone(),
        f"{layer}bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril(),
        f"{layer}masked_bias": torch.tensor(-1e9),
        "lang_encoder.old_decoder_blocks.0.attention.masked_bias": torch.tensor(-1e9),
    }
    report = load_openflamingo(model, published(NEOX) | old)
    assert report.left_over == tuple(old)
    wrong = {f"{layer}rotary_emb.inv_freq": frequencies * 2}
    refused(Bare(NEOX), published(NEOX) | wrong, f"{layer}rotary_emb.inv_freq")
    refused(Bare(NEOX), published(NEOX) | {f"{layer}bias": torch.ones(32)}, f"{layer}bias")


def adapted(name: str, targets: list[str], alpha: float = 16) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of a golden model with live adapters on its language model, and the file Multimodal-GPT would save."""
    from peft import LoraConfig, get_peft_model

    model = Bare(name)
    load_openflamingo(model, whole(name))
    torch.manual_seed(0)
    model.lang_encoder = get_peft_model(model.lang_encoder, LoraConfig(r=4, lora_alpha=alpha, target_modules=targets))
    for key, value in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(value.data, std=0.1)
    return model.eval().logits(), {key: value for key, value in model.state_dict().items() if "lora_" in key}


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "to_q", "to_kv", "to_out", "ff.1", "ff.3"]


@pytest.mark.parametrize("infix", [".default.", "."])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_multimodal_gpt(prefix, infix):
    expected, updates = adapted(LLAMA, ATTENTION)
    assert any(".gated_cross_attn_layer.ff.3.lora_A." in key for key in updates)
    model = Bare(LLAMA)
    load_openflamingo(model, whole(LLAMA))
    file = {prefix + key.replace(".default.", infix): value for key, value in updates.items()}
    report = load_openflamingo(model, {"model_state_dict": file, "tuning_config": {"r": 4, "alpha": 16}})
    torch.testing.assert_close(model.logits(), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, golden_logits(LLAMA), atol=1e-2)
    assert len(report.merged) == len(updates) // 2
    assert set(report.missing) == set(model.state_dict()) - set(report.merged)


def test_multimodal_gpt_with_all_weights_in_one_file():
    expected, updates = adapted(LLAMA, ATTENTION, alpha=4)
    wrapped = {key.replace("lang_encoder.", "lang_encoder.base_model.model."): v for key, v in whole(LLAMA).items()}
    wrapped = {key.replace(".q_proj.weight", ".q_proj.base_layer.weight"): v for key, v in wrapped.items()}
    model = Bare(LLAMA)
    report = load_openflamingo(model, wrapped | updates)
    torch.testing.assert_close(model.logits(), expected, atol=1e-5, rtol=0)
    assert report.missing == ()
    assert any("tuning_config" in note for note in report.notes)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda file: file["model_state_dict"].popitem(), "partner"),
        (lambda file: file.update(tuning_config={"r": 8, "alpha": 16}), "r = 8"),
        (lambda file: file.update(tuning_config={"r": 4}), "alpha = None"),
        (lambda file: file.update(tuning_config="r=4"), "tuning_config"),
    ],
)
def test_updates_that_do_not_fit(change, word):
    file = {"model_state_dict": adapted(LLAMA, ["to_q"])[1], "tuning_config": {"r": 4, "alpha": 16}}
    change(file)
    refused(Bare(LLAMA), file, word)


def test_update_of_another_shape():
    file = adapted(LLAMA, ["to_q"])[1]
    key = next(key for key in file if "lora_B" in key)
    refused(Bare(LLAMA), file | {key: torch.zeros(7, 4)}, "update of")
    refused(Bare(LLAMA), file | {key: torch.zeros(512, 3)}, "multiply")


def test_report_is_readable():
    text = str(load_openflamingo(Bare(OPT), {"epoch": 1, "model_state_dict": published(OPT)}))
    assert "loaded: 94 tensors: LM 3, gated blocks 22, resampler 69" in text
    assert "merged: none" in text
    assert "left over: 1\n  epoch (1)" in text
    assert "lang_encoder.model.decoder.layers.*.decoder_layer.fc1.weight (2)" in text
    assert str(LoadReport((), (), (), ())).startswith("loaded: 0 tensors\n")
