"""`python tools/encoder_table.py PAGE`: the docs' table and the rows of `listing`, from the cards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from marked_pages import fill
from neuroflamingo_encoders.card_list import STORED, listed, where_in_words
from neuroflamingo_encoders.registry import BUILT_IN, encoder_card
from neuroflamingo_encoders.weights.cache import permits
from neuroflamingo_preprocessing.files import write_text_atomic

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard

HEADINGS = {
    "volume3d": "Structural volumes",
    "volume4d": "fMRI runs",
    "parcels": "fMRI parcel series",
    "image2d": "Pictures: slices of a volume",
    "sequence": "Sequences",
    "tokens": "Ready tokens",
}
COLUMNS = ("encoder", "input", "tokens x width", "weights (millions)", "GFLOP", "where the weights are", "licence")


def listing() -> str:
    """The rows of all encoders of the package, as JSON."""
    return json.dumps([listed(encoder_card(name)) for name in sorted(BUILT_IN)], indent=1) + "\n"


def table() -> str:
    """All encoders of the package as Markdown, one table a modality."""
    cards = [encoder_card(name) for name in sorted(BUILT_IN)]
    parts = []
    for modality, heading in HEADINGS.items():
        rows = [_row(card) for card in cards if card.scan.modality == modality]
        if rows:
            parts.append(
                "\n".join([f"### {heading}", "", *_lines(COLUMNS), *("| " + " | ".join(r) + " |" for r in rows)])
            )
    return "\n\n".join(parts)


def _lines(columns: tuple[str, ...]) -> tuple[str, str]:
    return "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)


def _row(card: EncoderCard) -> tuple[str, ...]:
    sizes = {axis.name: axis.size for axis in card.scan.axes if axis.size}
    fixed = len(sizes) == len(card.scan.axes)
    tokens = card.output.token_count(sizes) if fixed else card.output.tokens
    axes = ", ".join(axis.describe().replace("=", " ") for axis in card.scan.axes)
    return (
        f"`{card.name}`",
        axes,
        f"{tokens} x {card.output.width}",
        f"{card.cost.parameters / 1e6:.1f}" if card.cost.parameters else "none",
        f"{card.cost.gflop:,.0f}" if card.cost.gflop else "",
        where_in_words(card.weights, card.cost.parameters),
        f"{card.weights.licence}: {permits(card.weights)}",
    )


if __name__ == "__main__":
    write_text_atomic(STORED, listing(), overwrite=True)
    for name in sys.argv[1:]:
        fill(Path(name), "encoders", table())
