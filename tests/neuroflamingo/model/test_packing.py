"""Packed rows give the loss and the gradients of the same sequences in rows of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuroflamingo.model.packing import PACKED, packed_scan_bounds
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from tests.tiny import FAMILIES, tiny_model, tiny_scans

IMAGE = 62
TEXTS = [[5, IMAGE, 1, 2, 3, IMAGE, 4], [8, 9, 10], [IMAGE, 11, 12, 13, 14, 15], [16, 17, IMAGE, 18]]
SCANS = tiny_scans(1, 4)[0]  # of all `<image>` tokens above, in order


def unpacked() -> dict[str, Tensor]:
    """A row for each sequence, padded on the right."""
    ids, mask = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 7, dtype=torch.long)
    tokens, held, taken = torch.zeros(4, 2, *SCANS.shape[1:]), torch.zeros(4, 2, dtype=torch.bool), 0
    for row, text in enumerate(TEXTS):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
        count = text.count(IMAGE)
        tokens[row, :count], held[row, :count] = SCANS[taken : taken + count], True
        taken += count
    return {"input_ids": ids, "attention_mask": mask, "scan_tokens": tokens, "scan_mask": held}


def packed() -> dict[str, Tensor]:
    """Two rows of two sequences each."""
    ids, mask = torch.zeros(2, 11, dtype=torch.long), torch.zeros(2, 11, dtype=torch.long)
    sequence = torch.full((2, 11), 7)
    for row, (one, two) in enumerate((TEXTS[:2], TEXTS[2:])):
        length = len(one) + len(two)
        ids[row, :length], mask[row, :length] = torch.tensor(one + two), 1
        sequence[row, :length] = torch.tensor([0] * len(one) + [1] * len(two))
    tokens = SCANS.unflatten(0, (2, 2))
    return {"input_ids": ids, "attention_mask": mask, "scan_tokens": tokens, "sequence_ids": sequence}


def labels(batch: dict[str, Tensor]) -> Tensor:
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize("shift", ["previous", "next"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_scans_are_those_of_the_own_sequence(family, shift, immediate):
    model, _ = tiny_model(family, only_attend_immediate_media=immediate)
    results = []
    for batch in (unpacked(), packed()):
        model.zero_grad()
        loss = model(**batch, labels=labels(batch), media_shift=shift, loss_only=True).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_keeps_sequences_apart_or_says_that_it_cannot(family):
    model, _ = tiny_model(family)
    batch = packed()
    if family not in PACKED:
        with pytest.raises(ModelError, match=f"family '{family}' cannot read packed rows") as caught:
            model(**batch)
        assert caught.value.exit_code == 65
        return
    alone = unpacked()
    with torch.no_grad():
        one = model(**alone, labels=labels(alone))
        two = model(**batch, labels=labels(batch))
    torch.testing.assert_close(one.loss, two.loss, atol=1e-5, rtol=0)
    rows = [two.logits[0, :7], two.logits[0, 7:10], two.logits[1, :6], two.logits[1, 6:10]]
    for row, logits in enumerate(rows):
        torch.testing.assert_close(logits, one.logits[row, : len(logits)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_eager_attention_keeps_them_apart_too(family):
    model, _ = tiny_model(family)
    batch = packed()
    with torch.no_grad():
        expected = model(**batch, labels=labels(batch)).loss
        model.lang_encoder.set_attn_implementation("eager")
        torch.testing.assert_close(model(**batch, labels=labels(batch)).loss, expected, atol=1e-5, rtol=0)


def test_the_families_that_recipes_use_are_among_them():
    assert {"llama", "qwen2", "gpt_neox", "opt"} <= PACKED <= set(FAMILIES)


def test_images_before_and_up_to_the_end_of_a_sequence():
    images = torch.tensor([[1, 0, 1, 0, 0, 1, 0]], dtype=torch.bool)
    earlier, closed = packed_scan_bounds(images, torch.tensor([[3, 3, 3, 5, 5, 6, 6]]))
    assert earlier.tolist() == [[0, 0, 0, 2, 2, 2, 2]] and closed.tolist() == [[2, 2, 2, 2, 2, 3, 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_cache": True}, "cannot be read with a cache"),
        ({"sequence_ids": torch.tensor([[0, 1, 0]])}, "comes back after another one"),
    ],
)
def test_what_cannot_be_packed(change, message):
    model, _ = tiny_model("llama")
    how = {"sequence_ids": torch.tensor([[0, 0, 1]])} | change
    with pytest.raises(UsageError, match=message):
        model(torch.tensor([[1, 2, 3]]), **how)
    model, _ = tiny_model("llama", resampler={"dim": 16, "depth": 1, "max_num_media": 3})
    with pytest.raises(UsageError, match="numbers the scans of a row"):
        model(torch.tensor([[1, 2, 3]]), sequence_ids=torch.tensor([[0, 0, 1]]))
