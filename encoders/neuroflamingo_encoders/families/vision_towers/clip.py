"""CLIP and SigLIP vision towers with transformers, on slices or images; patch tokens only.

Sources: openai/CLIP and google-research/big_vision, networks from transformers. As OpenFlamingo does, CLIP's patch
tokens are taken before the last norm (which upstream applies only to the class token); SigLIP's after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from neuroflamingo_encoders.families.vision_towers.cards import TINY
from neuroflamingo_encoders.families.vision_towers.slices import PictureEncoder
from neuroflamingo_encoders.layers.tiny_config import shrunk

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from neuroflamingo_encoders.card import EncoderCard


class _Tower(PictureEncoder):
    """Vision tower of transformers, of any size."""

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """Images of the published size and a network of one layer, see `TINY` beside the cards."""
        if card.scan.modality == "image2d":  # the picture's side is the tower's
            _, config = TINY[card.name]
            return cls(card.shrunk({}, width=config["width"]), config)
        return cls(*shrunk(card, TINY))


def _sizes(settings: dict) -> dict:
    """Translate the card's sizes to transformers' names."""
    return {
        "image_size": settings["side"],
        "patch_size": settings["patch"],
        "hidden_size": settings["width"],
        "num_hidden_layers": settings["depth"],
        "num_attention_heads": settings["heads"],
        "intermediate_size": settings["mlp"],
        "hidden_act": settings["activation"],
    }


class ClipTower(_Tower):
    """CLIP tower: patch tokens of the last layer, without class token and last norm."""

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card, config)
        tower = CLIPVisionModel(CLIPVisionConfig(**_sizes(self.settings)))
        self.vision_model = getattr(tower, "vision_model", tower)  # older releases of transformers wrap it

    def patch_tokens(self, pictures: Float[Tensor, "n 3 row column"]) -> Float[Tensor, "n patch width"]:
        """Tokens of the patches, row by row."""
        return self.vision_model(pixel_values=pictures).last_hidden_state[:, 1:]


class SiglipTower(_Tower):
    """SigLIP tower: patch tokens after the last norm, without the pooling head."""

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card, config)
        tower = SiglipVisionModel(SiglipVisionConfig(**_sizes(self.settings), vision_use_head=False))
        self.vision_model = getattr(tower, "vision_model", tower)

    def patch_tokens(self, pictures: Float[Tensor, "n 3 row column"]) -> Float[Tensor, "n patch width"]:
        """Tokens of the patches, row by row."""
        return self.vision_model(pixel_values=pictures).last_hidden_state
