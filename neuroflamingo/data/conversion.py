"""What comes of data sets that others made: samples, and what was left out and why."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroflamingo.data.checking import counts, in_words
from neuroflamingo.data.manifest import Sample, sample_of, write_manifest
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".nii.gz", ".nii", ".npy")
"""Tried, in this order, where a table names images without an ending."""


@dataclass
class Conversion:
    """What came of a data set.

    Attributes:
        samples: those that can be trained on.
        left_out: why rows were left out, and the numbers of these rows.
        notes: what was chosen, in words for the user.
    """

    samples: list[Sample] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    _ids: Counter[str] = field(default_factory=Counter, repr=False)

    def add(self, number: int, name: str, **values: Any) -> None:
        """A sample from row `number`; its id gets a number behind it if it is taken. Left out if it cannot be used."""
        row = {"id": name} | {key: value for key, value in values.items() if value is not None}
        sample, faults = sample_of(row)
        if sample is None:
            self.left_out["; ".join(faults)].append(number)
            return
        while row["id"] in self._ids:
            self._ids[name] += 1
            row["id"] = f"{name}-{self._ids[name]}"
        self._ids[row["id"]] = 1
        self.samples.append(sample.model_copy(update={"id": row["id"]}))

    def write(self, output: str | Path, *, overwrite: bool = False) -> Path:
        """Write the manifest.

        Raises:
            ScanError: there is nothing to write; the reasons are named (exit 65).
            OutputError: see `write_manifest`.
        """
        if not self.samples:
            raise ScanError(
                "no sample is left to be written",
                expected="at least one row that can be used",
                seen="\n    ".join(self.reasons()) or "no rows",
            )
        return write_manifest(self.samples, output, overwrite=overwrite)

    def reasons(self) -> list[str]:
        """Why rows were left out, the most frequent reason first, with the first row of each."""
        ranked = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        return [f"{len(rows)} left out: {why} (first: row {rows[0]})" for why, rows in ranked]

    def as_dict(self) -> dict[str, Any]:
        """Counts for JSON."""
        left_out = {why: len(rows) for why, rows in self.left_out.items()}
        return counts(self.samples) | {"left_out": left_out, "notes": self.notes}

    def lines(self) -> list[str]:
        """In words: what there is, what was chosen, what was left out."""
        return [in_words(counts(self.samples)), *self.notes, *self.reasons()]


class ImageFolder:
    """The images of a data set, by the names that its table gives them.

    Raises:
        NotFoundError: no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NotFoundError(
                f"there is no folder {self.folder.name} of images", expected="a folder", hint="check --images"
            )
        self._found: dict[str, str | None] = {}

    def files_of(self, cell: Any) -> list[str] | str:
        """The files that a cell names, or what is wrong with it.

        A cell is a name, a list of names, or several in one text with `;` or `,` between, also with brackets and quotes
        around as Python and JSON write lists. An image that `datasets` keeps in parquet goes by its `path`.
        """
        if isinstance(cell, str) and not self._file(cell):
            cell = [name.strip().strip("'\"") for name in cell.strip().strip("[]").replace(";", ",").split(",")]
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        names = [one.get("path") if isinstance(one, Mapping) else one for one in cells]
        if not all(isinstance(name, str) for name in names):
            return "an image is neither named nor has it a path"
        files = [self._file(str(name)) for name in names]
        return [file for file in files if file] if all(files) else "an image is not there"

    def _file(self, name: str) -> str | None:
        if name not in self._found:
            place = os.path.abspath(self.folder / name)
            tried = (place, *(place + ending for ending in IMAGE_ENDINGS))
            self._found[name] = next((path for path in tried if name.strip() and os.path.isfile(path)), None)
        return self._found[name]
