"""BrainLM `vitmae_111M` and `vitmae_650M`: a parcel series as an image, with transformers' ViT-MAE encoder.

Source: vandijklab/BrainLM at b591d88 (weights CC BY-NC-ND 4.0). Differs from upstream: tokens stay in raster order
(upstream shuffles them even at a mask ratio of 0), the sort by Y is stable (many parcels share a Y), and tokens of
padding only are left out by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEModel

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.families.brainlm.network import check_coordinates, no_coordinates

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard

LARGEST = 5.6430855
"""Divisor of the signal."""
PADDING = -1.0
SIZES_111M = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 432,
    "patch_size": 16,
    "layer_norm_eps": 1e-12,
}
SIZES_650M = SIZES_111M | {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "image_size": 434,
    "patch_size": 14,
}
_RENAMED = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)
"""Replacements of published tensor names by those of newer transformers, in the order in which they apply."""


class BrainLmVitMaeEncoder(BrainEncoder):
    """Parcel series `[parcel, time]` to tokens: the class token, then patches row by row (of parcels).

    Args:
        card: declares the sizes; a name with `650m` selects the larger ones.
        config: sizes by transformers' names, instead of the published ones.
        parcels, frames: of the series.
        keep_padding: return tokens of padding only as well.

    The parcels' coordinates (`set_coordinates`) determine the order of the rows; they are not in the weight file.
    """

    def __init__(
        self,
        card: EncoderCard,
        config: dict | None = None,
        *,
        parcels: int = 424,
        frames: int = 200,
        keep_padding: bool = False,
    ) -> None:
        super().__init__(card)
        sizes: dict[str, Any] = (SIZES_650M if "650m" in card.name else SIZES_111M) | (config or {})
        sizes["image_size"] = sizes["image_size"][0] if isinstance(sizes["image_size"], list) else sizes["image_size"]
        self.vit = ViTMAEModel(ViTMAEConfig(**sizes, mask_ratio=0.0))
        self.side, self.patch, self.parcels, self.frames = sizes["image_size"], sizes["patch_size"], parcels, frames
        across = self.side // self.patch
        rows, columns = (range(across),) * 2 if keep_padding else (self._touched(parcels), self._touched(frames))
        self.kept = [0, *(1 + row * across + column for row in rows for column in columns)]
        self.register_buffer("order", torch.full((parcels,), -1))
        self.order: Tensor

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """6 parcels by 12 frames on an image of 24 x 24, patches of 3, width 16."""
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        small = card.shrunk({"parcel": 6, "time": 12}, width=16, tokens=1 + 2 * 4)
        encoder = cls(small, sizes | {"image_size": 24, "patch_size": 3}, parcels=6, frames=12)
        encoder.set_coordinates(torch.arange(18.0).view(6, 3))
        return encoder

    def _touched(self, length: int) -> range:
        """Count the rows (or columns) of patches that contain data."""
        before = (self.side - length) // 2
        return range(before // self.patch, -(-(before + length) // self.patch))

    def set_coordinates(self, xyz: Float[Tensor, "parcel 3"]) -> None:
        """Order the rows by ascending Y; parcels with the same Y keep their order.

        Raises:
            UsageError: another shape, or numbers that are not finite.
        """
        check_coordinates(xyz, self.parcels)
        self.order = xyz[:, 1].argsort(stable=True).to(self.order)

    def picture(self, signal: Float[Tensor, "batch parcel time"]) -> Float[Tensor, "batch 1 row column"]:
        """Sort, scale and pad the series to a square.

        Raises:
            UsageError: the coordinates are not set.
        """
        if not self.order.is_meta and int(self.order[0]) < 0:
            raise no_coordinates(self.parcels)
        above, left = ((self.side - n) // 2 for n in (self.parcels, self.frames))
        below, right = self.side - self.parcels - above, self.side - self.frames - left
        return F.pad(signal[:, None, self.order] / LARGEST, (left, right, above, below), value=PADDING)

    def forward(self, x: Float[Tensor, "batch scan parcel time"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, token, width]` after the last norm, class token first."""
        picture = self.picture(rearrange(x, "b s v t -> (b s) v t")).expand(-1, 3, -1, -1)
        # Float32 whatever the picture is: bfloat16 has no numbers between 256 and 258, and ties would be shuffled.
        rising = torch.arange((self.side // self.patch) ** 2, device=x.device, dtype=torch.float32)
        tokens = self.vit(picture, noise=rising.expand(len(picture), -1)).last_hidden_state[:, self.kept]
        return EncoderOutput(rearrange(tokens, "(b s) t w -> b s t w", b=len(x)))

    def load_weights(self, state: dict[str, Tensor]) -> Self:
        """Load weights as the base class does, from a file with the published names; the decoder is skipped."""
        own = self.state_dict()
        renamed = {}
        for key, value in state.items():
            if key.startswith("decoder."):
                continue
            name = key
            for old, new in _RENAMED if key not in own else ():
                name = name.replace(old, new)
            renamed[name] = value
        return super().load_weights(renamed)
