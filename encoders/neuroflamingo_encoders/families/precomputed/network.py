"""`precomputed`: for tokens of an encoder that runs elsewhere; they are passed on after a check of their width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from neuroflamingo_encoders.card import EncoderCard


class PrecomputedEncoder(BrainEncoder):
    """Pass-through of tokens: for encoders too large, too slow or too closed to run together with the model."""

    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card or precomputed_card())

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """Width 16."""
        return cls(card.shrunk({"width": 16}, width=16))

    def forward(self, x: Float[Tensor, "batch scan token width"]) -> EncoderOutput:
        """Return the tokens unchanged, `[batch, scan, token, width]`; without mask or positions."""
        return EncoderOutput(tokens=x)
