"""File names as BIDS makes them, the dataset that a file lies in, and which labels are numbers."""

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
    """A name of entities, a suffix and an ending: `sub-01_task-rest_bold.nii.gz`."""

    entities: Mapping[str, str]
    suffix: str
    extension: str


def parse_name(name: str) -> BidsName | None:
    """The parts of a BIDS file name; None if it is none: another separator, an entity twice, letters beyond ASCII."""
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    found = [re.fullmatch(r"([A-Za-z0-9]+)-([A-Za-z0-9+]+)", pair) for pair in pairs]
    entities = {match[1]: match[2] for match in found if match}
    if len(entities) != len(pairs) or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return None
    return BidsName(entities, suffix, dot + extension)


def entities_of(path: Path) -> dict[str, str]:
    """What looks like BIDS entities in any file name, in order; repeated ones keep the first value."""
    found: dict[str, str] = {}
    for key, value in re.findall(r"(?:^|_)([A-Za-z]+)-([A-Za-z0-9+]+)(?=_|\.)", path.name):
        found.setdefault(key, value)
    return found


def dataset_root(path: Path) -> Path | None:
    """The nearest folder at or above a path that holds `dataset_description.json`; links are not resolved.

    A derivative has a description of its own: it is a dataset, not a part of the one that it lies in.
    """
    place = path.absolute()
    return next((folder for folder in (place, *place.parents) if (folder / DESCRIPTION).is_file()), None)


def plain_label(entity: str, value: object) -> str:
    """A label as it is compared: `sub-01` is `01`, and `01` of an entity that counts is `1`."""
    text = str(value).strip().removeprefix(f"{entity}-")
    return str(int(text)) if entity in NUMBERS and text.isascii() and text.isdigit() else text
