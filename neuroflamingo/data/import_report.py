"""What comes of data sets that others made: samples, and what was left out and why."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroflamingo.data.check_manifest import counts, in_words
from neuroflamingo.data.manifest import Sample, sample_of, write_manifest
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.files import write_bytes_atomic

MAGIC = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
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

    Args:
        folder: where they are.
        extract: save images that are in the table itself there, called after their content.

    Raises:
        NotFoundError: no such folder.
    """

    def __init__(self, folder: str | Path, *, extract: bool = False) -> None:
        self.folder, self.extract = Path(folder), extract
        if not self.folder.is_dir():
            raise NotFoundError(
                f"there is no folder {self.folder.name} of images",
                expected="a folder",
                hint="check --images, or make the folder",
            )
        self._found: dict[str, str | None] = {}

    def files_of(self, cell: Any) -> list[str] | str:
        """The files that a cell names, or what is wrong with it.

        A cell is a name, a list of names, or several in one text with `;` or `,` between, also with brackets and quotes
        around as Python and JSON write lists. An image that `datasets` keeps in parquet goes by its `path`, or is
        saved.
        """
        if isinstance(cell, str) and not self._file(cell):
            cell = [name.strip().strip("'\"") for name in cell.strip().strip("[]").replace(";", ",").split(",")]
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        files = [self._kept(one) if isinstance(one, Mapping) else self._file(one) for one in cells]
        inside = any(isinstance(one, Mapping) and one.get("bytes") for one in cells)
        missing = "an image is in the table only, or is no PNG or JPEG; --extract saves those" * inside
        return [file for file in files if file] if all(files) else missing or "an image is not there"

    def _kept(self, image: Mapping[str, Any]) -> str | None:
        """The file of an image that `datasets` keeps as a path, as bytes, or as both."""
        if file := self._file(image.get("path")):
            return file
        content = image.get("bytes")
        if not self.extract or not isinstance(content, bytes):
            return None
        ending = next((ending for magic, ending in MAGIC.items() if content.startswith(magic)), None)
        if ending is None:
            return None
        name = hashlib.sha256(content).hexdigest()[:32] + ending
        if not self._file(name):
            self._found[name] = os.path.abspath(write_bytes_atomic(self.folder / name, content))
        return self._file(name)

    def _file(self, name: Any) -> str | None:
        if not isinstance(name, str):
            return None
        if name not in self._found:
            place = os.path.abspath(self.folder / name)
            tried = (place, *(place + ending for ending in IMAGE_ENDINGS))
            self._found[name] = next((path for path in tried if name.strip() and os.path.isfile(path)), None)
        return self._found[name]
