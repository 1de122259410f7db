"""`python tools/language_model_table.py`: try every causal language model of transformers; docs/language_models.md.

Takes some minutes. The checks are those of tests/neuroflamingo/model/family_survey.py, on tiny random models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import transformers  # noqa: E402

from marked_pages import fill  # noqa: E402
from tests.neuroflamingo.model.family_survey import CHECKS, Row, survey  # noqa: E402
from tests.neuroflamingo.model.small_configs import FAMILIES  # noqa: E402

PAGE = ROOT / "docs" / "language_models.md"


def cells(row: Row) -> list[str]:
    """What the table says of a fused family's checks: yes, no, or that the bare model does no better."""
    faults = [row.faults.get(name) for name in CHECKS]
    return ["yes" if not fault else "bare" if fault.startswith("as the bare") else "no" for fault in faults]


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of the marked part of the page."""
    fused, refused = [row for row in rows if row.way], [row for row in rows if row.refused]
    absent = [row for row in rows if row.not_built]
    whole = sum(not row.faults for row in fused)
    counts = f"Of {len(rows) - len(absent)} that build from a tiny config, {len(fused)} are fused, {whole} with every"
    yield f"transformers {transformers.__version__} has {len(rows)} families of causal language models."
    yield f"{counts} check passed; {len(refused)} are refused with the reason."
    yield from (
        "",
        f"| family | scans come | {' | '.join(CHECKS)} | what is wrong |",
        "| --- " * (len(CHECKS) + 3) + "|",
    )
    for row in fused:
        wrong = "; ".join(f"{name}: {fault}" for name, fault in row.faults.items())
        way = "as a keyword" if row.way == "keyword" else "by the scope"
        yield f"| {row.family} | {way} | {' | '.join(cells(row))} | {_plain(wrong)} |"
    yield from ("", "Refused by `assemble`:", "", "| family | seen |", "| --- | --- |")
    yield from (f"| {row.family} | {_plain(row.refused)} |" for row in refused)
    yield from ("", "Not tried, since the rule makes no tiny model of them:", "", "| family | why |", "| --- | --- |")
    yield from (f"| {row.family} | {_plain(row.not_built)} |" for row in absent)


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;")


def stated(page: str) -> dict[str, list[str]]:
    """The cells of each family in the page; `["refused"]` or `["not tried"]` for those without."""
    found: dict[str, list[str]] = {}
    kind: list[str] | None = None
    for line in page.partition("families:begin")[2].splitlines():
        if line.startswith("Refused by"):
            kind = ["refused"]
        elif line.startswith("Not tried"):
            kind = ["not tried"]
        elif line.startswith("| ") and not line.startswith(("| family", "| ---")):
            parts = [part.strip() for part in line.strip("|").split("|")]
            found[parts[0]] = kind or [parts[1], *parts[2 : 2 + len(CHECKS)]]
    return found


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    surveyed = []
    for number, family in enumerate(FAMILIES, 1):
        surveyed.append(survey(family))
        print(f"{number} of {len(FAMILIES)}: {family}", file=sys.stderr)
    fill(PAGE, "families", "\n".join(table(surveyed)))
