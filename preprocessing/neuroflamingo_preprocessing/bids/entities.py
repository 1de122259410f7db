"""BIDS entities: parsing of file names, normalisation of labels, and the root of a dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DESCRIPTION = "dataset_description.json"
NUMBERS = frozenset({"run", "echo", "flip", "inv", "split", "chunk"})
"""Entities whose labels are numbers: `run-1` and `run-01` are the same run."""


@dataclass(frozen=True)
class BidsName:
    """BIDS file name: entities, suffix and extension, as in `sub-01_task-rest_bold.nii.gz`."""

    entities: Mapping[str, str]
    suffix: str
    extension: str


def parse_name(name: str) -> BidsName | None:
    """Parse a BIDS file name; None for any other name (another separator, a repeated entity, non-ASCII letters)."""
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    found = [re.fullmatch(r"([A-Za-z0-9]+)-([A-Za-z0-9+]+)", pair) for pair in pairs]
    entities = {match[1]: match[2] for match in found if match}
    if len(entities) != len(pairs) or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return None
    return BidsName(entities, suffix, dot + extension)


def entities_of(path: Path) -> dict[str, str]:
    """Entities in any file name, in order, BIDS name or not; the first value of a repeated one counts."""
    found: dict[str, str] = {}
    for key, value in re.findall(r"(?:^|_)([A-Za-z]+)-([A-Za-z0-9+]+)(?=_|\.)", path.name):
        found.setdefault(key, value)
    return found


def dataset_root(path: Path) -> Path | None:
    """Nearest folder at or above a path that holds `dataset_description.json`, without resolving links.

    A derivative has its own description, so it is a dataset rather than a part of the one around it.
    """
    start = path.absolute()
    return next((folder for folder in (start, *start.parents) if (folder / DESCRIPTION).is_file()), None)


def plain_label(entity: str, value: object) -> str:
    """Normalise a label for comparison: `sub-01` to `01`, and `01` to `1` for entities that count."""
    text = str(value).strip().removeprefix(f"{entity}-")
    return str(int(text)) if entity in NUMBERS and text.isascii() and text.isdigit() else text
