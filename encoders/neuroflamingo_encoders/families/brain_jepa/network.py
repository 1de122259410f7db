"""Brain-JEPA: a plain vision transformer over parcels and time, with positions from functional gradients.

Source: Eric-LRL/Brain-JEPA at b1dfa93 (no licence file: bring your own weights and gradient table), with its parameter
names and numbers; the published flash-attention calls are ordinary attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard

PATCHES = 10
"""Time patches per parcel, fixed upstream."""
RELEASED = {
    "num_rois": 450,
    "num_timepoints": 160,
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4,
    "norm_eps": 1e-6,
    "gradient_dim": 30,
}


class Patches(nn.Module):
    """Embedding of time patches of each parcel's series, parcel by parcel."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, (1, length), stride=(1, length))

    def forward(self, x: Float[Tensor, "batch 1 parcel time"]) -> Tensor:
        """Tokens `[batch, token, width]`, all patches of the first parcel first."""
        return self.proj(x).flatten(2).transpose(1, 2)


class GradientPosition(nn.Module):
    """Positional encoding: half from the time patch (sine and cosine), half a projection of the parcel's gradients."""

    def __init__(self, parcels: int, width: int, gradients: int) -> None:
        super().__init__()
        self.emb_h = nn.Parameter(_time_table(parcels, width // 2), requires_grad=False)
        self.predictor_pos_embed_proj = nn.Linear(gradients, width // 2)

    def forward(self, gradient: Float[Tensor, "1 parcel gradient"]) -> Float[Tensor, "1 token width"]:
        """Join the time code and the parcel code, the latter rescaled to -1 to 1 over the whole parcel table."""
        place = self.predictor_pos_embed_proj(gradient)
        low, high = place.min(), place.max()
        place = ((place - low) / (high - low) * 2 - 1).repeat_interleave(PATCHES, dim=1)
        return torch.cat([self.emb_h[None].to(place), place], dim=-1)


def _time_table(parcels: int, width: int) -> Tensor:
    rate = 1.0 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = torch.arange(PATCHES, dtype=torch.float64)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1).float().repeat(parcels, 1)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all tokens `[batch, token, width]`."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = Attention(width, heads), FeedForward(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Add attention, then the feed-forward, to the tokens `[batch, token, width]`."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class BrainJepaEncoder(BrainEncoder):
    """Parcel series `[parcel, time]` to tokens `parcel * 10 + time patch`; no class token.

    Args:
        card: declares the sizes.
        config: sizes by the names of `RELEASED`; others are as published.

    `gradient`, `[parcel, 30]`, is not in the published weight file: set it before the first scan.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card)
        c = RELEASED | (config or {})
        width = c["embed_dim"]
        self.gradient_shape = (c["num_rois"], c["gradient_dim"])
        self.patch_embed = Patches(c["patch_size"], width)
        self.pos_embed_proj = GradientPosition(c["num_rois"], width, c["gradient_dim"])
        inner = int(c["mlp_ratio"] * width)
        self.blocks = nn.ModuleList([Block(width, c["num_heads"], inner, c["norm_eps"]) for _ in range(c["depth"])])
        self.norm = nn.LayerNorm(width, c["norm_eps"])
        self.register_buffer("gradient", torch.full((1, *self.gradient_shape), float("nan")))
        self.gradient: Tensor

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """6 parcels by 40 frames, patches of 4, width 16."""
        sizes = {"num_rois": 6, "num_timepoints": 40, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
        encoder = cls(card.shrunk({"parcel": 6, "time": 40}, width=16, tokens=60), sizes)
        encoder.set_gradient(torch.linspace(-1.0, 1.0, 6 * 30).view(6, 30))
        return encoder

    def set_gradient(self, gradient: Float[Tensor, "parcel gradient"]) -> None:
        """Set the parcels' functional gradients, rows in the order of the parcels.

        Raises:
            UsageError: another shape, or numbers that are not finite.
        """
        if tuple(gradient.shape) != self.gradient_shape or not (gradient.is_meta or bool(gradient.isfinite().all())):
            raise UsageError(
                "this gradient table does not fit Brain-JEPA",
                expected=f"finite numbers of shape {list(self.gradient_shape)}",
                seen=f"shape {list(gradient.shape)}",
                hint="use gradient_mapping_450.csv of the Brain-JEPA repository",
            )
        self.gradient = gradient[None].to(self.gradient)

    def forward(self, x: Float[Tensor, "batch scan parcel time"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, parcel * 10, width]` after the last norm.

        Raises:
            UsageError: the gradient table is not set.
        """
        if not self.gradient.is_meta and not bool(self.gradient.isfinite().all()):
            raise UsageError(
                "the gradient table of Brain-JEPA is not set",
                expected=f"encoder.set_gradient(table) with shape {list(self.gradient_shape)}",
                hint="the table is gradient_mapping_450.csv of the Brain-JEPA repository",
            )
        tokens = self.patch_embed(rearrange(x, "b s r t -> (b s) 1 r t")) + self.pos_embed_proj(self.gradient)
        for block in self.blocks:
            tokens = block(tokens)
        return EncoderOutput(rearrange(self.norm(tokens), "(b s) t w -> b s t w", b=len(x)))
