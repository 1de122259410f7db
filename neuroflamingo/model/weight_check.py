"""Checks of a model that was just loaded: it computes numbers, and its encoder is the one that it was saved with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neuroflamingo.model.plain_files import weight_tensors
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

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


ENCODER_PART, ENCODER_DIGEST = "encoder.", "encoder_weights_sha256"


def stored_digest(folder: Path, part: str = ENCODER_PART) -> str:
    """SHA-256 of a part of a model as it is stored: names, types, shapes and bytes of its tensors, whatever the files.

    Args:
        folder: the model's folder.
        part: what the names of the tensors begin with.
    """
    from safetensors import safe_open

    digest = hashlib.sha256()
    tensors = weight_tensors(folder)
    for name in sorted(name for name in tensors if name.startswith(part)):
        tensor = tensors[name]
        with safe_open(folder / tensor.file, "pt") as stream:
            value = stream.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_encoder_weights(folder: Path, described: Mapping[str, Any]) -> None:
    """Refuse the weights of another encoder than the one that the model was saved with.

    Args:
        folder: the model's folder.
        described: its `config.json`; models of before this was recorded are not checked.

    Raises:
        ModelError: the encoder's stored weights do not have the digest that the config names (exit 65).
    """
    expected = described.get(ENCODER_DIGEST)
    if expected is not None and (seen := stored_digest(folder)) != expected:
        raise ModelError(
            f"the encoder's weights in {folder} are not those that the model was saved with",
            expected=f"weights with the SHA-256 {expected}",
            seen=seen,
            hint="copy the whole folder again; a model reads scans with the encoder that it was trained with only",
            exit_code=65,
        )
