"""Batch norm over the heads of all processes, so that results do not depend on the number of processes.

torch's own `SyncBatchNorm` does the same, on GPUs only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all processes, and, in the backward pass, of its gradient."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total


class SharedBatchNorm3d(nn.BatchNorm3d):
    """`BatchNorm3d` whose statistics in training are those of the batches of all processes together."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[scan, channel, x, y, z]`; in eval mode as `BatchNorm3d` does."""
        if not self.training:
            return super().forward(x)
        numbers, axes = x.float(), (0, 2, 3, 4)
        ours = numbers.new_tensor([numbers[:, 0].numel()])
        total = _Sum.apply(torch.cat([ours, numbers.sum(axes)]))
        count, mean = total[0].detach(), total[1:] / total[0].detach()
        centred = numbers - _per_channel(mean)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        self._remember(mean, variance * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * _per_channel(scale) + _per_channel(self.bias)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def share_batch_norm(module: nn.Module) -> None:
    """Replace each `BatchNorm3d` by a `SharedBatchNorm3d` with the same parameters and buffers."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm3d:
                shared = SharedBatchNorm3d(child.num_features, child.eps, child.momentum)
                shared.weight, shared.bias = child.weight, child.bias
                shared.running_mean, shared.running_var = child.running_mean, child.running_var
                shared.num_batches_tracked = child.num_batches_tracked
                setattr(parent, name, shared.train(child.training))
