"""`python tools/finding_table.py`: the table of brain findings that the reader knows, in docs/read_report.md."""

from __future__ import annotations

from pathlib import Path

from marked_pages import fill
from neuroflamingo.reader.brain_findings import BRAIN_FINDINGS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "read_report.md"


def table() -> str:
    """One row for each finding: its class among the six, its code, and its words as the table of the code has them."""
    rows = [
        f"| {row.name} | {row.kind or ''} | {row.code or ''} | {row.words.replace('|', '/')} |"
        for row in BRAIN_FINDINGS
    ]
    return "\n".join(["| finding | class | SNOMED CT | words |", "| --- | --- | --- | --- |", *rows])


def main() -> None:
    """Write the table into the page."""
    fill(PAGE, "findings", table())


if __name__ == "__main__":
    main()
