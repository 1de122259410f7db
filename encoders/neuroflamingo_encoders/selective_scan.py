"""Mamba's selective state space layer in plain PyTorch: no CUDA kernel, memory bounded by a chunk.

Source: Gu and Dao 2023, https://arxiv.org/abs/2312.00752; parameter names as in state-spaces/mamba (Apache-2.0).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 4096
"""Tokens that are scanned at once: bounds the memory of a long sequence."""


def selective_scan(
    u: Float[Tensor, "batch token inner"],
    dt: Float[Tensor, "batch token inner"],
    a: Float[Tensor, "inner state"],
    b: Float[Tensor, "batch token state"],
    c: Float[Tensor, "batch token state"],
    chunk: int = CHUNK,
) -> Float[Tensor, "batch token inner"]:
    """`h_t = exp(dt_t a) h_{t-1} + dt_t b_t u_t` and `y_t = c_t . h_t`, in float32.

    A chunk of n tokens is cut into about sqrt(n) stretches that are scanned side by side from zero; then each
    stretch gets what the state before it adds. So there are 2 sqrt(n) steps on large tensors instead of n on small
    ones, and never more than sqrt(n) states at once.

    Args:
        a: negative.
        dt: positive.
        chunk: tokens at once.
    """
    if u.is_meta:  # asked for the shape only; thousands of steps without numbers would tell nothing more
        return torch.empty_like(u)
    state = u.new_zeros(u.shape[0], *a.shape, dtype=torch.float32)
    out = []
    for parts in zip(*(x.float().split(chunk, dim=1) for x in (u, dt, b, c)), strict=True):
        y, state = _scan_chunk(*parts, a.float(), state)
        out.append(y)
    return torch.cat(out, dim=1).to(u.dtype)


def _scan_chunk(u: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk from the state before it: its outputs and the state after it."""
    length = u.shape[1]
    steps = math.ceil(math.sqrt(length))
    stretches = math.ceil(length / steps)
    missing = stretches * steps - length  # filled up with tokens of dt 0, which change no state
    u, dt, b, c = (F.pad(x, (0, 0, 0, missing)).unflatten(1, (stretches, steps)) for x in (u, dt, b, c))
    elapsed = dt.cumsum(2)
    own = u.new_zeros(u.shape[0], stretches, *a.shape)
    from_own = []
    for i in range(steps):
        fed = (dt[:, :, i] * u[:, :, i])[..., None] * b[:, :, i, None, :]
        own = torch.exp(dt[:, :, i, :, None] * a) * own + fed
        from_own.append((own @ c[:, :, i, :, None])[..., 0])
    before = []
    for k in range(stretches):
        before.append(state)
        state = torch.exp(elapsed[:, k, -1, :, None] * a) * state + own[:, k]
    entering = torch.stack(before, dim=1)
    from_before = [
        ((torch.exp(elapsed[:, :, i, :, None] * a) * entering) @ c[:, :, i, :, None])[..., 0] for i in range(steps)
    ]
    y = torch.stack(from_own, dim=2) + torch.stack(from_before, dim=2)
    return y.flatten(1, 2)[:, :length], state


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
