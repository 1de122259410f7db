"""BrainLM as in the published `old_13M` file: a token per parcel and time patch, with positions from coordinates.

Source: vandijklab/BrainLM at b591d88 (Ortega Caro et al. 2024; weights CC BY-NC-ND 4.0), with its parameter names and
numbers. At the published sizes its Nystrom attention is full attention plus a depthwise convolution of the values over
the token axis, so the order of tokens matters. Differs from upstream: nothing is masked or shuffled; the attention
matrix is never stored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_preprocessing.errors import ModelError, UsageError

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard

TABLE = 5000
RELEASED = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "decoder_num_attention_heads": 4,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 2,
    "decoder_intermediate_size": 1024,
    "num_brain_voxels": 424,
    "num_timepoints_per_voxel": 200,
    "timepoint_patching_size": 20,
    "conv_kernel_size": 65,
    "num_landmarks": 64,
    "segment_means_seq_len": 64,
    "layer_norm_eps": 1e-12,
}
"""Sizes of `old_13M`."""


def check_coordinates(xyz: Tensor, parcels: int) -> None:
    """Check that a table is finite millimetres `[parcel, 3]` (both architectures of BrainLM take one).

    Raises:
        UsageError: another shape, or numbers that are not finite.
    """
    if tuple(xyz.shape) != (parcels, 3) or not (xyz.is_meta or bool(xyz.isfinite().all())):
        raise UsageError(
            "these coordinates do not fit BrainLM",
            expected=f"finite millimetres of shape [{parcels}, 3]",
            seen=f"shape {list(xyz.shape)}",
            hint="use columns X Y Z of A424_Coordinates.dat",
        )


def no_coordinates(parcels: int) -> UsageError:
    """Make the error for an encoder whose parcel coordinates are not set."""
    return UsageError(
        "the parcel coordinates of BrainLM are not set",
        expected=f"encoder.set_coordinates(table) with shape [{parcels}, 3]",
        hint="the table is A424_Coordinates.dat of the BrainLM repository",
    )


class TimeTable(nn.Module):
    """Sine and cosine of the time patch, interleaved; only some published files contain the table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angle = torch.arange(TABLE)[:, None] * rate
        self.register_buffer("pe", torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1))
        self.pe: Tensor

    def forward(self, patches: int) -> Float[Tensor, "patch width"]:
        """Return the rows of the first `patches` time patches."""
        return self.pe[:patches]


