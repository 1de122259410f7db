"""Embeddings of added tokens: a small table trains, the big ones hold the result."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from tests.tiny import FAMILIES, tiny_batch, tiny_model

IDS = [61, 62]


def tables(model: NeuroFlamingo) -> list[Tensor]:
    found = (model.lang_encoder.get_input_embeddings().weight, model.lang_encoder.get_output_embeddings().weight)
    return list({id(table): table for table in found}.values())


def learn(model: NeuroFlamingo, batch: dict[str, Tensor]) -> Tensor:
    model.zero_grad()
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_rows_get_the_gradient_that_the_whole_table_would_give_them(family):
    model, processor = tiny_model(family)
    batch = tiny_batch(processor, padding_side="right")
    loss = learn(model, batch)
    assert not any(table.requires_grad or table.grad is not None for table in tables(model))
    ours = [parameter.grad for parameter in model.new_tokens.parameters()]
    model.freeze_for_training(embeddings="all")
    assert model.new_tokens is None
    torch.testing.assert_close(learn(model, batch), loss)
    theirs = [table.grad[IDS] for table in tables(model)]
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


@pytest.fixture(params=["llama", "gpt2", "opt", "gemma3_text"])
def trained(request):
    """A model after three steps of AdamW on the small table, and the tables before."""
    model, processor = tiny_model(request.param)
    before = [table.detach().clone() for table in tables(model)]
    batch = tiny_batch(processor, padding_side="right")
    optimizer = torch.optim.AdamW(model.new_tokens.parameters(), lr=0.05, weight_decay=0.0)
    losses = []
    for _ in range(3):
        losses.append(float(learn(model, batch)))
        optimizer.step()
    assert losses[-1] < losses[0]
    return model, batch, before


def test_state_dicts_hold_the_tables_with_the_trained_rows_in_them(trained, tmp_path):
    model, batch, before = trained
    rows = [parameter.detach().clone() for parameter in model.new_tokens.parameters()]
    assert [tuple(row.shape) for row in rows] == [(2, table.shape[1]) for table in before]
    names = set(model.state_dict())
    assert not any("new_tokens" in name for name in names)
    others = [row for row in range(len(before[0])) if row not in IDS]
    for table, old, new in zip(tables(model), before, rows, strict=True):
        assert torch.equal(table[IDS], new) and not torch.equal(new, old[IDS])
        assert torch.equal(table[others], old[others])
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) <= names
    again = NeuroFlamingo.from_pretrained(tmp_path)
    for one, two in zip(again.new_tokens.parameters(), rows, strict=True):
        assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_loaded_state_dict_is_read_by_the_small_table(trained):
    model, batch, _ = trained
    fresh, _ = tiny_model(model.config.text_config.model_type)
    assert fresh.load_state_dict(model.state_dict()).missing_keys == []
    torch.testing.assert_close(learn(fresh, batch), learn(model, batch))
    for one, two in zip(fresh.new_tokens.parameters(), model.new_tokens.parameters(), strict=True):
        assert torch.equal(one, two) and torch.equal(one.grad, two.grad)


def test_rows_that_are_not_written_back_yet_count_all_the_same(trained):
    """As under FSDP, where the tables are written when a state dict is asked for, and not before."""
    model, batch, _ = trained
    away = copy.deepcopy(model)
    away.new_tokens.settle = lambda **_: None
    assert not torch.equal(tables(away)[0][IDS], away.new_tokens.input)  # one step ahead
    with torch.no_grad():
        torch.testing.assert_close(away(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learn(away, batch), learn(model, batch))
    for (name, one), two in zip(away.named_parameters(), model.parameters(), strict=True):
        if two.requires_grad:
            torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_table_that_was_changed_by_hand_is_believed():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    with torch.no_grad():
        table = model.lang_encoder.get_input_embeddings().weight
        table[62] = table[5]
    copied = copy.deepcopy(table)
    assert torch.equal(model.state_dict()["lang_encoder.model.embed_tokens.weight"], copied)
    learn(model, batch)
    assert torch.equal(model.new_tokens.input[1], table[5]) and torch.equal(table, copied)


def test_a_table_that_fits_stays_and_none_leaves_the_trained_rows_behind(trained):
    model, batch, _ = trained
    table = model.new_tokens
    rows = table.input.detach().clone()
    assert model.freeze_for_training().new_tokens is table
    with torch.no_grad():
        expected = model(**batch).logits
    model.freeze_for_training(embeddings="none")
    assert model.new_tokens is None and torch.equal(tables(model)[0][IDS], rows)
    assert not any("new_tokens" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
    head = model.lang_encoder.get_output_embeddings()
    assert not model.lang_encoder.get_input_embeddings()._forward_hooks and not head._forward_hooks


def test_without_memory_the_small_table_is_there_to_be_counted():
    with torch.device("meta"):
        model, _ = tiny_model("llama")
    assert model.new_tokens is not None
    assert {name: tuple(p.shape) for name, p in model.named_parameters() if name.startswith("new_tokens")} == {
        "new_tokens.input": (2, 32),
        "new_tokens.output": (2, 32),
    }
    assert "new_tokens.input" not in model.state_dict()


@pytest.mark.parametrize("cleared", [True, False])
def test_an_optimiser_that_leaves_no_trace_is_noticed(cleared):
    """Fused AdamW changes a tensor without raising its version; saved and evaluated weights are the new ones."""
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor)
    learn(model.train(), batch)
    model.state_dict()  # between the backward pass and the step
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    version = model.new_tokens.input._version
    optimizer.step()
    if cleared:
        optimizer.zero_grad()
    rows = model.new_tokens.input
    if rows._version != version:
        pytest.skip("this torch counts what fused optimisers change")
    model.eval()
    with torch.no_grad():
        told = model(**batch).logits
    table = model.state_dict()["lang_encoder.model.embed_tokens.weight"]
    assert torch.equal(table[IDS], rows)
    again, _ = tiny_model("llama")
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, told)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forward_passes_may_be_many_before_a_backward_pass(family):
    """Nothing is written between them, so the gradient is the sum of their gradients."""
    model, processor = tiny_model(family)
    first, second = (tiny_batch(processor, seed=seed) for seed in (0, 1))
    learn(model.train(), first)
    expected = [row.grad.clone() for row in model.new_tokens.parameters()]
    learn(model, second)
    expected = [one + row.grad for one, row in zip(expected, model.new_tokens.parameters(), strict=True)]
    model.zero_grad()
    losses = [model(**batch, labels=batch["input_ids"]).loss for batch in (first, second)]
    sum(losses).backward()
    for row, wanted in zip(model.new_tokens.parameters(), expected, strict=True):
        torch.testing.assert_close(row.grad, wanted, atol=1e-6, rtol=1e-4)
