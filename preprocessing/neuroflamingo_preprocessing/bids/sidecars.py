"""What the JSON sidecars of a BIDS dataset say of a file, by the inheritance principle, and which of them said it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroflamingo_preprocessing.bids.entities import BidsName, dataset_root, parse_name
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.files import read_json

SAME_SECONDS = 0.005
"""Two statements of a repetition time may differ by so much: headers are often rounded to milliseconds."""


@dataclass(frozen=True)
class Sidecar:
    """Metadata of one file.

    Attributes:
        values: key to value; of several files the nearest to the scan wins, key by key.
        said_by: key to the name of the file that said it.
    """

    values: Mapping[str, Any]
    said_by: Mapping[str, str]


def read_sidecar(path: str | Path, listed: dict[Path, list[str]] | None = None) -> Sidecar:
    """All that applies to a scan, from the dataset's root down; outside a dataset `NAME.json` beside the scan.

    A file applies if it lies at the scan's level or above, has the scan's suffix, and no entity that the scan lacks or
    has with another label (BIDS 1.10, "The Inheritance Principle"). Links are not resolved: a scan of git-annex
    belongs where its link lies.

    Args:
        path: the scan.
        listed: see `sidecar_files`.

    Raises:
        ScanError: two that apply at one level, which BIDS forbids; one that cannot be read.
    """
    values: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for file in sidecar_files(path, listed):
        said = _read(file)
        values |= said
        said_by |= dict.fromkeys(said, file.name)
    return Sidecar(values, said_by)


def sidecar_files(path: str | Path, listed: dict[Path, list[str]] | None = None) -> list[Path]:
    """The sidecars that apply to a scan, the farthest first.

    Args:
        path: the scan.
        listed: JSON files of the folders that were looked at; hand one mapping on to look at each folder once.

    Raises:
        ScanError: two that apply at one level.
    """
    path = Path(path).absolute()
    listed = {} if listed is None else listed
    own = path.with_name(re.sub(r"\.(nii|nii\.gz|mgh|mgz)$", "", path.name) + ".json")
    root, name = dataset_root(path.parent), parse_name(path.name)
    if root is None or name is None:
        return [own] if own.is_file() else []
    below = path.parent.relative_to(root).parts
    folders = [root.joinpath(*below[:depth]) for depth in range(len(below) + 1)]
    found = [_at_level(folder, name, path.name, listed) for folder in folders]
    return [file for file in found if file is not None]


def _at_level(folder: Path, name: BidsName, scan: str, listed: dict[Path, list[str]]) -> Path | None:
    if folder not in listed:
        try:
            with os.scandir(folder) as entries:
                listed[folder] = sorted(e.name for e in entries if e.name.endswith(".json"))
        except OSError as error:
            raise ScanError(
                f"the sidecars of {scan} cannot be looked for", seen=str(error.strerror), exit_code=74
            ) from error
    fitting = [file for file in listed[folder] if _applies(parse_name(file), name)]
    if len(fitting) > 1:
        raise ScanError(
            f"{len(fitting)} sidecars at one level apply to {scan}",
            expected="one at each level of the dataset, as BIDS says",
            seen=", ".join(fitting),
            hint="merge them, or move one a level up",
        )
    return folder / fitting[0] if fitting else None


def _applies(sidecar: BidsName | None, scan: BidsName) -> bool:
    if sidecar is None or sidecar.extension != ".json" or sidecar.suffix != scan.suffix:
        return False
    return sidecar.entities.items() <= scan.entities.items()


def _read(file: Path) -> dict[str, Any]:
    hint = "correct or remove it, or give --tr"
    said = read_json(file, expected="a BIDS sidecar: JSON", hint=hint, kind=object)
    return said if isinstance(said, dict) else {}
