"""Card of `precomputed`: tokens made by another program."""

from __future__ import annotations

from neuroflamingo_encoders.card import Cost, EncoderCard, OutputSpec, Weights
from neuroflamingo_preprocessing.spec import Axis, ScanSpec


def precomputed_card(width: int = 768, tokens: int | None = None) -> EncoderCard:
    """Make the card of precomputed tokens of a declared width.

    Args:
        width: numbers per token.
        tokens: tokens per scan; None: may differ between batches.
    """
    return EncoderCard(
        name="precomputed",
        version="1",
        summary="ready tokens of a declared width, passed on as they are",
        implementation="neuroflamingo_encoders.families.precomputed.network:PrecomputedEncoder",
        scan=ScanSpec(modality="tokens", axes=(Axis(name="token", size=tokens), Axis(name="width", size=width))),
        output=OutputSpec(width=width, tokens=tokens or "token", order=("token",), normalised=False),
        weights=Weights(source="none", licence="Apache-2.0", commercial=True, redistribution=True, derivatives=True),
        cost=Cost(parameters=0, gflop=0.0, cpu_seconds=0.0),
    )
