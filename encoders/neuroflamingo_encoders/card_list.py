"""Rows of `encoders list` for the built-in encoders, stored as JSON: importing 26 cards takes half a second.

Written by `python tools/encoder_table.py`; a test keeps it in step with the cards.
"""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # no card is read for the stored list
    from neuroflamingo_encoders.card import EncoderCard, Weights

STORED = Path(__file__).with_name("card_list.json")
ENTRY_POINT_GROUP = "neuroflamingo.encoders"


def stored_rows() -> list[dict[str, Any]] | None:
    """Stored rows, sorted by name; None if a plug-in is installed, whose card has to be imported."""
    return None if entry_points(group=ENTRY_POINT_GROUP) else json.loads(STORED.read_text(encoding="utf-8"))


def where_in_words(weights: Weights, parameters: int) -> str:
    """Source of the weights of an encoder that has so many, in words."""
    if weights.source == "embedded":
        return "in the package, with the embedded model"
    if weights.source == "none":
        return "none published" if weights.licence.startswith("none") or parameters else "none needed"
    return f"{weights.file} from {weights.source}" if weights.file else f"from {weights.source}"


def listed(card: EncoderCard) -> dict[str, Any]:
    """Row of `encoders list` for an encoder."""
    return {
        "name": card.name,
        "version": card.version,
        "summary": card.summary,
        "modality": card.scan.modality,
        "input": card.scan.describe(),
        "tokens": card.output.tokens,
        "width": card.output.width,
        "parameters": card.cost.parameters,
        "weights": where_in_words(card.weights, card.cost.parameters),
        "licence": card.weights.licence,
        "digest": card.digest,
    }
