"""Zero gradients for unused parameters, which keep distributed processes in step.

Gradients are exchanged parameter by parameter. A process whose batch has no scan would send none for the resampler, and
the others would wait for it forever.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def gradients_exchanged() -> bool:
    """True if the gradients of this forward pass will be exchanged with other processes."""
    if not (torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1


def zero_gradient_term(parameters: Iterable[Tensor]) -> Tensor | float:
    """Zero that gives every trainable parameter a zero gradient when added to the loss."""
    return sum((p.sum() * 0.0 for p in parameters if p.requires_grad), 0.0)
