"""The learning rate as a pure function of the optimiser step, so that there is nothing to save."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuroflamingo.recipe.schema import AdamWSettings


def rate(step: int, settings: AdamWSettings) -> float:
    """Learning rate of an optimiser step (from 0): linear warm-up, then constant, or falling to zero at the last step.

    Differs from upstream, whose schedules count micro-steps of one epoch length whatever the accumulation is.
    """
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    fall = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return settings.lr * fall[settings.schedule]
