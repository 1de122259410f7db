"""JSON sidecars of BIDS files, by the inheritance principle, with the source of each value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroflamingo_preprocessing.bids.entities import BidsName, dataset_root, folded, parse_name
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.files import read_json

SAME_SECONDS = 0.005
"""Tolerance in seconds between two statements of a repetition time: headers are often rounded to milliseconds."""


@dataclass(frozen=True)
class Sidecar:
    """Sidecar metadata of one scan.

    Attributes:
        values: key to value; for each key the file nearest to the scan wins.
        said_by: key to the name of the file it comes from.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]


def read_sidecar(path: str | Path, listed: dict[Path, list[str]] | None = None) -> Sidecar:
    """Read all sidecars that apply to a scan, from the dataset's root down; outside a dataset `NAME.json` beside it.

    A sidecar applies if it lies at the scan's level or above, has the scan's suffix, and has no entity that the scan
    lacks or has with another label (BIDS 1.10, "The Inheritance Principle"); `run-1` and `run-01` are one label, and
    capital letters do not count. Links are not resolved: a git-annex scan belongs where its link is.

    Args:
        path: the scan.
        listed: see `sidecar_files`.

    Raises:
        ScanError: two sidecars at one level, which BIDS forbids; one that cannot be read.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for file in sidecar_files(path, listed):
        metadata = _read(file)
        values |= metadata
        sources |= dict.fromkeys(metadata, file.name)
    return Sidecar(values, sources)


def sidecar_files(path: str | Path, listed: dict[Path, list[str]] | None = None) -> list[Path]:
    """Find the sidecars that apply to a scan, the farthest first.

    Args:
        path: the scan.
        listed: cache of the JSON files in each folder; pass one mapping for many scans to list each folder once.

    Raises:
        ScanError: two sidecars at one level.
    """
    path = Path(path).absolute()
    listed = {} if listed is None else listed
    own = path.with_name(re.sub(r"\.(nii|nii\.gz|mgh|mgz)$", "", path.name, flags=re.IGNORECASE) + ".json")
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
                f"the sidecars of {scan} cannot be listed", seen=str(error.strerror), exit_code=74
            ) from error
    fitting = [file for file in listed[folder] if _applies(parse_name(file), name)]
    exact = [file for file in fitting if _labels_equal(parse_name(file), name)]
    fitting = exact if len(exact) == 1 else fitting  # `run-1` and `run-01` side by side
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
    return folded(sidecar.entities).items() <= folded(scan.entities).items()


def _labels_equal(sidecar: BidsName | None, scan: BidsName) -> bool:
    return sidecar is not None and sidecar.entities.items() <= scan.entities.items()


def _read(file: Path) -> dict[str, Any]:
    hint = "correct or remove it, or give --tr"
    metadata = read_json(file, expected="a BIDS sidecar: JSON", hint=hint, kind=object)
    return metadata if isinstance(metadata, dict) else {}
