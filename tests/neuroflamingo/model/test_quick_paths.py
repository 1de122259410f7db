"""What was made quicker gives the numbers of the plain way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuroflamingo.model.generation import NeverWrite
from neuroflamingo.model.loss import next_tokens, weighted_loss
from neuroflamingo.model.resampler import PerceiverResampler


@pytest.fixture
def resampler() -> PerceiverResampler:
    torch.manual_seed(0)
    module = PerceiverResampler(dim=16, depth=2, dim_head=8, heads=2, num_latents=3)
    for name, parameter in module.named_parameters():
        if "norm" in name:  # so that scale and shift matter
            nn.init.normal_(parameter, 1.0, 0.5)
    return module


def gradients(resampler: PerceiverResampler, x: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    resampler.zero_grad()
    latents = resampler(x, mask)
    (latents * torch.linspace(-1, 1, latents.numel()).view_as(latents)).sum().backward()
    return {name: p.grad.clone() for name, p in resampler.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("masked", [False, True])
def test_resampler_trains_the_same_whether_tokens_need_a_gradient(resampler: PerceiverResampler, masked: bool) -> None:
    x = torch.randn(2, 2, 1, 5, 16)
    mask = torch.arange(5).expand(2, 2, 1, 5) < 4 if masked else None
    assert resampler._standard(x) is not None and resampler._standard(x.clone().requires_grad_()) is None
    quick, plain = gradients(resampler, x, mask), gradients(resampler, x.clone().requires_grad_(), mask)
    assert set(quick) == set(plain) == {name for name, _ in resampler.named_parameters()}
    for name, value in plain.items():
        torch.testing.assert_close(quick[name], value, atol=2e-5, rtol=1e-4, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(resampler(x, mask), resampler(x.clone().requires_grad_(), mask))


def test_resampler_leaves_adapters_in_charge(resampler: PerceiverResampler) -> None:
    """A matrix that something else stands for is called, never read."""
    attention, _ = next(resampler.blocks())
    attention.to_kv = nn.Sequential(attention.to_kv)  # pyright: ignore[reportAttributeAccessIssue]
    assert resampler._standard(torch.randn(1, 5, 16)) is None
    resampler(torch.randn(1, 1, 1, 5, 16)).sum().backward()


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_of_some_positions_is_the_loss_of_all(weighted: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 11), torch.randint(0, 11, (2, 6))
    labels[:, :2], labels[1, 4] = -100, -100
    weights = torch.rand(2, 6) + 0.5 if weighted else None
    targets = next_tokens(labels, weights)
    every = weighted_loss(logits, targets)
    some = logits.flatten(0, 1)[targets.positions]
    assert len(some) == int((labels[:, 1:] != -100).sum()) == 7
    torch.testing.assert_close(weighted_loss(some, targets.at(targets.positions)), every)
    by_hand = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    share = (labels[:, 1:] != -100).float() * (weights[:, 1:] if weights is not None else 1.0)
    torch.testing.assert_close(every, (by_hand * share.flatten()).sum() / share.sum())


def test_never_write_forbids_one_token() -> None:
    scores = torch.randn(3, 7)
    out = NeverWrite(4)(torch.zeros(3, 1, dtype=torch.long), scores)
    assert torch.isinf(out[:, 4]).all() and torch.isfinite(scores).all()
    torch.testing.assert_close(out.index_fill(1, torch.tensor(4), 0), scores.index_fill(1, torch.tensor(4), 0))
