"""3D Swin encoders with MONAI's SwinTransformer: BrainSegFounder, and the encoder of any SwinUNETR.

Sources: lab-smile/BrainSegFounder (code GPL-3.0, network from MONAI), Project-MONAI/MONAI (Apache-2.0). As SwinUNETR
does, the tapped stage gets a layer norm without weights. Not to be confused with `swin4d`, which is for fMRI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from einops import rearrange
from monai.networks.nets.swin_unetr import SwinTransformer

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.swin3d.cards import TINY
from neuroflamingo_encoders.layers.intensity import scale_intensity
from neuroflamingo_encoders.layers.tiny_config import constants, positions, shrunk

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from neuroflamingo_encoders.card import EncoderCard


class Swin3dEncoder(BrainEncoder):
    """Volumes to the features of one stage, tokens in the order of the card's axes.

    Args:
        card: declares the channels, and by `network` depth, window, patch, heads, merging, stage and intensity.
        config: the same names and `width` (of the tapped stage), instead of the card's.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card)
        c = constants(card, config)
        self.stage, self.intensity = int(c["stage"]), str(c["intensity"])
        self.swinViT = SwinTransformer(
            in_chans=card.scan.axes[0].size or 1,
            embed_dim=c["width"] // 2**self.stage,
            window_size=(c["window"],) * 3,
            patch_size=(c["patch"],) * 3,
            depths=(c["depth"],) * 4,
            num_heads=[c["heads"] * 2**i for i in range(4)],
            downsample=c["merging"],
        )

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """A few thousand weights, see `TINY` beside the cards."""
        return cls(*shrunk(card, TINY))

    def forward(self, x: Float[Tensor, "batch scan channel *sides"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, token, width]`, and positions if the card has a grid."""
        x, batch = rearrange(x, "b s ... -> (b s) ..."), len(x)
        grid = self.swinViT(scale_intensity(x, self.intensity))[self.stage]
        tokens = rearrange(grid, "(b s) w x y z -> b s (x y z) w", b=batch)
        return EncoderOutput(tokens, positions=positions(self.card, tokens.shape[2], tokens))

    def load_weights(self, state: dict[str, Tensor]) -> Self:
        """Load weights as the base class does; files of the bare encoder and older feed-forward names work too."""
        named = {}
        for key, value in state.items():
            key = key.removeprefix("module.").replace(".mlp.fc", ".mlp.linear")
            bare = key.startswith(("patch_embed.", "layers"))
            named["swinViT." + key if bare else key] = value
        return super().load_weights(named)
