"""Checks of a model that was just loaded: it computes numbers, and its weights were not stored as whole numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from neuroflamingo.model.base import FusedModel


def check_finite(model: FusedModel, logits: Tensor | None, where: str) -> None:
    """Refuse a model that computes no numbers: damaged weights, or a config with NaN in it.

    The language model is checked by its logits; what stands beside it, by its tensors.

    Args:
        model: just loaded.
        logits: of a pass on two tokens, from `prove_media`; None for a model without memory.
        where: the folder, for the message.

    Raises:
        ModelError: logits, weights or numbers of the config that are not finite (exit 65).
    """
    bad = [f"config.json: {key}" for key in _without_number(model.config.to_dict())]
    for name in ("encoder", "perceiver"):
        bad += [f"{name}.{key}" for key in _not_finite(getattr(model, name))]
    if logits is not None and bool((logits.isnan() | (logits == math.inf)).any()):
        bad = bad or list(_not_finite(model)) or ["the logits of two tokens"]
    if bad:
        raise ModelError(
            f"the model in {where} does not compute numbers",
            expected="finite weights, settings and logits",
            seen=f"NaN or infinity in {', '.join(bad[:3])}" + (f" and {len(bad) - 3} more" if len(bad) > 3 else ""),
            hint="take an intact copy of the folder",
            exit_code=65,
        )


def _without_number(values: Any, name: str = "") -> Iterator[str]:
    """Keys of a config that are NaN; infinity is a limit that some families set."""
    if isinstance(values, float) and math.isnan(values):
        yield name.removeprefix(".")
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _without_number(value, f"{name}.{key}")
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from _without_number(value, f"{name}.{number}")


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


def check_stored_types(model: FusedModel, folder: Path) -> None:
    """Refuse weights that a conversion to whole numbers has destroyed.

    Raises:
        ModelError: a file holds whole numbers or truth values where the model computes with fractions (exit 65).
    """
    from safetensors import safe_open

    if getattr(model.config, "quantization_config", None) is not None:
        return  # there they are codes, with their scales beside them
    whole = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            kinds = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
        wrong = [name for name, kind in kinds.items() if kind[0] in "IUB" and kind != "BF16" and name not in whole]
        if wrong:
            raise ModelError(
                f"weights in {folder.name}/{file.name} are stored as whole numbers",
                expected="floating-point numbers (float32, bfloat16, float16)",
                seen=f"{kinds[wrong[0]]} in {wrong[0]}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""),
                hint="save the model again from its source; to load with 8 or 4 bits: load(..., quantize='8bit')",
                exit_code=65,
            )
