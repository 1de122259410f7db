"""Mixed precision if the hardware supports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from neuroflamingo.recipe.schema import Recipe
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 arithmetic is native; if emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def autocast(device: torch.device | str, precision: str = "auto") -> torch.autocast:
    """Make the autocast context of a stage: `bf16`, `fp32`, or `auto`, which is bf16 if native."""
    device = torch.device(device)
    enabled = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def resolved_precision(recipe: Recipe | EmbeddedRecipe) -> str:
    """Resolve a recipe's `run.precision` on this machine: `fp32`, `bf16` or `fp16`.

    `auto` is bf16 if that is native, or if the language model is stored in half precision.

    Raises:
        ConfigError: fp16 without a GPU, or float32 arithmetic on weights in half precision (exit 78).
    """
    asked, stored = recipe.run.precision, recipe.model.language_model.dtype if isinstance(recipe, Recipe) else "float32"
    gpu = torch.cuda.is_available()
    if asked == "auto":
        native = has_bfloat16(torch.device("cuda" if gpu else "cpu"))
        return "bf16" if native or stored != "float32" else "fp32"
    if asked == "fp16" and not gpu:
        raise ConfigError(
            "run.precision: fp16 needs a GPU",
            expected="auto, fp32 or bf16 on a CPU",
            seen="fp16 without a GPU",
            hint="--set run.precision=auto",
        )
    if asked == "fp32" and stored != "float32":
        raise ConfigError(
            "run.precision: fp32 cannot be combined with a language model in half precision",
            expected="auto or bf16, or model.language_model.dtype=float32",
            seen=f"fp32 and {stored}",
            hint="--set run.precision=auto",
        )
    return asked