class Embeddings(nn.Module):
    """Sum of the embeddings of signal, coordinates and time of each patch, parcel by parcel."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.signal_embedding_projection = nn.Linear(patch, width)
        self.xyz_embedding_projection = nn.Linear(3, width)
        self.pos_embedding = TimeTable(width)

    def forward(self, signal: Float[Tensor, "batch parcel time"], xyz: Float[Tensor, "batch parcel 3"]) -> Tensor:
        """Compute the tokens without the class token, `[batch, parcel * patch, width]`."""
        patches = signal.unflatten(2, (-1, self.patch))
        place = self.xyz_embedding_projection(xyz)[:, :, None]
        x = self.signal_embedding_projection(patches) + place + self.pos_embedding(patches.shape[2])
        return x.flatten(1, 2)


class SelfAttention(nn.Module):
    """Full attention plus the convolution of the values over the token axis."""

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.conv = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), bias=False, groups=heads)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Tensor:
        """Attend over all tokens."""
        q, k, v = (rearrange(f(x), "b t (h d) -> b h t d", h=self.heads) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v) + self.conv(v)
        return rearrange(mixed, "b h t d -> b t (h d)")


class NormedSum(nn.Module):
    """A linear layer, the residual, and a norm after both."""

    def __init__(self, before: int, after: int, eps: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(before, after), nn.LayerNorm(after, eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Project `x`, add the residual, and normalise the sum."""
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Self-attention with residual and norm, under upstream's names."""

    def __init__(self, width: int, heads: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(width, heads, kernel), NormedSum(width, width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all tokens `[batch, token, width]`, with the residual."""
        return self.output(self.self(x), x)


class Intermediate(nn.Module):
    """The first half of the feed-forward."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Widen each token."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Post-norm block."""

    def __init__(self, width: int, heads: int, inner: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, kernel, eps)
        self.intermediate, self.output = Intermediate(width, inner), NormedSum(inner, width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform each token `[batch, token, width]`."""
        x = self.attention(x)
        return self.output(self.intermediate(x), x)


class Layers(nn.Module):
    """The stack, under upstream's name."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, c: dict) -> None:
        super().__init__()
        width, eps = c["hidden_size"], c["layer_norm_eps"]
        sizes = (width, c["num_attention_heads"], c["intermediate_size"], c["conv_kernel_size"], eps)
        self.embeddings = Embeddings(width, c["timepoint_patching_size"])
        self.encoder = Layers([Layer(*sizes) for _ in range(c["num_hidden_layers"])])
        self.layernorm = nn.LayerNorm(width, eps)

    def hidden_states(self, signal: Tensor, xyz: Tensor, kept: Tensor | None = None) -> list[Tensor]:
        """Compute the input of the first block and the output of each; `kept` selects tokens, `[batch, kept]`."""
        x = self.embeddings(signal, xyz)
        if kept is not None:
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
        states = [torch.cat([self.embeddings.cls_token.expand(len(x), -1, -1), x], dim=1)]
        for layer in self.encoder.layer:
            states.append(layer(states[-1]))
        return states


class BrainLmEncoder(BrainEncoder):
    """Parcel series `[parcel, time]` to tokens: the class token, then `1 + parcel * patches + patch`.

    Args:
        card: declares the sizes.
        config: sizes by the names of `RELEASED`; others are as published.

    `xyz`, `[parcel, 3]` in millimetres, is not in the weight file: set it before the first scan (from
    A424_Coordinates.dat, not the centroids of the label file, from which it differs by up to 13 mm).

    Raises:
        ModelError: sizes with which upstream would take its Nystrom branch.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card)
        c = RELEASED | (config or {})
        if c["num_landmarks"] != c["segment_means_seq_len"]:
            raise ModelError(
                "this BrainLM configuration takes the Nystrom branch, which no published file uses",
                expected="num_landmarks equal to segment_means_seq_len",
                seen=f"{c['num_landmarks']} and {c['segment_means_seq_len']}",
                hint="check that the configuration belongs to old_13M",
                exit_code=65,
            )
        self.vit = Transformer(c)
        self.parcels = c["num_brain_voxels"]
        self.register_buffer("xyz", torch.full((self.parcels, 3), float("nan")))
        self.xyz: Tensor

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """6 parcels by 40 frames, patches of 10, width 16."""
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "conv_kernel_size": 5}
        config = sizes | {"num_brain_voxels": 6, "timepoint_patching_size": 10}
        encoder = cls(card.shrunk({"parcel": 6, "time": 40}, width=16, tokens=1 + 6 * 4), config)
        encoder.set_coordinates(torch.linspace(-1.0, 1.0, 18).view(6, 3))
        return encoder

    def set_coordinates(self, xyz: Float[Tensor, "parcel 3"]) -> None:
        """Set the parcels' coordinates in whole millimetres, rows in the order of the parcels.

        Raises:
            UsageError: another shape, or numbers that are not finite.
        """
        check_coordinates(xyz, self.parcels)
        self.xyz = xyz.to(self.xyz)

    def forward(self, x: Float[Tensor, "batch scan parcel time"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, 1 + parcel * patch, width]` after the last norm.

        Raises:
            UsageError: the coordinates are not set.
        """
        if not self.xyz.is_meta and not bool(self.xyz.isfinite().all()):
            raise no_coordinates(self.parcels)
        signal = rearrange(x, "b s v t -> (b s) v t")
        states = self.vit.hidden_states(signal, self.xyz.expand(len(signal), -1, -1))
        return EncoderOutput(rearrange(self.vit.layernorm(states[-1]), "(b s) t w -> b s t w", b=len(x)))
