"""Keeps processes in step: a parameter that one of them did not use gets a zero gradient there.

Gradients are exchanged parameter by parameter. A process whose batch has no scan would send none for the resampler, and
the others would wait for it for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def exchanging() -> bool:
    """Whether this forward pass's gradients will be exchanged with other processes."""
    if not (torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1


def idle(parameters: Iterable[Tensor]) -> Tensor | float:
    """Zero, through which a zero gradient flows to every parameter that trains."""
    return sum((p.sum() * 0.0 for p in parameters if p.requires_grad), 0.0)
