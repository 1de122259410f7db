"""Tiny instances of the encoders that come from MONAI and transformers, by the sizes beside their cards."""

from __future__ import annotations

from typing import Any

import torch

from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.contract import BrainEncoder
from neuroflamingo_encoders.families.nucleotide_transformer import cards as sequence_cards
from neuroflamingo_encoders.families.resnet3d import cards as resnet_cards
from neuroflamingo_encoders.families.swin3d import cards as swin_cards
from neuroflamingo_encoders.families.vision_towers import cards as slice_cards
from neuroflamingo_encoders.families.vit3d import cards as volume_cards
from neuroflamingo_encoders.registry import encoder_card, load_dotted

VOLUMES = volume_cards.TINY | resnet_cards.TINY | swin_cards.TINY
TINY = VOLUMES | slice_cards.TINY | sequence_cards.TINY


def small_card(name: str, width: int, sizes: dict[str, int], **options: Any) -> EncoderCard:
    """The registered card with other sizes and another width, without its grid."""
    card = encoder_card(name, **options)
    axes = tuple(
        axis.model_copy(update={"size": sizes[axis.name], "minimum": None, "maximum": None})
        if axis.name in sizes
        else axis
        for axis in card.scan.axes
    )
    scan = card.scan.model_copy(update={"axes": axes})
    return card.model_copy(
        update={"scan": scan, "output": card.output.model_copy(update={"width": width, "grid": None})}
    )


def small(name: str, seed: int = 0, sizes: dict[str, int] | None = None, **options: Any) -> BrainEncoder:
    """A frozen tiny encoder, with random weights that a seed decides."""
    axes, config = TINY[name]
    card = small_card(name, config["width"], axes | (sizes or {}), **options)
    torch.manual_seed(seed)
    return load_dotted(name, card.implementation)(card, config).freeze()


def sizes_of(card: EncoderCard) -> dict[str, int]:
    """Axis name to size."""
    return {axis.name: axis.size or 0 for axis in card.scan.axes}
