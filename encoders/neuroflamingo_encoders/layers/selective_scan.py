"""Mamba's selective state space layer in plain PyTorch: no CUDA kernel, memory bounded by a chunk.

Source: Gu and Dao 2023, https://arxiv.org/abs/2312.00752; parameter names as in state-spaces/mamba (Apache-2.0).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK = 2**18
"""Numbers of state that are held at once: bounds the memory of a long sequence, and fits a core's cache."""


def selective_scan(
    u: Float[Tensor, "batch token inner"],
    dt: Float[Tensor, "batch token inner"],
    a: Float[Tensor, "inner state"],
    b: Float[Tensor, "batch token state"],
    c: Float[Tensor, "batch token state"],
    chunk: int = CHUNK,
) -> Float[Tensor, "batch token inner"]:
    """`h_t = exp(dt_t a) h_{t-1} + dt_t b_t u_t` and `y_t = c_t . h_t`, in float32.

    All that does not depend on the state before is computed for a chunk of tokens at once, so that a token costs a
    single operation; the inner axis is last, which makes the product with c one of matrices.

    Args:
        a: negative.
        dt: positive.
        chunk: numbers of state (batch x inner x state) held at once; at least one token is.
    """
    if u.is_meta:  # asked for the shape only; thousands of steps without numbers would tell nothing more
        return torch.empty_like(u)
    rates = a.float().T.contiguous()
    state = u.new_zeros(u.shape[0], *rates.shape, dtype=torch.float32)
    tokens = max(1, chunk // state.numel())
    out = []
    for u_part, dt_part, b_part, c_part in zip(*(x.float().split(tokens, dim=1) for x in (u, dt, b, c)), strict=True):
        kept = torch.exp(dt_part[:, :, None] * rates)
        fed = b_part[..., None] * (dt_part * u_part)[:, :, None]
        states = []
        for kept_now, fed_now in zip(kept.unbind(1), fed.unbind(1), strict=True):
            state = torch.addcmul(fed_now, kept_now, state)
            states.append(state)
        out.append((c_part[:, :, None] @ torch.stack(states, dim=1))[:, :, 0])
    return torch.cat(out, dim=1).to(u.dtype)


class SelectiveScan(nn.Module):
    """A Mamba mixer: projection, causal depthwise convolution, selective scan, gate. One-directional.

    Args:
        width: of the tokens.
        states, kernel, expand: `d_state`, `d_conv` and `expand` of the published module; its `dt_rank` is
            the width by 16, rounded up.
        chunk: see `selective_scan`.
    """

    def __init__(self, width: int, states: int = 16, kernel: int = 4, expand: int = 2, chunk: int = CHUNK) -> None:
        super().__init__()
        inner, self.rank, self.states, self.chunk = width * expand, math.ceil(width / 16), states, chunk
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Each token mixed with those before it."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        low, b, c = self.x_proj(u).split((self.rank, self.states, self.states), dim=-1)
        dt = F.softplus(self.dt_proj(low))
        y = selective_scan(u, dt, -self.A_log.float().exp(), b, c, self.chunk)
        return self.out_proj((y + self.D * u) * F.silu(gate))
