"""Check of a model that was just loaded: it computes numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from neuroflamingo.model.base import FusedModel


def check_finite(model: FusedModel, logits: Tensor | None, where: str) -> None:
    """Refuse a model that computes no numbers, because its weights or settings are damaged.

    The language model is checked by its logits; what stands beside it, by its tensors.

    Args:
        model: just loaded.
        logits: of a pass on two tokens, from `prove_media`; None for a model without memory.
        where: the folder, for the message.

    Raises:
        ModelError: logits or weights that are not finite (exit 65).
    """
    bad = [f"{name}.{key}" for name in ("encoder", "perceiver") for key in _not_finite(getattr(model, name))]
    if logits is not None and bool((logits.isnan() | (logits == math.inf)).any()):
        bad = bad or list(_not_finite(model)) or ["the logits of two tokens"]
    if bad:
        raise ModelError(
            f"the model in {where} does not compute numbers",
            expected="finite weights, and finite logits of two tokens",
            seen=f"NaN or infinity in {', '.join(bad[:3])}" + (f" and {len(bad) - 3} more" if len(bad) > 3 else ""),
            hint="take an intact copy of the folder",
            exit_code=65,
        )


def _not_finite(module: nn.Module | None) -> Iterator[str]:
    """Tensors in memory that hold NaN or infinity; buffers may hold infinity on purpose."""
    if module is None:
        return
    for name, value in module.named_parameters():
        if value.is_floating_point() and not value.is_meta and not bool(torch.isfinite(value).all()):
            yield name
    for name, value in module.named_buffers():
        if value.is_floating_point() and not value.is_meta and bool(torch.isnan(value).any()):
            yield name
