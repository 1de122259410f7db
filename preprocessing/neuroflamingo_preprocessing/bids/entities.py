"""BIDS entities: parsing of file names, normalisation of labels, and the root of a dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DESCRIPTION = "dataset_description.json"
NUMBERS = frozenset({"run", "echo", "flip", "inv", "split", "chunk"})
"""Entities whose labels are numbers: `run-1` and `run-01` are the same run."""


_SUFFIXES = """
    T1w T2w PDw FLAIR T2starw T2star T1rho inplaneT1 inplaneT2 PDT2 UNIT1 MP2RAGE MEGRE MESE VFA IRT1 MPM MTR MTS
    T1map T2map T2starmap R1map R2map R2starmap PDmap PDT2map M0map S0map MTRmap MTVmap MTsat Chimap
    bold sbref boldref dwi asl pet cbv epi mask dseg probseg defacemask magnitude phasediff
"""
SUFFIXES = {suffix.lower(): suffix for suffix in _SUFFIXES.split()}
"""Suffixes as BIDS writes them, by their lower-case form."""


@dataclass(frozen=True)
class BidsName:
    """BIDS file name: entities, suffix and extension, as in `sub-01_task-rest_bold.nii.gz`.

    Names of entities and the suffix are in BIDS's own letters, whatever the file's are (`SUB-01_t1w`).
    """

    entities: Mapping[str, str]
    suffix: str
    extension: str


def parse_name(name: str) -> BidsName | None:
    """Parse a BIDS file name; None for any other name (another separator, a repeated entity, non-ASCII letters)."""
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    found = [re.fullmatch(r"([A-Za-z0-9]+)-([A-Za-z0-9+]+)", pair) for pair in pairs]
    entities = {match[1].lower(): match[2] for match in found if match}
    if len(entities) != len(pairs) or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return None
    return BidsName(entities, plain_suffix(suffix), dot + extension)


def entities_of(path: Path) -> dict[str, str]:
    """Entities in any file name, in order, BIDS name or not; the first value of a repeated one counts."""
    found: dict[str, str] = {}
    for key, value in re.findall(r"(?:^|_)([A-Za-z]+)-([A-Za-z0-9+]+)(?=_|\.)", path.name):
        found.setdefault(key.lower(), value)
    return found


def dataset_root(path: Path) -> Path | None:
    """Nearest folder at or above a path that holds `dataset_description.json`, without resolving links.

    A derivative has its own description, so it is a dataset rather than a part of the one around it.
    """
    start = path.absolute()
    return next((folder for folder in (start, *start.parents) if (folder / DESCRIPTION).is_file()), None)


def plain_suffix(suffix: str) -> str:
    """Suffix in BIDS's own letters: `t1w` becomes `T1w`."""
    return SUFFIXES.get(suffix.lower(), suffix)


def plain_label(entity: str, value: object) -> str:
    """Normalise a label for showing: `sub-01` to `01`, and `01` to `1` for entities that count."""
    text = str(value).strip()
    text = text[len(entity) + 1 :] if text.lower().startswith(f"{entity}-") else text
    return str(int(text)) if entity in NUMBERS and text.isascii() and text.isdigit() else text


def folded_label(entity: str, value: object) -> str:
    """Normalise a label for comparing: as `plain_label`, and without regard to capital letters."""
    return plain_label(entity, value).casefold()


def folded(entities: Mapping[str, object]) -> dict[str, str]:
    """All entities of a name with their labels as they are compared."""
    return {entity: folded_label(entity, label) for entity, label in entities.items()}
