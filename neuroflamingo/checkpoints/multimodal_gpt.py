"""Low-rank updates (LoRA) in Multimodal-GPT's files: paired, checked, and merged into their weights.

They are merged, not attached: the result is a plain model with the same logits, which runs without peft and can itself
get new adapters. `W + alpha / r * B A` is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuroflamingo.checkpoints.openflamingo_names import MISFIT, listing
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LowRankUpdate:
    """One weight's update: `down` [rank in], `up` [out rank], already paired."""

    down: Tensor
    up: Tensor
    scale: float

    def delta(self) -> Tensor:
        """[out in], float64."""
        return self.scale * (self.up.double() @ self.down.double())


def lora_part(name: str) -> tuple[str, str] | None:
    """Split `...to_q.lora_A.weight` into (`...to_q.weight`, `lora_A`); None for other names."""
    parts = name.split(".")
    if len(parts) > 2 and parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"):
        return ".".join([*parts[:-2], "weight"]), parts[-2]
    return None


def pair_updates(
    tensors: Mapping[tuple[str, str], Tensor], tuning: Mapping[str, Any] | None
) -> dict[str, LowRankUpdate]:
    """Pair A with B for every weight and find their scale.

    Args:
        tensors: by (name of the weight, `lora_A` or `lora_B`).
        tuning: the file's `tuning_config`: rank `r` and `alpha` (or `lora_alpha`). Without it the rank is A's number
            of rows and alpha equals it, as in Multimodal-GPT's own configuration (16 and 16).

    Raises:
        ModelError: a partner is missing, shapes do not multiply, or the ranks differ from the configuration.
    """
    targets = list(dict.fromkeys(target for target, _ in tensors))
    alone = [target for target in targets if {(target, "lora_A"), (target, "lora_B")} - tensors.keys()]
    if alone:
        raise _misfit("low-rank updates without their partner", "lora_A and lora_B for each weight", listing(alone))
    updates, faults = {}, []
    for target in targets:
        down, up = tensors[target, "lora_A"], tensors[target, "lora_B"]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            faults.append(f"{target}: A {tuple(down.shape)}, B {tuple(up.shape)}")
            continue
        updates[target] = LowRankUpdate(down, up, _scale(target, down.shape[0], tuning))
    if faults:
        raise _misfit("low-rank updates do not multiply", "A [rank in] and B [out rank]", listing(faults))
    return updates


def merged(weight: Tensor, update: LowRankUpdate, *, input_first: bool) -> Tensor:
    """Merge an update into a weight, in the weight's dtype; `input_first` for GPT-2's transposed layers."""
    delta = update.delta().to(weight.device)
    return (weight.double() + (delta.T if input_first else delta)).to(weight.dtype)


def input_first_names(model: torch.nn.Module) -> set[str]:
    """Names of weights that are stored as [in out], as in transformers' Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}


def _scale(target: str, rank: int, tuning: Mapping[str, Any] | None) -> float:
    if tuning is None:
        return 1.0
    declared, alpha = tuning.get("r"), tuning.get("alpha", tuning.get("lora_alpha"))
    if declared != rank or not isinstance(alpha, int | float):
        raise _misfit(
            f"the tuning_config does not belong to these updates ({target})",
            f"r = {rank}, which is the number of rows of lora_A, and a number as alpha",
            f"r = {declared!r}, alpha = {alpha!r}",
        )
    return alpha / rank


def _misfit(what: str, expected: str, seen: str) -> ModelError:
    hint = "read the file of one run, unchanged"
    return ModelError(what, expected=expected, seen=seen, hint=hint, exit_code=MISFIT)
