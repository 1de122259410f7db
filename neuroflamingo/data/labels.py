"""Label rules of OpenFlamingo's pair and interleaved data.

Source: https://github.com/mlfoundations/open_flamingo (train_utils), whose Python loops over tokens are cumulative
maxima here. Differs from upstream: with an attention mask, padding is read from the mask and not from the token id,
so a model whose pad token is its end token still learns to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

IGNORED = -100


def pair_labels(
    input_ids: Int64[Tensor, "batch text"],
    *,
    media_token_id: int,
    pad_token_id: int | None = None,
    attention_mask: Tensor | None = None,
) -> Int64[Tensor, "batch text"]:
    """Labels for one scan with one text: everything is learnt except padding and `<image>`.

    Args:
        input_ids: token ids.
        media_token_id: id of `<image>`.
        pad_token_id: id of padding; used only without `attention_mask`.
        attention_mask: [batch text], nonzero where there is text.

    Returns:
        Token ids, -100 where nothing is learnt; not shifted, since language models do that themselves.

    Raises:
        UsageError: neither a pad id nor a mask was given.
    """
    ignored = _padding(input_ids, pad_token_id, attention_mask) | (input_ids == media_token_id)
    return input_ids.masked_fill(ignored, IGNORED)


def interleaved_labels(
    input_ids: Int64[Tensor, "batch text"],
    *,
    media_token_id: int,
    eoc_token_id: int,
    pad_token_id: int | None = None,
    attention_mask: Tensor | None = None,
) -> Int64[Tensor, "batch text"]:
    """Labels for documents with several scans: only text after a scan, up to and including its end of chunk.

    A token is learnt if some `<image>` precedes it and no `<|endofchunk|>` lies between the two. A row without
    `<image>` is ignored as a whole.

    Args:
        input_ids: token ids.
        media_token_id: id of `<image>`.
        eoc_token_id: id of `<|endofchunk|>`.
        pad_token_id: id of padding; used only without `attention_mask`.
        attention_mask: [batch text], nonzero where there is text.

    Returns:
        Token ids with -100 where nothing is learnt.

    Raises:
        UsageError: neither a pad id nor a mask was given.
    """
    labels = pair_labels(
        input_ids, media_token_id=media_token_id, pad_token_id=pad_token_id, attention_mask=attention_mask
    )
    last_media = _last_position(input_ids == media_token_id)
    last_end = _last_position(input_ids == eoc_token_id)
    end_before = torch.nn.functional.pad(last_end[:, :-1], (1, 0), value=-1)
    return labels.masked_fill((last_media < 0) | (end_before > last_media), IGNORED)


def _padding(ids: Tensor, pad_token_id: int | None, attention_mask: Tensor | None) -> Bool[Tensor, "batch text"]:
    if attention_mask is not None:
        return attention_mask == 0
    if pad_token_id is None:
        raise UsageError(
            "labels cannot tell padding from text",
            expected="a pad_token_id or an attention_mask",
            seen="neither",
            hint="pass the attention mask that the tokenizer returned",
        )
    return ids == pad_token_id


def _last_position(found: Bool[Tensor, "batch text"]) -> Int64[Tensor, "batch text"]:
    """Position of the latest True at or before each token; -1 where there is none."""
    positions = torch.arange(found.shape[1], device=found.device)
    return torch.where(found, positions, -1).cummax(dim=1).values
