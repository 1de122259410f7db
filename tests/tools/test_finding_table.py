"""The page of the reader shows the table as it is in the code."""

from __future__ import annotations

import finding_table
import marked_pages


def test_the_page_is_up_to_date() -> None:
    page = finding_table.PAGE.read_text(encoding="utf-8")
    assert marked_pages.filled(page, "findings", finding_table.table()) == page, "run tools/finding_table.py"
