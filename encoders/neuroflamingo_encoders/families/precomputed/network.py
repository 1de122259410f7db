"""`precomputed`: the encoder that ran elsewhere. Its tokens pass through, checked for width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from neuroflamingo_encoders.card import EncoderCard


class PrecomputedEncoder(BrainEncoder):
    """Passes ready tokens on: for encoders that are too large, too closed or too slow to run beside the model."""

    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card or precomputed_card())

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """Width 16."""
        return cls(card.shrunk({"width": 16}, width=16))

    def forward(self, x: Float[Tensor, "batch scan token width"]) -> EncoderOutput:
        """The tokens as they came, `[batch, scan, token, width]`; all real, without positions."""
        return EncoderOutput(tokens=x)
