"""Learning rate as a pure function of the optimiser step, so that no state has to be saved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuroflamingo.recipe.schema import AdamWSettings


def rate(step: int, settings: AdamWSettings) -> float:
    """Compute the learning rate of an optimiser step (from 0): linear warm-up, then constant or decay to zero.

    Differs from upstream, whose schedules count micro-steps and ignore accumulation.
    """
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    fall = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return settings.lr * fall[settings.schedule]
