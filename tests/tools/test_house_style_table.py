"""docs/house_styles.md shows what the code writes."""

from __future__ import annotations

import house_style_table
import marked_pages


def test_the_page_is_up_to_date() -> None:
    page = house_style_table.PAGE.read_text(encoding="utf-8")
    for name, text in (("choices", house_style_table.choices()), ("styles", house_style_table.styles())):
        assert marked_pages.filled(page, name, text) == page, "run tools/house_style_table.py"
        assert len(text.splitlines()) > 8
