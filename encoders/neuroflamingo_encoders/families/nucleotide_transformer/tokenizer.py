"""DNA as ids in words of six letters, as InstaDeep's tokenizer makes them (instadeepai/nucleotide-transformer).

Between two Ns a stretch is cut into words of six from its first letter on; letters that are left over, and each N,
are tokens of their own. Ids: 0 unknown, 1 padding, 2 mask, 3 class, then all words with letters in the order A, T,
C, G, then A, T, C, G and N.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuroflamingo_encoders.families.nucleotide_transformer.cards import LONGEST
from neuroflamingo_preprocessing.errors import ScanError

if TYPE_CHECKING:
    from jaxtyping import Int64

WORD = 6
LETTERS = "ATCG"
SPECIAL = ("<unk>", "<pad>", "<mask>", "<cls>")
PADDING, CLASS = SPECIAL.index("<pad>"), SPECIAL.index("<cls>")
_PARTNER = str.maketrans("ATCG", "TAGC")


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Token to id, in the published order."""
    words = ("".join(letters) for letters in product(LETTERS, repeat=WORD))
    return {token: number for number, token in enumerate((*SPECIAL, *words, *LETTERS, "N"))}


@lru_cache(maxsize=1)
def partners() -> tuple[int, ...]:
    """For each id that of its reverse complement; special tokens and N are their own."""
    known = vocabulary()
    return tuple(
        number if token in SPECIAL else known[token.translate(_PARTNER)[::-1]] for token, number in known.items()
    )


def _words(stretch: str) -> list[str]:
    whole = len(stretch) // WORD * WORD
    return [stretch[i : i + WORD] for i in range(0, whole, WORD)] + list(stretch[whole:])


def sequence_to_ids(text: str) -> Int64[Tensor, " token"]:
    """Ids of one DNA sequence, class token first; white space is left out, small letters count as large ones.

    Raises:
        ScanError: no letter, letters other than A, C, G, T and N, or more tokens than the encoder has positions for.
    """
    letters = "".join(text.split()).upper()
    foreign = sorted(set(letters) - set(LETTERS + "N"))
    if foreign or not letters:
        raise ScanError(
            "the DNA sequence cannot be read",
            expected="letters A, C, G, T and N",
            seen=f"{', '.join(foreign[:8])}" if foreign else "an empty sequence",
            hint="leave out FASTA headers, write T for U and N for other letters" if foreign else "check the region",
        )
    tokens: list[str] = []
    for number, stretch in enumerate(letters.split("N")):
        tokens += ["N"] * (number > 0) + _words(stretch)
    if len(tokens) + 1 > LONGEST:
        raise ScanError(
            "the DNA sequence is too long",
            expected=f"at most {LONGEST - 1} tokens ({(LONGEST - 1) * WORD} letters without N)",
            seen=f"{len(tokens)} tokens",
            hint="cut it into several sequences, one <image> each",
        )
    known = vocabulary()
    return torch.tensor([CLASS, *(known[token] for token in tokens)])


def sequences_to_ids(texts: Sequence[str]) -> Int64[Tensor, "sequence token"]:
    """Ids of several sequences, shorter ones padded at their end.

    Raises:
        ScanError: see `sequence_to_ids`.
    """
    rows = [sequence_to_ids(text) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
