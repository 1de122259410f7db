"""Labels and the masked embedding gradient, as upstream's training loop makes them."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from neuroflamingo.data.labels import interleaved_labels, pair_labels
from neuroflamingo.model.neuroflamingo import NeuroFlamingo


@pytest.mark.parametrize("padding", ["pad_token_id", "attention_mask"])
def test_labels(training_labels, padding):
    spec, ids, mask = training_labels.spec, training_labels["input.lang_x"], training_labels["input.attention_mask"]
    known = {"pad_token_id": spec["pad_token_id"], "attention_mask": mask}
    arguments = {"media_token_id": spec["media_token_id"], padding: known[padding]}
    pair = pair_labels(ids, **arguments)
    interleaved = interleaved_labels(ids, eoc_token_id=spec["eoc_token_id"], **arguments)
    # By the mask, text that looks like padding is learnt; upstream goes by the id alone.
    same = (ids != spec["pad_token_id"]) | (mask == 0) | (padding == "pad_token_id")
    assert torch.equal(pair[same], training_labels["output.labels_pair_data"][same])
    assert torch.equal(interleaved[same], training_labels["output.labels_interleaved_data"][same])


def model_with_embeddings(vocab: int, width: int, spec: dict) -> NeuroFlamingo:
    """A model whose embeddings have the given size and whose two tokens are new."""
    special = {spec["eoc_token_id"]: "<|endofchunk|>", spec["media_token_id"]: "<image>", spec["pad_token_id"]: "<PAD>"}
    words = {special.get(number, f"word{number}"): number for number in range(vocab)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<PAD>")))
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    config = OPTConfig(
        vocab_size=vocab,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=width,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model, _ = NeuroFlamingo.assemble(
        None, OPTForCausalLM(config), tokenizer, resampler={"dim": 8, "depth": 1}, dim_head=8, heads=1
    )
    model.config.new_token_ids = [spec["eoc_token_id"], spec["media_token_id"]]
    return model.freeze_for_training().train()


def test_embedding_gradient(training_labels):
    """The rows of the two new tokens get upstream's gradient, which is masked to them there; clipping comes after."""
    spec, weight = training_labels.spec, training_labels["input.embedding_loss_weight"]
    model = model_with_embeddings(*weight.shape, spec)
    table, rows = model.lang_encoder.get_input_embeddings(), model.new_tokens.input
    for multiplier in (spec["loss_multiplier_pair"], spec["loss_multiplier_interleaved"]):
        (multiplier * (table(torch.arange(len(weight))) * weight).sum()).backward()
    torch.nn.utils.clip_grad_norm_([rows], spec["clip_grad_norm"])
    expected = training_labels["output.embedding_grad_after_mask_and_clip"]
    torch.testing.assert_close(rows.grad, expected[model.new_tokens.ids], atol=1e-6, rtol=1e-5)
    assert table.weight.grad is None and int(expected.any(-1).sum()) == 2
