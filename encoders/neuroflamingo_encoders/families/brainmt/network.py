"""BrainMT: a convolutional stem, Mamba over each location's time course, then attention over all tokens.

Source: arunkumar-kannan/BrainMT-fMRI at 977e486 (MIT), with its parameter names and numbers. The published code is
one-directional although the paper says otherwise; so is this. Differs from upstream: all tokens are returned, not only
the class token; time may be pooled before the resampler; stem widths are arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.layers.selective_scan import SelectiveScan
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard

RELEASED = {
    "num_frames": 200,
    "grid": (7, 6, 6),
    "embed_dim": 512,
    "stem_in_dim": 64,
    "stem_dim": 128,
    "depth": (12, 8),
    "num_heads": 2,
    "num_classes": 1,
}
"""Published sizes (no weights were released)."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a volume."""

    def forward(self, input: Float[Tensor, "batch channel y x z"]) -> Tensor:
        """Normalise each voxel over its channels."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvBlock(nn.Module):
    """Residual block of two convolutions with channel norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(width, width, 3, padding=1), ChannelNorm(width)
        self.conv2, self.norm2 = nn.Conv3d(width, width, 3, padding=1), ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add two convolutions to the volumes `[batch, channel, y, x, z]`."""
        y = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        return x + self.norm2(self.conv2(y))


def _halve(before: int, after: int) -> nn.Conv3d:
    return nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False)


class Halving(nn.Module):
    """Strided convolution, under upstream's name."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(_halve(before, 2 * before))

    def forward(self, x: Tensor) -> Tensor:
        """Halve the three axes of the volumes `[batch, channel, y, x, z]`."""
        return self.reduction(x)


class Stem(nn.Module):
    """Two strided convolutions."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(_halve(1, inner), nn.ReLU(), _halve(inner, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Quarter the three axes of the volumes `[batch, channel, y, x, z]`."""
        return self.conv_down(x)


class RootMeanSquareNorm(nn.Module):
    """Scale by the root mean square, in float32."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis; the result has the dtype of `x`."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class MambaLayer(nn.Module):
    """Norm and mixer; the caller adds the residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mixer = RootMeanSquareNorm(width), SelectiveScan(width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens `[batch, token, width]` in their order."""
        return self.mixer(self.norm(x))


class AttentionBlock(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Tensor:
        """Attend over all tokens."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


class BrainMtEncoder(BrainEncoder):
    """Frames `[time, channel, y, x, z]` to tokens: the class token, then the time course of each location in turn.

    Args:
        card: declares the sizes.
        config: sizes by the names of `RELEASED`; others are as published.
        pooled_frames: average time down to this many frames after the last block; None keeps all.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None, pooled_frames: int | None = None) -> None:
        super().__init__(card)
        c = RELEASED | (config or {})
        width, frames = c["embed_dim"], c["num_frames"]
        if pooled_frames and frames % pooled_frames:
            raise UsageError(
                "BrainMT's frames cannot be pooled evenly", expected=f"a divisor of {frames}", seen=str(pooled_frames)
            )
        self.frames, self.pooled_frames = frames, pooled_frames
        self.places = c["grid"][0] * c["grid"][1] * c["grid"][2]
        self.patch_embed = Stem(c["stem_in_dim"], c["stem_dim"])
        self.conv_block0, self.downsample0 = ConvBlock(c["stem_dim"]), Halving(c["stem_dim"])
        self.conv_block1, self.downsample1 = ConvBlock(2 * c["stem_dim"]), Halving(2 * c["stem_dim"])
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.places, width) * 0.02)
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, frames, width))
        self.layers = nn.ModuleList([MambaLayer(width) for _ in range(c["depth"][0])])
        self.norm_f = RootMeanSquareNorm(width)
        self.blocks = nn.ModuleList([AttentionBlock(width, c["num_heads"]) for _ in range(c["depth"][1])])
        self.norm, self.mlp = nn.LayerNorm(width), FeedForward(width)  # one of each, shared by all blocks
        self.head = nn.Linear(width, c["num_classes"])  # in the published files; tokens do not pass it

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """4 frames of 48 x 32 x 32 voxels, 3 x 2 x 2 locations, width 32."""
        sizes = {"num_frames": 4, "grid": (3, 2, 2), "embed_dim": 32, "stem_in_dim": 4, "stem_dim": 8, "depth": (1, 1)}
        return cls(card.shrunk({"time": 4, "y": 48, "x": 32, "z": 32}, width=32, tokens=1 + 12 * 4), sizes)

    def stem(self, frames: Float[Tensor, "frame 1 y x z"]) -> Float[Tensor, "frame width h w d"]:
        """Apply the convolutions frame by frame."""
        return self.downsample1(self.conv_block1(self.downsample0(self.conv_block0(self.patch_embed(frames)))))

    def scan(self, x: Float[Tensor, "batch time 1 y x z"]) -> Float[Tensor, "batch token width"]:
        """Compute the tokens after the last Mamba norm: class token, then `1 + place * frames + frame`."""
        batch, frames = x.shape[:2]
        places = rearrange(self.stem(x.flatten(0, 1)), "f w y x z -> f (y x z) w")
        if places.shape[1] != self.places or frames != self.frames:
            raise UsageError(
                "the size of the run differs from BrainMT's position tables",
                expected=f"{self.places} places and {self.frames} frames",
                seen=f"{places.shape[1]} places and {frames} frames",
            )
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        places = rearrange(places + self.pos_embed[:, 1:], "(b t) n w -> (b n) t w", b=batch)
        courses = rearrange(places + self.temporal_pos_embedding, "(b n) t w -> b (n t) w", b=batch)
        x = torch.cat([first, courses], dim=1)
        for layer in self.layers:
            x = x + layer(x)
        return self.norm_f(x)

    def encode(self, x: Float[Tensor, "batch time 1 y x z"]) -> Float[Tensor, "batch token width"]:
        """Compute all tokens after the attention blocks."""
        x = self.scan(x)
        for block in self.blocks:
            x = x + block(self.norm(x))
            x = x + self.mlp(self.norm(x))
        return x

    def forward(self, x: Float[Tensor, "batch scan time channel y x z"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, 1 + place * time, width]`, with time pooled if `pooled_frames` is set."""
        tokens = self.encode(rearrange(x, "b s ... -> (b s) ..."))
        if self.pooled_frames:
            courses = reduce(tokens[:, 1:], "b (n t k) w -> b (n t) w", "mean", n=self.places, t=self.pooled_frames)
            tokens = torch.cat([tokens[:, :1], courses], dim=1)
        return EncoderOutput(rearrange(tokens, "(b s) t w -> b s t w", b=len(x)))
