"""`fc-baseline`: rows of the correlation matrix as tokens. An fMRI encoder that does not beat it adds nothing.

Source: Brainmarks (MedARC 2026) finds plain functional connectivity hard to beat on subject-level traits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.fc_baseline.cards import fc_baseline_card

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard


class FcBaselineEncoder(BrainEncoder):
    """Pearson correlations of each parcel with all parcels, Fisher z-transformed (0 on the diagonal)."""

    def __init__(self, card: EncoderCard | None = None) -> None:
        super().__init__(card or fc_baseline_card())

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """12 parcels."""
        return cls(card.shrunk({"parcel": 12}, width=12, tokens=12))

    def forward(self, x: Float[Tensor, "batch scan parcel time"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, parcel, parcel]`; a constant parcel has correlations of 0.

        At least float32 is used: in bfloat16 a correlation of 0.999 is 1, whose transform is infinite.
        """
        series = x.to(torch.promote_types(x.dtype, torch.float32))
        series = series - series.mean(-1, keepdim=True)
        series = series / series.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(series.dtype).tiny)
        matrix = series @ series.transpose(-1, -2)
        diagonal = torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
        return EncoderOutput(matrix.clamp(-0.999999, 0.999999).atanh().masked_fill(diagonal, 0.0).to(x.dtype))
