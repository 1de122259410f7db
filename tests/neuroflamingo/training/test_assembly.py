"""From a recipe to a model: encoder, language model, weights to begin with, at any size without memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neuroflamingo.data.scan_sources import FileScans
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.parameters import grouped_names
from neuroflamingo.model.processor import NeuroFlamingoProcessor
from neuroflamingo.recipe.schema import EncoderSettings, LanguageModelSettings, Recipe
from neuroflamingo.settings import check_settings
from neuroflamingo.training.assembly import build, recipe_encoder
from neuroflamingo.training.initial_weights import start_from
from neuroflamingo.training.language_models import language_model
from neuroflamingo.training.trainable import merge_lora
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NeuroFlamingoError, NotFoundError
from tests.neuroflamingo.training.small_runs import trained_names
from tests.tiny import FAMILIES, tiny_batch, tiny_language_model, tiny_model, tiny_tokenizer

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
SMALL = {"depth": 1, "num_latents": 3, "heads": 2, "dim_head": 8}


def recipe(**changes: Any) -> Recipe:
    """A recipe of ready tokens of width 16; `changes` replace keys of `model`, or, by name, whole sections."""
    sections = {key: changes.pop(key) for key in ("trained", "optim", "run", "seed", "data") if key in changes}
    model = {"token_width": 16, "resampler": SMALL, "cross_attention": {"heads": 2, "dim_head": 8}} | changes
    base = {"name": "trial", "model": model, "data": {"train": ["train.jsonl"]}, "optim": {"steps": 3}}
    return check_settings(Recipe, base | sections, "the recipe")


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory):
    """A saved tiny LLaMA with its tokenizer."""
    folder = tmp_path_factory.mktemp("language")
    tiny_language_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer_folder(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_a_language_model_of_a_folder_keeps_its_weights(language_folder):
    model, processor = build(recipe(language_model={"source": str(language_folder)}))
    assert type(model) is NeuroFlamingo and not model.training
    rows = tiny_language_model("llama").get_input_embeddings().weight
    assert torch.equal(model.lang_encoder.get_input_embeddings().weight[:61], rows[:61])
    assert model.config.new_token_ids == [
        processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|endofchunk|>", "<image>")
    ]
    belongs = grouped_names(model)
    assert {belongs[name] for name in trained_names(model)} <= {"resampler", "gated_blocks", "new_tokens", "embeddings"}
    batch = tiny_batch(processor)
    assert bool(model(**batch).logits.isfinite().all())


def test_a_recipe_says_what_prompts_its_model_is_trained_for(language_folder, tmp_path):
    asked = {"max_examples": 3, "max_scans": 2, "forms": ["one scan", "few-shot", "follow-up"]}
    language = {"source": str(language_folder)}
    for prompts in (None, asked):
        model, processor = build(recipe(language_model=language, prompts=prompts))
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        stored = NeuroFlamingoProcessor.from_pretrained(tmp_path).prompts
        assert processor.prompts == stored and model.config.prompts == prompts
    assert stored is not None and stored.max_examples == 3


def test_the_seed_decides_random_weights_and_the_callers_state_stays(tokenizer_folder):
    architecture = {"model_type": "opt", "vocab_size": 64, **FAMILIES["opt"]}
    how = {"language_model": {"architecture": architecture, "tokenizer": tokenizer_folder}}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, _ = build(recipe(**how, seed=3))
    assert torch.equal(torch.rand(1), expected)
    two, other = build(recipe(**how, seed=3))[0], build(recipe(**how, seed=4))[0]
    first, second, third = (m.state_dict() for m in (one, two, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_what_trains_is_in_float32_and_the_rest_as_asked(language_folder):
    lora = {"rank": 2, "targets": ["q_proj", "to_q"]}
    how = {"language_model": {"source": str(language_folder), "dtype": "bfloat16"}, "trained": {"lora": lora}}
    model, processor = build(recipe(**how))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    batch = tiny_batch(processor, padding_side="right")
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert bool(loss.isfinite())
    assert all(model.get_parameter(name).grad is not None for name in trained_names(model) if "new_token" not in name)


def test_multimodal_gpt_at_llama_7b_without_memory():
    lora = {"rank": 16, "alpha": 16.0}
    model, processor = build(
        recipe(
            token_width=1024,
            resampler={},
            cross_attention={"every": 4, "media_rule": "next"},
            language_model={"architecture": LLAMA_7B, "dtype": "bfloat16"},
            trained={"parts": [], "lora": lora},
        ),
        meta=True,
    )
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.config.cross_attention["media_rule"] == "next"
    assert len(processor.tokenizer) == 32003 and model.config.new_token_ids == [32000, 32001]
    shapes = {name: tuple(model.get_parameter(name).shape) for name in trained_names(model)}
    block = "lang_encoder.model.layers.3.gated_cross_attn_layer."
    published = {
        "attn.to_q": ((16, 4096), (512, 16)),
        "attn.to_kv": ((16, 1024), (1024, 16)),
        "attn.to_out": ((16, 512), (4096, 16)),
        "ff.1": ((16, 4096), (16384, 16)),
        "ff.3": ((16, 16384), (4096, 16)),
    }
    for place, (down, up) in published.items():
        assert shapes[f"{block}{place}.lora_A.default.weight"] == down
        assert shapes[f"{block}{place}.lora_B.default.weight"] == up
    assert len(shapes) == 2 * (32 * 4 + 8 * 5)
    assert not any("mlp" in name or "perceiver" in name for name in shapes)


def test_architecture_and_source_must_agree_and_a_source_stands_back_on_meta(language_folder):
    architecture = {"model_type": "llama", **FAMILIES["llama"], "vocab_size": 64}
    build(recipe(language_model={"source": str(language_folder), "architecture": architecture}))
    with pytest.raises(ConfigError, match="hidden_size: 48, in the source 32"):
        build(
            recipe(language_model={"source": str(language_folder), "architecture": architecture | {"hidden_size": 48}})
        )
    absent = {"source": "nobody/nothing-here", "architecture": architecture, "tokenizer_size": 60}
    model, processor = build(recipe(language_model=absent), meta=True)
    assert len(processor.tokenizer) == 63 and model.lang_encoder.get_input_embeddings().weight.shape == (64, 32)
    with pytest.raises(ModelError, match="nobody/nothing-here is not on this machine") as caught:
        build(recipe(language_model=absent))
    assert caught.value.exit_code == 69


@pytest.mark.parametrize(
    ("language_model", "kind", "code", "words"),
    [
        ({"architecture": {"model_type": "lama", "hidden_size": 8}}, ConfigError, 78, "unknown language model 'lama'"),
        ({"source": "./nowhere"}, NotFoundError, 66, "there is no folder ./nowhere"),
        ({"architecture": {"model_type": "llama", **FAMILIES["llama"]}}, ConfigError, 78, "no tokenizer"),
    ],
)
def test_language_models_that_cannot_be(language_model, kind, code, words):
    with pytest.raises(kind, match=words) as caught:
        build(recipe(language_model=language_model))
    assert caught.value.exit_code == code


def test_folders_with_code_pickles_or_half_the_weights_are_refused(language_folder, tmp_path):
    import shutil

    for fault in ("code", "pickle", "half"):
        folder = shutil.copytree(language_folder, tmp_path / fault)
        if fault == "code":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
        elif fault == "pickle":
            (folder / "model.safetensors").unlink()
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
        else:
            state = tiny_language_model("llama").state_dict()
            state.pop("model.layers.1.mlp.up_proj.weight")
            save_file(
                {key: value.clone() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"}
            )
        with pytest.raises(NeuroFlamingoError) as caught:
            build(recipe(language_model={"source": str(folder)}))
        assert caught.value.exit_code == (78 if fault == "code" else 65), fault


def test_a_tiny_encoder_of_the_same_class_is_saved_and_comes_back(language_folder, tmp_path):
    how = {"token_width": None, "encoder": {"name": "brainiac-vitb", "tiny": True}}
    model, processor = build(recipe(language_model={"source": str(language_folder)}, **how))
    assert processor.card.output.width == model.config.resampler["dim"] < 768
    assert not any(p.requires_grad for p in model.encoder.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = NeuroFlamingo.from_pretrained(tmp_path / "saved")
    before, after = model.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again.save_pretrained(tmp_path / "twice")


@pytest.mark.parametrize("name", ["siglip-so400m", "swinunetr-encoder", "brainlm-vitmae-650m"])
def test_published_encoders_need_no_weights_without_memory(name, language_folder):
    how = {"token_width": None, "encoder": {"name": name}, "resampler": {"depth": 1}}
    model, processor = build(recipe(language_model={"source": str(language_folder)}, **how), meta=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(p.numel() for p in model.encoder.parameters()) == processor.card.cost.parameters


def test_start_from_a_saved_model_and_from_multimodal_gpts_branches(language_folder, tmp_path):
    source = {"source": str(language_folder)}
    first, _ = build(recipe(language_model=source, seed=1))
    with torch.no_grad():
        for block in first.gated_blocks.values():
            block.attn_gate.fill_(0.5)
    first.save_pretrained(tmp_path / "first")
    again, _ = build(recipe(language_model=source, seed=2, start=str(tmp_path / "first")))
    state, other = first.state_dict(), again.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)
    name = "lang_encoder.model.layers.1.gated_cross_attn_layer.attn.to_q"
    theirs = name.replace("lang_encoder.", "lang_encoder.base_model.model.")
    down, up = torch.ones(2, 32), torch.ones(16, 2)
    branches = {f"{theirs}.lora_A.default.weight": down, f"{theirs}.lora_B.default.weight": up}
    save_file(branches, tmp_path / "branches.safetensors")
    report = start_from(again, tmp_path / "branches.safetensors")
    assert report.merged == (f"{name}.weight",)
    torch.testing.assert_close(again.get_parameter(f"{name}.weight"), state[f"{name}.weight"] + 2.0)


def test_start_from_a_checkpoint_of_a_run_adds_its_branches(language_folder, tmp_path):
    source = {"source": str(language_folder)}
    lora = {"rank": 2, "alpha": 6.0, "targets": ["q_proj", "to_kv"]}
    there = recipe(language_model=source, trained={"parts": ["resampler", "new_tokens"], "lora": lora})
    first, processor = build(there)
    with torch.no_grad():
        for name in trained_names(first):
            if "embed" not in name and "lm_head" not in name:
                first.get_parameter(name).add_(0.01)
    folder = tmp_path / "step-0000010"
    folder.mkdir()
    weights = {name: first.get_parameter(name).detach().clone() for name in trained_names(first)}
    save_file(weights, folder / "weights.safetensors")
    (folder / "state.json").write_text(json.dumps({"recipe": there.model_dump(mode="json")}))
    second, _ = build(recipe(language_model=source, seed=0, start=str(folder)))
    batch = tiny_batch(processor)
    with torch.no_grad():
        torch.testing.assert_close(second(**batch).logits, first(**batch).logits, atol=1e-5, rtol=1e-5)
    save_file({"perceiver.latent": torch.zeros(2)}, folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"perceiver\.latent") as caught:
        build(recipe(language_model=source, start=str(folder)))
    assert caught.value.exit_code == 65


def test_weights_to_start_from_that_do_not_fit_or_are_not_there(language_folder, tmp_path):
    source = {"source": str(language_folder)}
    with pytest.raises(NotFoundError, match="no weights to start from"):
        build(recipe(language_model=source, start=str(tmp_path / "none")))
    (tmp_path / "old.pt").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="not a safetensors file"):
        build(recipe(language_model=source, start=str(tmp_path / "old.pt")))
    other, _ = tiny_model("llama", resampler={"dim": 16, "depth": 2, "num_latents": 3, "heads": 2, "dim_head": 8})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError) as caught:
        build(recipe(language_model=source, start=str(tmp_path / "other")))
    assert caught.value.exit_code == 65


def test_settings_that_do_not_fit_are_told(language_folder):
    with pytest.raises(ConfigError, match=r"model\.resampler"):
        build(recipe(language_model={"source": str(language_folder)}, resampler={"depht": 3}))
    with pytest.raises(ConfigError, match="qkv matches nothing"):
        build(recipe(language_model={"source": str(language_folder)}, trained={"lora": {"targets": ["qkv"]}}))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_branches_beside_quantised_weights_train_and_merge(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="quantised weights need the optional package bitsandbytes")
    tiny_language_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "language")
    tiny_tokenizer().save_pretrained(tmp_path / "language")
    source = {"source": str(tmp_path / "language"), "quantize": bits}
    model, processor = build(recipe(language_model=source, trained={"lora": {"rank": 2}}))
    kinds = {type(module).__module__.split(".")[0] for module in model.lang_encoder.modules()}
    assert "bitsandbytes" in kinds
    assert not any("gated" in name and "int" in str(p.dtype) for name, p in model.named_parameters())
    batch = tiny_batch(processor, padding_side="right")
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(model.get_parameter(name).grad is not None for name in trained_names(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
        before = model.eval()(**batch).logits
    assert merge_lora(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, before, atol=0.05, rtol=0.05)
    model.save_pretrained(tmp_path / "saved")
    again = NeuroFlamingo.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_what_a_recipe_lacks_is_said_in_a_recipes_words() -> None:
    """`train` has no --weights, no --init and no --table."""
    for chosen in ({"name": "vit3d"}, {"name": "brainiac-vitb"}, {"name": "brainlm-13m", "init": "random"}):
        with pytest.raises(NeuroFlamingoError, match=r"--set model\.encoder\.") as refused:
            recipe_encoder(EncoderSettings.model_validate(chosen))
        assert not set(re.findall(r"--[a-z-]+", str(refused.value))) - {"--set", "--encoder"}


def test_a_scan_that_needs_an_option_is_sent_through_a_store(tmp_path: Path) -> None:
    """A table does not say its repetition time, and `train` has no --tr."""
    card = encoder_card("brainlm-13m")
    np.savetxt(tmp_path / "s.tsv", np.ones((424, 200)), delimiter="\t")
    with pytest.raises(NeuroFlamingoError, match=r"neuroflamingo prepare FOLDER -o STORE --encoder brainlm-13m"):
        FileScans(card).read(str(tmp_path / "s.tsv"), 0)


@pytest.mark.parametrize(
    "fault", ["an adapter", "a pickle in the index", "a link", "ten million layers", "cut weights"]
)
def test_a_language_model_that_was_damaged_or_made_to_harm_is_refused(tmp_path, fault):
    folder = tmp_path / "lm"
    tiny_language_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "an adapter":
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    elif fault == "a pickle in the index":
        weights.rename(folder / "spare.safetensors")
        (folder / "weights.dat").write_bytes(b"\x80\x04.")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "weights.dat"}}))
    elif fault == "a link":
        weights.rename(tmp_path / weights.name)
        weights.symlink_to(tmp_path / weights.name)
    elif fault == "ten million layers":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 10**7}))
    else:
        weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"adapter_config|index\.json|model\.safetensors|config\.json") as caught:
        language_model(LanguageModelSettings(source=str(folder), dtype="float32"))
    assert caught.value.exit_code == 65
