"""Arguments for networks of other libraries from a card: constants, sizes of a tiny instance, token positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard


def constants(card: EncoderCard, config: dict | None) -> dict:
    """Constants of the card's `network` and its width, overridden by `config` (for tiny instances)."""
    return {"width": card.output.width} | dict(card.network) | (config or {})


def shrunk(card: EncoderCard, table: dict[str, tuple[dict[str, int], dict]]) -> tuple[EncoderCard, dict]:
    """Card and config of a tiny instance, from a table of sizes by card name."""
    axes, config = table[card.name]
    return card.shrunk(axes, width=config["width"]), config


def positions(card: EncoderCard, tokens: int, like: Tensor) -> Tensor | None:
    """World positions of the card's token grid, `[token, 3]`; None if it has none of this many tokens."""
    grid = card.output.grid
    if grid is None or len(grid.positions) != tokens:
        return None
    return torch.from_numpy(grid.positions).to(like.device)
