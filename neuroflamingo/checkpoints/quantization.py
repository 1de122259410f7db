"""8-bit and 4-bit weights by bitsandbytes, if installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from neuroflamingo_preprocessing.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

# Modules that are not quantised: those that NeuroFlamingo adds are small, train, and are used outside of their forward.
# Regular expressions on the start or end of a name.
KEPT = ("encoder", "perceiver", r".*\.gated_cross_attn_layer\.", "lm_head", "embed_out")


def quantization(bits: Literal["8bit", "4bit"], dtype: torch.dtype | None = None) -> Any:
    """Settings with which transformers quantises a language model while loading it.

    Args:
        bits: `8bit` (LLM.int8) or `4bit` (NF4 with double quantisation).
        dtype: compute dtype of 4-bit weights; None: bfloat16.

    Raises:
        ModelError: bitsandbytes is not installed (exit 69).
        UsageError: an unknown kind.
    """
    if bits not in ("8bit", "4bit"):
        raise UsageError("unknown kind of quantisation", expected="8bit or 4bit", seen=str(bits))
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{bits} weights need bitsandbytes",
            expected="the package bitsandbytes",
            seen="it is not installed",
            hint="pip install bitsandbytes, or leave quantize out (bfloat16 takes half of float32)",
        )
    import torch
    from transformers import BitsAndBytesConfig

    kept = list(KEPT)
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype or torch.bfloat16,
        llm_int8_skip_modules=kept,
    )
