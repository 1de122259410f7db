"""3D vision transformers with MONAI's ViT: BrainIAC, M3D-CLIP, or any other size.

Sources: AIM-KannLab/BrainIAC (2026 release) and BAAI-DCAI/M3D, both MONAI's `ViT` under MONAI's names. Differs from
upstream: all patch tokens are returned (BrainIAC's own feature is only the first patch), and remote code is not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from einops import rearrange
from monai.networks.nets.vit import ViT
from torch import Tensor, nn

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.vit3d.cards import TINY
from neuroflamingo_encoders.layers.intensity import scale_intensity
from neuroflamingo_encoders.layers.tiny_config import constants, positions, shrunk

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard


class Vit3dEncoder(BrainEncoder):
    """Volumes to tokens after the last norm: patches in the order of the card's axes, after a class token if declared.

    Args:
        card: declares channels, sizes, and by `network` the patch, depth, heads, mlp, projection and intensity.
        config: the same names and `width`, instead of the card's.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card)
        c = constants(card, config)
        channels, *axes = card.scan.axes
        net = ViT(
            in_channels=channels.size or 1,
            img_size=[axis.size or 0 for axis in axes],
            patch_size=[c[f"patch_{axis.name}"] for axis in axes],
            hidden_size=c["width"],
            mlp_dim=c["mlp"],
            num_layers=c["depth"],
            num_heads=c["heads"],
            proj_type=c["projection"],
        )
        self.intensity: str = c["intensity"]
        self.patch_embedding, self.blocks, self.norm = net.patch_embedding, net.blocks, net.norm
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c["width"])) if card.output.cls == "first" else None
        for block in self.blocks:
            block.cross_attn = nn.Identity()  # some releases of MONAI fill it, none uses it here

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """A few thousand weights, see `TINY` beside the cards."""
        return cls(*shrunk(card, TINY))

    def forward(self, x: Float[Tensor, "batch scan channel *sides"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, token, width]`, and positions if the card has a grid."""
        x, batch = rearrange(x, "b s ... -> (b s) ..."), len(x)
        tokens = self.patch_embedding(scale_intensity(x, self.intensity))
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = rearrange(self.norm(tokens), "(b s) t w -> b s t w", b=batch)
        return EncoderOutput(tokens, positions=positions(self.card, tokens.shape[2], tokens))
