"""Parts of pages that tools write: they stand between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroflamingo_preprocessing.files import write_text_atomic

if TYPE_CHECKING:
    from pathlib import Path


def filled(page: str, name: str, text: str) -> str:
    """The page with `text` as its marked part.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"there are no marks {begin} {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def fill(path: Path, name: str, text: str) -> None:
    """Write `text` into the marked part of a file; see `filled`."""
    write_text_atomic(path, filled(path.read_text(encoding="utf-8"), name, text), overwrite=True)
