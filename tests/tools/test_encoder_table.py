"""The docs' table of encoders is what the cards say."""

from __future__ import annotations

from pathlib import Path

from encoder_table import listing, table
from marked_pages import filled
from neuroflamingo_encoders.card_list import STORED
from neuroflamingo_encoders.registry import BUILT_IN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoders.md"


def test_the_page_holds_every_card_as_it_is() -> None:
    page = PAGE.read_text()
    assert all(f"| `{name}` |" in page for name in BUILT_IN)
    assert filled(page, "encoders", table()) == page, "run: python tools/encoder_table.py docs/encoders.md"


def test_the_rows_of_the_listing_are_the_cards() -> None:
    assert STORED.read_text() == listing(), "run: python tools/encoder_table.py"
