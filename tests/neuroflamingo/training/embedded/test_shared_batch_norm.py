"""`SharedBatchNorm3d` is `BatchNorm3d` over the batches of all processes, and more exact; here there is one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neuroflamingo.training.embedded.shared_batch_norm import SharedBatchNorm3d, share_batch_norm


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    if torch.distributed.is_initialized():
        pytest.skip("there is a process group already")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def passed(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What comes out, what comes back, and what is remembered, after two steps and one in eval mode."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        network.zero_grad()
        out = network(x)
        (out.square() * torch.linspace(0.5, 2.0, out[0].numel(), dtype=x.dtype).view_as(out[0])).mean().backward()
    assert x.grad is not None
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    state = dict(network.state_dict())
    return {"out": out.detach(), "x": x.grad, "eval": network.eval()(x).detach()} | state | gradients


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_it_gives_what_batch_norm_gives_in_double_precision(group: None) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv3d(2, 5, 3, bias=False), nn.BatchNorm3d(5), nn.ReLU(), nn.Sequential(nn.BatchNorm3d(5)))
    plain = nn.Sequential(*layers).train()
    shared = copy.deepcopy(plain)
    share_batch_norm(shared)
    assert [type(m) for m in shared.modules()].count(SharedBatchNorm3d) == 2
    x = torch.randn(3, 2, 8, 9, 10) * 3 + 1
    expected, found = passed(plain.double(), x.double()), passed(shared, x)
    assert expected.keys() == found.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-4, atol=1e-5, msg=name)


def test_weights_and_buffers_are_kept() -> None:
    plain = nn.Sequential(nn.BatchNorm3d(4))
    weight, mean = plain[0].weight, plain[0].running_mean
    names = list(plain.state_dict())
    share_batch_norm(plain)
    assert plain[0].weight is weight and plain[0].running_mean is mean and list(plain.state_dict()) == names
