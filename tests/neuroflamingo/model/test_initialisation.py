"""Assembling changes nothing of what is handed in, and new parts begin as OpenFlamingo's do."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from neuroflamingo.model.resampler import PerceiverResampler
from neuroflamingo.training.embedded.language_model_stage import train_tokenizer
from neuroflamingo_encoders.families.tiny_t1w.network import TinyT1wEncoder


def parts():
    torch.manual_seed(3)
    encoder = TinyT1wEncoder()
    with torch.no_grad():
        for value in encoder.state_dict().values():
            value.add_(1)  # as if trained: no initialisation gives this back
    tokenizer = train_tokenizer(400, 1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return encoder, LlamaForCausalLM(config), tokenizer


@pytest.mark.slow
def test_encoder_and_language_model_are_kept_to_the_last_bit() -> None:
    encoder, language_model, tokenizer = parts()
    before = {n: v.clone() for n, v in encoder.state_dict().items()}
    words = {n: v.clone() for n, v in language_model.state_dict().items()}
    model, _ = NeuroFlamingo.assemble(encoder, language_model, tokenizer, resampler={"dim": 192, "depth": 1})
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    after = {n.replace("decoder_layer.", ""): v for n, v in model.lang_encoder.state_dict().items()}
    for name, value in words.items():
        assert torch.equal(after[name], value), name


@pytest.mark.slow
def test_new_parts_begin_as_upstream() -> None:
    model, _ = NeuroFlamingo.assemble(*parts(), resampler={"dim": 192, "depth": 1})
    assert abs(float(model.perceiver.latents.std()) - 1.0) < 0.05
    for linear in (model.perceiver.layers[0][0].to_q, *(b.attn.to_kv for b in model.gated_blocks.values())):  # type: ignore[index]
        bound = linear.in_features**-0.5  # torch's default
        assert 0.95 * bound < float(linear.weight.abs().max()) <= bound
    given = PerceiverResampler(dim=192, depth=1)
    latents = given.latents.detach().clone()
    model, _ = NeuroFlamingo.assemble(*parts(), resampler=given)
    assert torch.equal(model.perceiver.latents, latents)
