"""Label rules on sequences that can be read by eye, and against a loop over tokens on random ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.data.labels import IGNORED, interleaved_labels, pair_labels
from neuroflamingo_preprocessing.errors import UsageError

PAD, END, IMAGE = 1, 8, 9
IDS = {"media_token_id": IMAGE, "eoc_token_id": END, "pad_token_id": PAD}
_ = IGNORED


def interleaved(*ids: int, **changes) -> list[int]:
    return interleaved_labels(torch.tensor([ids]), **{**IDS, **changes})[0].tolist()


def test_text_before_the_first_scan_and_between_chunks_is_not_learnt():
    assert interleaved(4, END, IMAGE, 5, END, 6, END, IMAGE, 7) == [_, _, _, 5, END, _, _, _, 7]


def test_a_row_without_scan_is_not_learnt():
    assert interleaved(4, 5, END, 6) == [_] * 4


def test_neighbouring_scans_open_one_chunk():
    assert interleaved(IMAGE, IMAGE, 3, END) == [_, _, 3, END]


def test_pair_data_learns_everything_but_padding_and_scans():
    labels = pair_labels(torch.tensor([[4, IMAGE, 5, END, 6, PAD]]), media_token_id=IMAGE, pad_token_id=PAD)
    assert labels.tolist() == [[4, _, 5, END, 6, _]]


def test_mask_keeps_an_end_token_that_is_also_the_pad_token():
    ids, mask = torch.tensor([[IMAGE, 5, END, END]]), torch.tensor([[1, 1, 1, 0]])
    arguments = {"media_token_id": IMAGE, "eoc_token_id": END}
    assert interleaved_labels(ids, attention_mask=mask, **arguments).tolist() == [[_, 5, END, _]]
    assert interleaved_labels(ids, pad_token_id=END, **arguments).tolist() == [[_, 5, _, _]]


def test_left_padding():
    assert interleaved(PAD, PAD, IMAGE, 3, END) == [_, _, _, 3, END]


def test_padding_must_be_known():
    with pytest.raises(UsageError, match="attention mask"):
        pair_labels(torch.tensor([[1, 2]]), media_token_id=IMAGE)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=12, max_size=12), min_size=1, max_size=4))
def test_equals_a_walk_over_the_tokens(rows):
    expected = []
    for row in rows:
        learning, labels = False, []
        for token in row:
            learning = True if token == IMAGE else learning
            labels.append(token if learning and token not in (IMAGE, PAD) else _)
            learning = False if token == END else learning
        expected.append(labels)
    assert interleaved_labels(torch.tensor(rows), **IDS).tolist() == expected
