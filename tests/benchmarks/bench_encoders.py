"""Speed and memory of the encoders' own attention and scan beside plain statements of the same, interleaved in one run.

BrainLM 13M at full size with fused attention against softmax with the matrix written out; the selective scan in chunks
against one token after another; and SwiFT and NeuroSTORM forward at 96 x 96 x 96 x 20. Weights are random, numbers of
both sides are compared before anything is timed. Run by `make bench`, or:

    python tests/benchmarks/bench_encoders.py --rounds 5 --json encoders.json --write docs/encoders.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from comparing import Comparison
from torch import Tensor

LENGTH, INNER, STATES = 10_000, 1024, 16  # BrainMT's widths
GOALS = {"BrainLM 13M, 424 x 200": 1.5, "selective scan, 10,000 tokens": 5.0}


def brainlm(plain: bool) -> Callable[[], Tensor]:
    """Forward of the released size, a batch of one."""
    from neuroflamingo_encoders.build import build_encoder
    from neuroflamingo_encoders.families.brainlm import network as module

    torch.manual_seed(0)
    encoder: Any = build_encoder("brainlm-13m")
    encoder.set_coordinates(torch.randn(424, 3) * 40)
    if plain:
        for part in encoder.modules():
            if isinstance(part, module.SelfAttention):
                part.forward = _written_out(part)
    x = torch.randn(1, 1, 424, 200)
    return lambda: encoder(x).tokens


def _written_out(part: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        split = [f(x).unflatten(2, (part.heads, -1)).transpose(1, 2) for f in (part.query, part.key, part.value)]
        q, k, v = split
        scale = q.shape[-1] ** -0.25
        mixed = ((q * scale) @ (k * scale).transpose(2, 3)).softmax(-1) @ v + part.conv(v)
        return mixed.transpose(1, 2).flatten(2)

    return forward


def scan(plain: bool) -> Callable[[], Tensor]:
    """The scan alone, a batch of one."""
    from neuroflamingo_encoders.layers.selective_scan import selective_scan

    torch.manual_seed(0)
    u, dt = torch.randn(1, LENGTH, INNER), torch.rand(1, LENGTH, INNER) * 0.1
    a, b, c = (
        -torch.arange(1.0, STATES + 1).expand(INNER, -1),
        torch.randn(1, LENGTH, STATES),
        torch.randn(1, LENGTH, STATES),
    )
    if not plain:
        return lambda: selective_scan(u, dt, a, b, c)
    moved = [x.transpose(1, 2).contiguous() for x in (u, dt, b, c)]
    return lambda: step_by_step(moved[0], moved[1], a, moved[2], moved[3]).transpose(1, 2)


def step_by_step(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence in mamba's own reference layout, tokens last: both large tensors first, then a token at a time."""
    kept = torch.exp(torch.einsum("bel,en->beln", dt, a))
    fed = torch.einsum("bel,bnl,bel->beln", dt, b, u)
    state, out = torch.zeros_like(kept[:, :, 0]), []
    for t in range(u.shape[2]):
        state = kept[:, :, t] * state + fed[:, :, t]
        out.append(torch.einsum("ben,bn->be", state, c[:, :, t]))
    return torch.stack(out, dim=2)


def volume_encoder(name: str) -> Callable[[], Tensor]:
    """Forward of the released size, a batch of one run of 20 frames."""
    from neuroflamingo_encoders.build import build_encoder

    torch.manual_seed(0)
    encoder, x = build_encoder(name), torch.randn(1, 1, 1, 96, 96, 96, 20)
    return lambda: encoder(x).tokens


SYSTEMS: dict[str, dict[str, Callable[[], Callable[[], Tensor]]]] = {
    "BrainLM 13M, 424 x 200": {"neuroflamingo": lambda: brainlm(False), "plain softmax": lambda: brainlm(True)},
    "selective scan, 10,000 tokens": {"neuroflamingo": lambda: scan(False), "token by token": lambda: scan(True)},
    "SwiFT, 96^3 x 20": {"neuroflamingo": lambda: volume_encoder("swift")},
    "NeuroSTORM, 96^3 x 20": {"neuroflamingo": lambda: volume_encoder("neurostorm")},
}


def agree(first: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(first, other, atol=5e-4, rtol=5e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        sys.exit(Comparison(__file__, "bench-encoders", SYSTEMS, GOALS, agree, __doc__ or "").main())
