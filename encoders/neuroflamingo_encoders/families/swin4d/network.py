"""SwiFT and NeuroSTORM: one 4D shifted-window network with two mixers, attention or a selective scan.

Sources: Transconnectome/SwiFT at 0b07cb1 (Apache-2.0; Kim et al. 2023) and CUHK-AIM-Group/NeuroSTORM at a8dc38f
(Apache-2.0 file, MIT badge), with their parameter names and numbers. Differs from MONAI's 3D Swin: a learnt position
is added before every stage, there is no relative position bias, time is never merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.layers.selective_scan import SelectiveScan

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_encoders.card import EncoderCard

Size = tuple[int, ...]
MASKED = -100.0


def _fit(grid: Sequence[int], window: Sequence[int], shifted: bool) -> tuple[Size, Size]:
    """Compute window and shift for a grid: an axis that fits in one window is neither split nor shifted."""
    fits = [n <= w for n, w in zip(grid, window, strict=True)]
    size = tuple(n if fit else w for n, w, fit in zip(grid, window, fits, strict=True))
    shift = tuple(0 if fit or not shifted else w // 2 for w, fit in zip(window, fits, strict=True))
    return size, shift


def _into_windows(x: Tensor, window: Size) -> Tensor:
    a, b, c, d = window
    return rearrange(x, "n (x a) (y b) (z c) (t d) w -> (n x y z t) (a b c d) w", a=a, b=b, c=c, d=d)


def _out_of_windows(x: Tensor, window: Size, grid: Size) -> Tensor:
    (a, b, c, d), counts = window, [n // w for n, w in zip(grid, window, strict=True)]
    names = dict(zip("xyzt", counts, strict=True))
    return rearrange(x, "(n x y z t) (a b c d) w -> n (x a) (y b) (z c) (t d) w", a=a, b=b, c=c, d=d, **names)


@lru_cache(maxsize=16)
def _mask(grid: Size, window: Size, shift: Size) -> Tensor:
    """Make the attention mask `[window, token, token]`: -100 between tokens that are adjacent only after the roll.

    Always on the CPU: a mask made under `torch.device("meta")` would stay in the cache without values.
    """
    label = torch.zeros(1, *grid, 1, device="cpu")
    cuts = [
        (slice(-w), slice(-w, -s), slice(-s, None)) if s else (slice(None),) for w, s in zip(window, shift, strict=True)
    ]
    for number, (x, y, z, t) in enumerate(product(*cuts)):
        label[:, x, y, z, t] = number
    token = _into_windows(label, window)[..., 0]
    return (token[:, None] != token[:, :, None]).float() * MASKED


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "window token width"], mask: Tensor | None) -> Tensor:
        """Attend within each window; `mask` separates tokens that only the shift made adjacent."""
        q, k, v = rearrange(self.qkv(x), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        if mask is not None:
            mask = mask.to(x).repeat(len(x) // len(mask), 1, 1)[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(mixed, "n h t d -> n t (h d)"))


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU, under MONAI's names."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token on its own."""
        return self.linear2(F.gelu(self.linear1(x)))


class Block(nn.Module):
    """Pre-norm block: a mixer within windows, shifted by half a window in every other block, then a feed-forward."""

    def __init__(self, width: int, heads: int, window: Size, shifted: bool, scan: bool) -> None:
        super().__init__()
        self.window, self.shifted, self.scan = window, shifted, scan
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if scan:
            self.mamba = SelectiveScan(width)
        else:
            self.attn = WindowAttention(width, heads)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Float[Tensor, "batch x y z time width"]) -> Tensor:
        """Mix tokens within windows, then transform each."""
        x = x + self._mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _mix(self, x: Tensor) -> Tensor:
        grid = tuple(x.shape[1:5])
        window, shift = _fit(grid, self.window, self.shifted)
        missing = [-n % w for n, w in zip(grid, window, strict=True)]
        x = F.pad(x, (0, 0, *(n for size in reversed(missing) for n in (0, size))))
        padded = tuple(x.shape[1:5])
        if any(shift):
            x = x.roll([-s for s in shift], dims=(1, 2, 3, 4))
        windows = _into_windows(x, window)
        if self.scan:
            windows = self.mamba(windows)
        else:
            windows = self.attn(windows, _mask(padded, window, shift) if any(shift) else None)
        x = _out_of_windows(windows, window, padded)
        if any(shift):
            x = x.roll(shift, dims=(1, 2, 3, 4))
        return x[:, : grid[0], : grid[1], : grid[2], : grid[3]]


