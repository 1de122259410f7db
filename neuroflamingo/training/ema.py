"""State that follows the weights: the optimiser's moments and an exponential moving average, sharded or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neuroflamingo.training.parallel import part_of, put_back, trained, whole


class OptimizerState:
    """Optimiser state by parameter name, so that it does not depend on processes, shards or groups."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def saved(self) -> dict[str, Tensor]:
        """Return `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step`, unsharded, on the CPU."""
        return {
            f"{name}.{key}": whole(torch.as_tensor(value))
            for name, p in trained(self.model)
            for key, value in self.optimizer.state.get(p, {}).items()
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take up what `saved` gave."""
        for name, p in trained(self.model):
            prefix = f"{name}."
            state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
            state = {key: value for key, value in state.items() if "." not in key}
            self.optimizer.state[p] = {
                key: value if value.ndim == 0 else part_of(value, p) for key, value in state.items()
            }


class MovingAverage:
    """Exponential moving average of the trainable parameters, with a smaller decay in the first steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values = {name: p.detach().clone() for name, p in trained(model)}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after the optimiser step with this number (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in trained(self.model):
            self.values[name].lerp_(p.detach(), 1 - decay)

    @torch.no_grad()
    def swap_in(self) -> dict[str, Tensor]:
        """Put the average into the model and return the previous weights."""
        raw = {name: p.detach().clone() for name, p in trained(self.model)}
        self.swap_out(self.values)
        return raw

    @torch.no_grad()
    def swap_out(self, raw: Mapping[str, Tensor]) -> None:
        """Restore the weights that `swap_in` returned."""
        for name, p in trained(self.model):
            p.copy_(raw[name])

    def saved(self) -> dict[str, Tensor]:
        """Return the average, unsharded, on the CPU."""
        return {name: whole(value) for name, value in self.values.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take up what `saved` gave."""
        put_back(self.values, saved)
