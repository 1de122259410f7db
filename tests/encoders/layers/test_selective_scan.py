"""The selective scan against its definition, step by step."""

from __future__ import annotations

import pytest
import torch

from neuroflamingo_encoders.layers.selective_scan import SelectiveScan, selective_scan


def step_by_step(u, dt, a, b, c):
    state, out = torch.zeros(len(u), *a.shape, dtype=torch.float64), []
    for t in range(u.shape[1]):
        state = torch.exp(dt[:, t, :, None] * a) * state + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1))
    return torch.stack(out, dim=1)


@pytest.mark.parametrize(("length", "chunk"), [(1, 8), (7, 8), (8, 8), (50, 8), (50, 4096), (129, 64)])
def test_chunks_give_what_single_steps_give(length: int, chunk: int) -> None:
    torch.manual_seed(length)
    u, dt = torch.randn(2, length, 5).double(), torch.rand(2, length, 5).double()
    a, b, c = -torch.rand(5, 3).double() * 4, torch.randn(2, length, 3).double(), torch.randn(2, length, 3).double()
    torch.testing.assert_close(
        selective_scan(u, dt, a, b, c, chunk), step_by_step(u, dt, a, b, c), atol=1e-5, rtol=1e-5
    )


def test_gradients_reach_every_input() -> None:
    torch.manual_seed(0)
    u, dt, b, c = (torch.rand(1, 11, n, dtype=torch.float64, requires_grad=True) for n in (3, 3, 2, 2))
    a = (-torch.rand(3, 2, dtype=torch.float64)).requires_grad_()
    quick = torch.autograd.grad(selective_scan(u, dt, a, b, c, 4).square().sum(), (u, dt, a, b, c))
    plain = torch.autograd.grad(step_by_step(u, dt, a, b, c).square().sum(), (u, dt, a, b, c))
    for one, other in zip(quick, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_later_token_changes_no_earlier_one() -> None:
    torch.manual_seed(0)
    layer, x = SelectiveScan(16, chunk=4), torch.randn(1, 13, 16)
    changed = x.clone()
    changed[:, 9] += 1
    with torch.no_grad():
        before, after = layer(x), layer(changed)
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6) and not torch.allclose(before[:, 9:], after[:, 9:])
