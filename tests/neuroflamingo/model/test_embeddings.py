"""Embeddings, backbone and generation as the tools around transformers ask for them."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from neuroflamingo_preprocessing.errors import UsageError
from tests.tiny import tiny_batch, tiny_language_model, tiny_model

both_heads = pytest.mark.parametrize("tied", [False, True])


@both_heads
def test_the_language_models_tables_are_found_and_replaced(tied):
    model, _ = tiny_model("llama", changes={"tie_word_embeddings": tied})
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table is model.lang_encoder.model.embed_tokens and head is model.lang_encoder.lm_head
    other = torch.nn.Embedding.from_pretrained(table.weight.detach().clone())
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other and model.new_tokens.serves([61, 62], other, head)


@both_heads
def test_resizing_keeps_trained_rows_and_all_logits(tied):
    model, processor = tiny_model("llama", changes={"tie_word_embeddings": tied})
    with torch.no_grad():
        model.new_tokens.input.add_(0.5)  # an optimiser's step
    batch = tiny_batch(processor)
    before = model(**batch).logits
    model.resize_token_embeddings(80)
    assert model.get_input_embeddings().weight.shape[0] == 80
    assert model.config.get_text_config().vocab_size == 80
    after = model(**batch).logits
    assert after.shape[-1] == 80 and torch.equal(after[..., :64], before)
    loss = model.train()(**batch, labels=batch["input_ids"].where(batch["input_ids"] < 62, -100), loss_only=True).loss
    loss.backward()
    assert model.new_tokens.input.grad.abs().max() > 0
    assert model.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_embedded_tokens_are_read_like_ids(family):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor)
    ids = batch.pop("input_ids")
    embedded = model.get_input_embeddings()(ids)
    expected = model(input_ids=ids, **batch).logits
    assert torch.equal(model(input_ids=ids, inputs_embeds=embedded, **batch).logits, expected)
    assert torch.equal(model(inputs_embeds=embedded, image_mask=ids == 62, **batch).logits, expected)
    how = {"max_new_tokens": 6, "do_sample": False}
    written = model.generate(input_ids=ids, **batch, **how)[:, ids.shape[1] :]
    for told in ({"input_ids": ids}, {"image_mask": ids == 62}):
        again = model.generate(inputs_embeds=embedded, **told, **batch, **how)
        assert torch.equal(again[:, -6:], written)
        beams = {"num_beams": 2, "num_return_sequences": 2}
        assert torch.equal(
            model.generate(inputs_embeds=embedded, **told, **batch, **how, **beams)[:, -6:],
            model.generate(input_ids=ids, **batch, **how, **beams)[:, -6:],
        )


def test_embedded_tokens_without_a_place_for_the_scan_are_refused():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    embedded = model.get_input_embeddings()(batch.pop("input_ids"))
    for call in (model, model.generate):
        with pytest.raises(UsageError, match="0 <image> tokens"):
            call(inputs_embeds=embedded, **batch)


def test_all_linear_layers_get_an_adapter_but_the_head():
    model, processor = tiny_model("llama")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    names = {name.removesuffix(".lora_A.default") for name, _ in adapted.named_modules() if name.endswith("A.default")}
    linear = {
        f"base_model.model.{name}"
        for name, module in tiny_model("llama")[0].named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    }
    assert names == linear
    batch = tiny_batch(processor)
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_B" in name)


def test_the_backbone_gives_what_the_head_reads():
    for family in ("llama", "opt", "bloom"):
        model, processor = tiny_model(family)
        batch = tiny_batch(processor)
        with torch.no_grad():
            hidden = model.base_model(**batch).last_hidden_state
            assert torch.equal(model.get_output_embeddings()(hidden), model(**batch).logits)
    with pytest.warns(UserWarning, match="not as outputs"):
        model.base_model(**batch)


def test_a_draft_model_is_refused_and_prompt_lookup_gives_the_same_text():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    row = {name: value[:1] for name, value in batch.items()}
    greedy = model.generate(**row, max_new_tokens=12, do_sample=False)
    for draft in (tiny_language_model("llama"), model):
        with pytest.raises(UsageError, match="a draft does not see the scans"):
            model.generate(**row, max_new_tokens=12, assistant_model=draft)
    looked_up = model.generate(**row, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(looked_up, greedy)


def test_old_names_of_the_loss_arguments_are_understood():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    weights = torch.rand(batch["input_ids"].shape)
    new = model(**batch, labels=batch["input_ids"], loss_weights=weights, smoothing=0.1).loss
    old = model(**batch, labels=batch["input_ids"], label_weights=weights, label_smoothing=0.1).loss
    assert torch.equal(new, old) and not torch.equal(new, model(**batch, labels=batch["input_ids"]).loss)
