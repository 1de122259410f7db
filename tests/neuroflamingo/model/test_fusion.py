"""Fusing into every family of language models, by one piece of code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from neuroflamingo.model import fusion
from neuroflamingo.model.fusion import FusedLayer, find_layers, fuse
from neuroflamingo.model.media import media_scope
from neuroflamingo_preprocessing.errors import ModelError
from tests.tiny import FAMILIES, WIDTH, tiny_batch, tiny_language_model, tiny_model, tiny_scans

families = pytest.mark.parametrize("family", sorted(FAMILIES))


def close_gates(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            nn.init.zeros_(parameter)


def test_there_are_enough_families():
    assert len(FAMILIES) >= 14
    assert {"mpt", "gptj", "gpt_neo", "falcon", "bloom"} <= set(FAMILIES)


@families
def test_closed_gates_give_the_bare_language_model_bit_for_bit(family):
    bare = tiny_language_model(family)
    model, processor = tiny_model(family)
    close_gates(model)
    batch = tiny_batch(processor)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        assert torch.equal(
            model(**batch, use_cache=False).logits, bare(ids, attention_mask=mask, use_cache=False).logits
        )
        fused, alone = model(**batch, use_cache=True), bare(ids, attention_mask=mask, use_cache=True)
        assert torch.equal(fused.logits, alone.logits)
        mask = torch.cat((mask, mask.new_ones(2, 1)), dim=1)
        new = torch.tensor([[3], [4]])
        fused = model(new, mask, past_key_values=fused.past_key_values)
        alone = bare(new, attention_mask=mask, past_key_values=alone.past_key_values)
        assert torch.equal(fused.logits, alone.logits)


@families
def test_generation_with_closed_gates_is_the_bare_language_models(family):
    bare = tiny_language_model(family)
    model, processor = tiny_model(family)
    close_gates(model)
    batch = tiny_batch(processor)
    never = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [62]}
    ours = model.generate(**batch, **never)
    theirs = bare.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **never)
    assert torch.equal(ours, theirs)


@families
def test_open_gates_read_the_scans_and_the_cache_changes_nothing(family):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor)
    how = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cached = model.generate(**batch, **how)
    uncached = model.generate(**batch, **how, use_cache=False)
    other = model.generate(**tiny_batch(processor, seed=1), **how)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, two in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert (cached.logits[0] - other.logits[0]).abs().max() > 1e-3


@families
def test_gradients_reach_the_blocks_through_the_frozen_language_model(family):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor, padding_side="right")
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(("family", "keyword"), [("llama", True), ("gpt2", True), ("gptj", False), ("bloom", False)])
def test_the_media_come_as_a_keyword_or_by_the_scope(family, keyword, monkeypatch):
    """A family takes the way that was found by trying: the other way is shut here and is not missed."""
    model, processor = tiny_model(family)
    batch = tiny_batch(processor)
    expected = model(**batch).logits
    assert model._keyword is keyword
    if keyword:
        monkeypatch.setattr(fusion, "current_media", lambda: None)
    assert torch.equal(model(**batch).logits, expected)
    model._keyword = not keyword  # the scope always works; the keyword is lost where it was found to be lost
    monkeypatch.undo()
    assert torch.equal(model(**batch).logits, expected) is keyword


class Plain(nn.Module):
    """A language model from elsewhere: its forward takes no keywords it does not know."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
        self.embed = nn.Embedding(10, 8)
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for step in self.steps:
            x = step(x)
        return x


def test_an_unknown_family_works_when_its_layers_can_be_found():
    from neuroflamingo.model.media import Media, make_plan

    model = Plain()
    assert fuse(model, dim_visual=WIDTH, gate=1.0) == "steps"
    time, ordinal = torch.tensor([[1, 1, 1]]), torch.tensor([[1]])
    ids = torch.tensor([[1, 2, 3]])

    def read(seed: int) -> torch.Tensor:
        with media_scope(Media(make_plan(time, ordinal, True), tiny_scans(1, 1, seed))):
            return model(ids)

    assert not torch.allclose(read(0), read(1))
    assert not torch.allclose(read(0), model(ids))  # nothing is left behind


def test_layers_that_cannot_be_found_are_an_error_that_names_what_is_there():
    with pytest.raises(ModelError, match=r"steps \(5\)"):
        find_layers(Plain(layers=5))
    assert find_layers(Plain(layers=5), "steps")[0] == "steps"
    with pytest.raises(ModelError, match="no list of layers named 'embed'"):
        find_layers(Plain(), "embed")


def test_a_block_before_every_second_layer():
    model, _ = tiny_model("llama", changes={"num_hidden_layers": 5}, cross_attn_every_n_layers=2)
    assert sorted(model.gated_blocks) == [1, 3]
    layers = find_layers(model.lang_encoder, model.config.decoder_layers)[1]
    assert [layer.gated_cross_attn_layer is None for layer in layers] == [True, False, True, False, True]
    assert "lang_encoder.model.layers.1.gated_cross_attn_layer.attn.to_q.weight" in model.state_dict()
    assert "lang_encoder.model.layers.0.decoder_layer.mlp.up_proj.weight" in model.state_dict()


def test_every_tensor_is_registered_once():
    model, _ = tiny_model("llama")
    parameters = list(model.named_parameters(remove_duplicate=False))
    assert len(parameters) == len({id(parameter) for _, parameter in parameters})


def test_fusing_twice_is_refused():
    model, _ = tiny_model("llama")
    with pytest.raises(ModelError, match="fused already"):
        fuse(model.lang_encoder, dim_visual=WIDTH)


def test_a_fused_layer_answers_for_its_decoder_layer():
    model, _ = tiny_model("gemma3_text")
    layers = find_layers(model.lang_encoder)[1]
    assert all(isinstance(layer, FusedLayer) for layer in layers)
    assert layers[0].self_attn is layers[0].decoder_layer.self_attn
    with pytest.raises(AttributeError):
        layers[0].no_such_thing  # noqa: B018
    assert copy.deepcopy(model).gated_blocks.keys() == model.gated_blocks.keys()
