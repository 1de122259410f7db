"""Intensity scaling inside volume encoders, by the names in their cards; each is idempotent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuroflamingo_preprocessing.errors import ModelError, ScanError

if TYPE_CHECKING:
    from jaxtyping import Float


def zscore_nonzero(x: Float[Tensor, "n channel *axes"]) -> Tensor:
    """Z-score of the non-zero voxels of each channel; zeros stay 0, and a constant channel becomes 0."""
    dims = tuple(range(2, x.ndim))
    inside = x != 0
    count = inside.sum(dims, keepdim=True).clamp(min=1)
    centred = torch.where(inside, x - x.sum(dims, keepdim=True) / count, 0)
    spread = (centred.square().sum(dims, keepdim=True) / count).sqrt()
    return centred / spread.clamp(min=1e-6)


def unit(x: Float[Tensor, "n channel *axes"]) -> Tensor:
    """Scale each channel to the range 0 to 1; a constant channel becomes 0."""
    dims = tuple(range(2, x.ndim))
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-6)


_BY_NAME = {"zscore_nonzero": zscore_nonzero, "unit": unit, "none": lambda x: x}


def scale_intensity(x: Float[Tensor, "n channel *axes"], name: str) -> Tensor:
    """Apply the named scaling in float32; the result has the dtype of `x`.

    Raises:
        ScanError: values that are not finite.
        ModelError: an unknown name.
    """
    if name not in _BY_NAME:
        raise ModelError(
            "the encoder's card asks for an unknown scaling",
            expected=", ".join(_BY_NAME),
            seen=name,
            hint="correct `intensity` in the card's network",
            exit_code=65,
        )
    if not bool(x.isfinite().all()):
        raise ScanError(
            "the volume holds values that are not finite",
            expected="numbers",
            seen="NaN or infinity",
            hint="replace them with 0 before encoding",
        )
    return _BY_NAME[name](x.float()).to(x.dtype)
