"""Watch over the first steps of a training: cross-attention and resampler must get a gradient, or no scan is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neuroflamingo.model.fusion import GATED
from neuroflamingo.training.parallel import summed, trained
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from accelerate import Accelerator

STEPS = 5  # with closed gates the resampler gets its first gradient in the second step


class ScanGradients:
    """Counts the first optimiser steps with scans, and stops a training in which the scans have no part.

    Args:
        model: what trains; its gated blocks and resampler are known by their names.
        accelerator: the processes that hold parts of the gradients.
        steps: how many steps with scans decide.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator, steps: int = STEPS) -> None:
        named = list(trained(model))
        groups = {
            "the cross-attention of the gated blocks": [p for name, p in named if f"{GATED}attn" in name],
            "the resampler": [p for name, p in named if "perceiver." in f".{name}"],
        }
        self.waiting = {name: group for name, group in groups.items() if group}
        self.accelerator, self.left, self.steps = accelerator, steps, steps

    def check(self, scans: float) -> None:
        """Look at the gradients of a step, when all its micro-steps have added to them.

        Args:
            scans: of the step, over all processes; a step of text alone decides nothing.

        Raises:
            ModelError: no gradient in any of the first steps with scans (exit 65).
        """
        if not self.waiting or not scans or not self.left:
            return
        self.left -= 1
        found = summed(self.accelerator, *(float(any(map(_moves, group))) for group in self.waiting.values()))
        self.waiting = {
            name: group for (name, group), some in zip(self.waiting.items(), found, strict=True) if not some
        }
        if self.waiting and not self.left:
            raise ModelError(
                f"the scans have no part in this training: {' and '.join(self.waiting)} got no gradient",
                expected=f"a gradient in the first {self.steps} steps with scans",
                seen="none at all: the text that is learnt stands before its scan, or the scans do not reach it",
                hint="write <image> before the text that is learnt; look at media_placement and the trained parts",
                exit_code=65,
            )


def _moves(parameter: nn.Parameter) -> bool:
    """Whether this process holds a part of its gradient that is not zero."""
    gradient = parameter.grad
    if gradient is None:
        return False
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return bool(torch.any(local != 0))