class Merge(nn.Module):
    """Patch merging: eight neighbours are concatenated, normalised and reduced to twice the width."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(8 * width, factor * width, bias=False), nn.LayerNorm(8 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[batch, x / 2, y / 2, z / 2, time, 2 width]`."""
        odd = [n % 2 for n in x.shape[1:4]]
        x = F.pad(x, (0, 0, 0, 0, 0, odd[2], 0, odd[1], 0, odd[0]))
        corners = [x[:, i::2, j::2, k::2] for i, j, k in product((0, 1), repeat=3)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Stage(nn.Module):
    """Blocks, followed by a merge except in the last stage."""

    def __init__(self, blocks: list[Block], merge: Merge | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = merge

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on the tokens `[batch, x, y, z, time, width]`, then merge."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Position(nn.Module):
    """Learnt spatial and temporal position, added to a stage's input."""

    def __init__(self, width: int, grid: Size, frames: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, width, *grid, 1) * 0.02)
        self.time_embed = nn.Parameter(torch.randn(1, width, 1, 1, 1, frames) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the position to the tokens `[batch, x, y, z, time, width]`."""
        table = self.pos_embed + self.time_embed[..., : x.shape[4]]
        return x + rearrange(table, "n w x y z t -> n x y z t w")


class Patches(nn.Module):
    """Embedding of blocks of voxels and frames, flattened with channels last."""

    def __init__(self, patch: Size, channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.fc = nn.Linear(patch[0] * patch[1] * patch[2] * patch[3] * channels, width)

    def forward(self, x: Float[Tensor, "batch channel x y z time"]) -> Tensor:
        """Tokens `[batch, x, y, z, time, width]`."""
        a, b, c, d = self.patch
        return self.fc(rearrange(x, "n w (x a) (y b) (z c) (t d) -> n x y z t (a b c d w)", a=a, b=b, c=c, d=d))


class Swin4DEncoder(BrainEncoder):
    """SwiFT or NeuroSTORM, as the card's `network` says; tokens in (x, y, z, time) order.

    Args:
        card: declares the sizes.
        config: sizes by upstream's names; None: those of the card's release.
    """

    def __init__(self, card: EncoderCard, config: dict | None = None, *, scan: bool = False) -> None:
        super().__init__(card)
        c = RELEASED | (config or {})
        depths, width, last = c["depths"], c["embed_dim"], len(c["depths"]) - 1
        self.patch_embed = Patches(tuple(c["patch_size"]), c["in_chans"], width)
        grid = [n // p for n, p in zip(c["img_size"], c["patch_size"], strict=True)]
        self.pos_embeds, self.layers = nn.ModuleList(), nn.ModuleList()
        for stage, depth in enumerate(depths):
            self.pos_embeds.append(Position(width, tuple(grid[:3]), grid[3]))
            window = tuple(c["first_window_size"] if stage == 0 else c["window_size"])
            whole = stage == last and c["last_layer_full_MSA"]
            if whole:
                window = (*grid[:3], window[3])
            heads = c["num_heads"][stage]
            blocks = [Block(width, heads, window, shifted=i % 2 == 1 and not whole, scan=scan) for i in range(depth)]
            merge = None if stage == last else Merge(width, c["c_multiplier"])
            self.layers.append(Stage(blocks, merge))
            if merge is not None:
                width *= c["c_multiplier"]
                grid[:3] = [(n + 1) // 2 for n in grid[:3]]
        if not scan:
            self.norm = nn.LayerNorm(width)  # in the published files, never applied

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """4 frames of 24 x 12 x 12 voxels, blocks of 3, one merge: 4 x 2 x 2 x 4 tokens of width 24."""
        sizes = {"x": 24, "y": 12, "z": 12, "time": 4}
        config = TINY | {"img_size": tuple(sizes.values())}
        return cls(card.shrunk(sizes, width=24, tokens=64), config)

    def stages(self, x: Float[Tensor, "batch channel x y z time"]) -> list[Tensor]:
        """Compute the output of every stage, `[batch, x, y, z, time, width]`."""
        x, out = self.patch_embed(x), []
        for position, stage in zip(self.pos_embeds, self.layers, strict=True):
            x = stage(position(x))
            out.append(x)
        return out

    def forward(self, x: Float[Tensor, "batch scan channel x y z time"]) -> EncoderOutput:
        """Compute the tokens `[batch, scan, x * y * z * time, width]` of the last stage."""
        last = self.stages(rearrange(x, "b s ... -> (b s) ..."))[-1]
        return EncoderOutput(rearrange(last, "(b s) x y z t w -> b s (x y z t) w", b=len(x)))


class SwiftEncoder(Swin4DEncoder):
    """SwiFT: window attention."""


class NeuroStormEncoder(Swin4DEncoder):
    """NeuroSTORM: a one-directional selective scan over the tokens of each window."""

    def __init__(self, card: EncoderCard, config: dict | None = None) -> None:
        super().__init__(card, config, scan=True)


TINY = {
    "patch_size": (3, 3, 3, 1),
    "embed_dim": 12,
    "depths": (2, 2),
    "num_heads": (2, 2),
    "window_size": (2, 2, 2, 2),
    "first_window_size": (2, 2, 2, 2),
    "last_layer_full_MSA": False,
}
"""Sizes of the instances used in checks."""

RELEASED = {
    "img_size": (96, 96, 96, 20),
    "in_chans": 1,
    "embed_dim": 36,
    "window_size": (4, 4, 4, 4),
    "first_window_size": (4, 4, 4, 4),
    "patch_size": (6, 6, 6, 1),
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "c_multiplier": 2,
    "last_layer_full_MSA": True,
}
"""Sizes of the released files of both models."""
