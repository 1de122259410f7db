"""Prompts and scans to tensors."""

from __future__ import annotations

import pytest
import torch

from neuroflamingo.model.processor import NeuroFlamingoProcessor, add_special_tokens, pad_scans
from neuroflamingo_preprocessing.errors import UsageError
from tests.tiny import TOKENS, WIDTH, tiny_model, tiny_scans, tiny_tokenizer


@pytest.fixture
def processor() -> NeuroFlamingoProcessor:
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    return NeuroFlamingoProcessor(tokenizer)


def test_the_special_tokens_are_added_once_in_upstreams_order():
    tokenizer = tiny_tokenizer()
    assert add_special_tokens(tokenizer) == [61, 62]
    assert add_special_tokens(tokenizer) == []
    assert tokenizer.convert_ids_to_tokens([61, 62, 63]) == ["<|endofchunk|>", "<image>", "<PAD>"]
    assert tokenizer("w1 <image>w2<|endofchunk|>")["input_ids"] == [1, 62, 2, 61]


def test_a_batch_of_rows_with_different_numbers_of_scans(processor):
    scans = tiny_scans(1, 3)[0]
    batch = processor(["w1 <image> w2 <image>", "<image>", "w3"], scan_tokens=[[scans[0], scans[1]], [scans[2]], []])
    assert batch["input_ids"].tolist() == [[1, 62, 2, 62], [63, 63, 63, 62], [63, 63, 63, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert batch["scan_mask"].tolist() == [[True, True], [True, False], [False, False]]
    assert torch.equal(batch["scan_tokens"][0, 1], scans[1]) and not batch["scan_tokens"][1, 1].any()
    right = processor(["w1 <image> w2 <image>", "w3"], scan_tokens=[[scans[0], scans[1]], []], padding_side="right")
    assert right["input_ids"].tolist() == [[1, 62, 2, 62], [3, 63, 63, 63]]


def test_one_row_needs_no_outer_list(processor):
    scan = tiny_scans(1, 1)[0, 0]
    for given in (scan[None], [scan], [[scan]]):
        batch = processor("<image> w1", scan_tokens=given)
        assert batch["scan_tokens"].shape == (1, 1, TOKENS, WIDTH) and torch.equal(batch["scan_tokens"][0, 0], scan)
    two = processor("<image> <image>", scans=[scan, scan])
    assert two["scans"].shape == (1, 2, TOKENS, WIDTH)


def test_text_alone(processor):
    assert set(processor("w1 w2")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("text", ["", ["w1", ""]])
def test_empty_prompts(processor, text):
    with pytest.raises(UsageError, match="is empty"):
        processor(text)


def test_image_tokens_and_scans_must_fit(processor):
    scan = tiny_scans(1, 1)[0, 0]
    with pytest.raises(UsageError, match=r"as many scans as <image> tokens: \[2\]"):
        processor("<image> <image>", scan_tokens=[scan])
    with pytest.raises(UsageError, match=r"as many scans as <image> tokens: \[0\]"):
        processor("w1", scan_tokens=[scan])
    with pytest.raises(UsageError, match=r"scans per prompt \[1, 1\]"):
        processor(["<image>", "w1"], scan_tokens=[[scan], [scan]])


def test_scans_of_one_batch_have_one_shape(processor):
    with pytest.raises(UsageError, match="must have one shape"):
        pad_scans([[torch.zeros(2, 3)], [torch.zeros(3, 3)]])
    with pytest.raises(UsageError, match="must have one shape"):
        pad_scans([[]])


def test_a_file_needs_an_encoders_card(processor, tmp_path):
    with pytest.raises(UsageError, match="this model has no encoder"):
        processor("<image>", scans=[str(tmp_path / "scan.nii.gz")])


def test_decoding_leaves_out_the_prompt(processor):
    ids = torch.tensor([[62, 1, 2, 61, 63], [62, 3, 4, 5, 61]])
    assert processor.decode(ids, prompt_length=2) == ["w2", "w4 w5"]
    assert processor.decode(ids[1], prompt_length=1, skip_special_tokens=False) == "w3 w4 w5 <|endofchunk|>"


def test_the_batch_is_what_the_model_takes():
    model, processor = tiny_model("llama")
    scans = tiny_scans(1, 1)[0]
    batch = processor("<image> w1", scan_tokens=list(scans))
    assert model(**batch).logits.shape == (1, 2, 64)
    assert isinstance(processor.decode(model.generate(**batch, max_new_tokens=2)), list)
