"""Format of token files: version, limits and arrays, and `ScanTokens`, the tokens of one scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT, VERSION = "neuroflamingo tokens", 1


ARRAYS = ("tokens", "mask", "positions")


MAX_BYTES = 2**36


PACKED, SLACK_BYTES = 64, 2**20
"""Largest ratio of an array's size to its stored bytes, and an allowance: tokens hardly compress, a bomb does."""


KINDS = {"tokens": ("float32", "float16", "float64"), "mask": ("bool",), "positions": ("float32", "float64")}


@dataclass(frozen=True)
class ScanTokens:
    """Tokens of one scan.

    Attributes:
        tokens: `[token, width]`.
        mask: `[token]`, True where a token is real; None if all are.
        positions: `[token, 3]`, position in mm (RAS, template), NaN for a token without one; None if none has one.
        metadata: plain data: `name`, `input`, `geometry`, `warnings` and the like.
    """

    tokens: NDArray[Any]
    mask: NDArray[np.bool_] | None = None
    positions: NDArray[Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays that are not None, by name."""
        return {name: value for name in ARRAYS if (value := getattr(self, name)) is not None}


def damaged(path: Path, seen: str) -> ModelError:
    """Error for a file that is not a complete token file."""
    return ModelError(
        f"{path.name} is not a complete token file",
        expected="tokens as `neuroflamingo encode` writes them",
        seen=seen[:300],
        hint="write or copy it again",
        exit_code=65,
    )
