"""The loss: logits only where a row has a label, label smoothing, in every family."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from neuroflamingo.model.loss import next_tokens, weighted_loss
from neuroflamingo.model.neuroflamingo import NeuroFlamingo
from tests.tiny import FAMILIES, tiny_batch, tiny_model


def some_labels(batch: dict[str, Tensor]) -> Tensor:
    """Different places in each row, so that no row's places are the other's."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0, ::2], labels[1, 1::2] = -100, -100
    return labels


def rows_scored(model: NeuroFlamingo) -> list[tuple[int, ...]]:
    """Collects the shapes that the head gives."""
    shapes: list[tuple[int, ...]] = []
    head = model.lang_encoder.get_output_embeddings()
    head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    return shapes


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_at_labels_only_are_the_same_loss_in_every_family(family):
    """Caps (Gemma 2), scales (Granite) and heads that know no `logits_to_keep` included."""
    model, processor = tiny_model(family)
    batch = tiny_batch(processor, padding_side="right")
    labels, shapes = some_labels(batch), rows_scored(model)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    results = []
    for loss_only in (False, True):
        model.zero_grad()
        how = {"loss_weights": weights, "smoothing": 0.1, "num_items_in_batch": 5, "loss_only": loss_only}
        out = model(**batch, labels=labels, **how)
        out.loss.backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([out.loss.detach(), *(g.clone() for g in grads)])
    assert shapes[1][:-1] == (1, int((labels[:, 1:] != -100).sum())) and shapes[0][:-1] == labels.shape
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_caps_and_scales_are_at_work_in_the_families_above():
    assert tiny_model("gemma2")[0].config.text_config.final_logit_softcapping
    model, processor = tiny_model("granite", changes={"logits_scaling": 3.0})
    batch = tiny_batch(processor, padding_side="right")
    labels = some_labels(batch)
    with torch.no_grad():
        loss = model(**batch, labels=labels, loss_only=True).loss
        plain, _ = tiny_model("granite")
        assert not torch.allclose(loss, plain(**batch, labels=labels).loss, atol=1e-3)
        torch.testing.assert_close(loss, model(**batch, labels=labels).loss)


def test_a_language_model_without_a_hook_on_its_head_gives_the_same_loss():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor, padding_side="right")
    labels = some_labels(batch)
    with torch.no_grad():
        expected = model(**batch, labels=labels, loss_only=True).loss
        model.lang_encoder.get_output_embeddings()._forward_pre_hooks.clear()
        torch.testing.assert_close(model(**batch, labels=labels, loss_only=True).loss, expected)


def test_label_smoothing_spreads_the_target():
    logits, labels = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 3, -100, 5]])
    scores = -logits[0].log_softmax(-1)
    by_hand = [0.8 * scores[place, word] + 0.2 * scores[place].mean() for place, word in ((0, 3), (2, 5))]
    loss = weighted_loss(logits, next_tokens(labels), label_smoothing=0.2)
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())


def test_another_thread_and_the_next_pass_see_nothing_of_it():
    model, processor = tiny_model("llama")
    batch = tiny_batch(processor, padding_side="right")
    labels = some_labels(batch)
    alone, seen = model(**batch).logits, []
    head = model.lang_encoder.get_output_embeddings()

    def meanwhile(*_: object) -> None:
        handle.remove()
        thread = threading.Thread(target=lambda: seen.append(model(**batch).logits))
        thread.start()
        thread.join()

    handle = head.register_forward_hook(meanwhile)
    model(**batch, labels=labels, loss_only=True)
    assert torch.equal(seen[0], alone) and torch.equal(model(**batch).logits, alone)
    with pytest.raises(IndexError):
        model(**batch, labels=torch.ones(4, 30, dtype=torch.long), loss_only=True)
    assert torch.equal(model(**batch).logits, alone)
