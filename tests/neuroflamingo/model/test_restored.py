"""What a bare language model restores, the fused one restores: buffers that are not saved, tied tensors, odd builds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Gemma3Config

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo_preprocessing.errors import ModelError
from tests.neuroflamingo.model.small_configs import small_config
from tests.tiny import VOCAB, WIDTH, fill_by_rule, tiny_batch, tiny_tokenizer

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_HYBRID = {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid"] * 3, "mamba_d_state": 8, "n_mamba_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    # a multiplier that is a buffer of the layers and is set by the model above them
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "diffllama": {},  # a tensor in memory in a build that is else without
    "zamba": _HYBRID | {"num_key_value_heads": 4, "attention_head_dim": 16},  # shared layers, by a pattern of names
    "zamba2": _HYBRID | {"num_mem_blocks": 1, "mamba_headdim": 16, "mamba_ngroups": 1, "chunk_size": 8},
}


def assemble(config: Any) -> tuple[Any, Any]:
    language_model = AutoModelForCausalLM.from_config(config)
    fill_by_rule(language_model)
    resampler = {"dim": WIDTH, "depth": 1, "num_latents": 3, "heads": 2, "dim_head": 8}
    model, processor = NeuroFlamingo.assemble(None, language_model, tiny_tokenizer(), resampler=resampler, gate=0.5)
    return model.eval(), processor


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_comes_back_and_tied_ones_stay_tied(family, tmp_path):
    model, processor = assemble(CONFIG_MAPPING[family](**_SIZES | FAMILIES[family]))
    model.save_pretrained(tmp_path)
    again = NeuroFlamingo.from_pretrained(tmp_path)
    before, after = tensors(model), tensors(again)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    shared = {name for name, value in before.items() if sum(value is other for other in before.values()) > 1}
    assert shared == {name for name, value in after.items() if sum(value is other for other in after.values()) > 1}
    assert bool(shared) is (family in ("zamba", "zamba2"))
    batch = tiny_batch(processor)
    with torch.no_grad():
        assert torch.equal(again(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits)


def test_a_language_model_with_a_text_part_inside_keeps_its_attention(tmp_path):
    """Gemma 3 from 4B and MedGemma: sizes stand in the text config, and so does how attention is computed."""
    text = _SIZES | {"head_dim": 8, "sliding_window": 4}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Gemma3Config(text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14})
    model, processor = assemble(config)
    assert model.config.decoder_layers == "model.language_model.layers"
    assert model.config.get_text_config() is model.lang_encoder.config.text_config
    model.save_pretrained(tmp_path)
    again = NeuroFlamingo.from_pretrained(tmp_path)
    for one in (model, again):
        assert one.lang_encoder.config.text_config._attn_implementation == "sdpa"
    batch = tiny_batch(processor)
    how = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    written = [one.generate(**batch, **how, use_cache=cached) for one in (model, again) for cached in (True, False)]
    for other in written[1:]:
        for step, logits in zip(written[0].logits, other.logits, strict=True):
            torch.testing.assert_close(step, logits, atol=1e-4, rtol=1e-4)


def test_a_class_that_its_config_alone_does_not_name_comes_back(tmp_path):
    """transformers builds Emu3ForCausalLM from the config of the whole Emu3, and gives it the config of its text."""
    model, processor = assemble(small_config("emu3"))
    assert type(model.lang_encoder).__name__ == "Emu3ForCausalLM"
    model.save_pretrained(tmp_path)
    batch = tiny_batch(processor)
    with torch.no_grad():
        assert torch.equal(NeuroFlamingo.from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["architectures"] = ["Trainer"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no causal language model from Emu3TextConfig"):
        NeuroFlamingo.from_pretrained(tmp_path)
