"""`SelectiveScan`: Mamba's selective state space layer in plain PyTorch, without CUDA kernel, in bounded memory.

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
"""Numbers of state computed at a time: bounds the memory of long sequences, and fits in the cache of a core."""


def selective_scan(
    u: Float[Tensor, "batch token inner"],
    dt: Float[Tensor, "batch token inner"],
    a: Float[Tensor, "inner state"],
    b: Float[Tensor, "batch token state"],
    c: Float[Tensor, "batch token state"],
    chunk: int = CHUNK,
) -> Float[Tensor, "batch token inner"]:
    """Compute `h_t = exp(dt_t a) h_{t-1} + dt_t b_t u_t` and `y_t = c_t . h_t`, in float32.

    Only the recurrence itself runs token by token, as one fused multiply-add each. Everything that does not depend on
    the state before (the decay `exp(dt a)` and the input `dt b u`) is computed for a chunk of tokens at once, and so is
    the output. The inner axis comes last, so that the product with `c` is one batched matrix product.

    Args:
        u: input sequence.
        dt: step sizes, positive.
        a: decay rates, negative.
        b, c: input and output projections of the state.
        chunk: numbers of state (batch x inner x state x token) computed at a time; at least one token is.
    """
    if u.is_meta:  # only the shape is wanted; thousands of steps without numbers would add nothing
        return torch.empty_like(u)
    rates = a.float().T.contiguous()
    state = u.new_zeros(u.shape[0], *rates.shape, dtype=torch.float32)
    tokens = max(1, chunk // state.numel())
    out = []
    for u_part, dt_part, b_part, c_part in zip(*(x.float().split(tokens, dim=1) for x in (u, dt, b, c)), strict=True):
        decay = torch.exp(dt_part[:, :, None] * rates)
        drive = b_part[..., None] * (dt_part * u_part)[:, :, None]
        states = []
        for decay_now, drive_now in zip(decay.unbind(1), drive.unbind(1), strict=True):
            state = torch.addcmul(drive_now, decay_now, state)
            states.append(state)
        out.append((c_part[:, :, None] @ torch.stack(states, dim=1))[:, :, 0])
    return torch.cat(out, dim=1).to(u.dtype)


class SelectiveScan(nn.Module):
    """Mamba mixer, causal: projection, depthwise convolution, selective scan, gate.

    Args:
        width: width of the tokens.
        states, kernel, expand: `d_state`, `d_conv` and `expand` of the published module; its `dt_rank` is the width
            divided by 16, rounded up.
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
        """Mix each token with those before it."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        low, b, c = self.x_proj(u).split((self.rank, self.states, self.states), dim=-1)
        dt = F.softplus(self.dt_proj(low))
        y = selective_scan(u, dt, -self.A_log.float().exp(), b, c, self.chunk)
        return self.out_proj((y + self.D * u) * F.silu(gate))
