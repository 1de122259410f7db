"""DNA as ids of 6-mers (see `neuroflamingo_preprocessing.sequence`), and their reverse complements."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuroflamingo_encoders.families.nucleotide_transformer.cards import LONGEST
from neuroflamingo_preprocessing.sequence import PADDING, SPECIAL, vocabulary, word_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int64

_PARTNER = str.maketrans("ATCG", "TAGC")


@lru_cache(maxsize=1)
def partners() -> tuple[int, ...]:
    """Map each id to that of its reverse complement; special tokens and N map to themselves."""
    known = vocabulary()
    return tuple(
        number if token in SPECIAL else known[token.translate(_PARTNER)[::-1]] for token, number in known.items()
    )


def sequence_to_ids(text: str) -> Int64[Tensor, " token"]:
    """Convert one DNA sequence to ids, class token first; white space is ignored, lower case counts as upper case.

    Raises:
        ScanError: no letter, letters other than A, C, G, T and N, or more tokens than the encoder has positions for.
    """
    return torch.tensor(word_ids(text, LONGEST))


def sequences_to_ids(texts: Sequence[str]) -> Int64[Tensor, "sequence token"]:
    """Convert several sequences to ids, shorter ones padded at the end.

    Raises:
        ScanError: see `sequence_to_ids`.
    """
    rows = [sequence_to_ids(text) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
