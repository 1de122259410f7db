"""Result of importing a dataset: samples, and the rows that were left out, by reason."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroflamingo.data.check_manifest import counts, format_counts
from neuroflamingo.data.manifest import Sample, sample_of, write_manifest
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.files import write_bytes_atomic

MAGIC = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".nii.gz", ".nii", ".npy")
"""Extensions to try, in this order, if a table names images without one."""


@dataclass
class Conversion:
    """Result of importing a dataset.

    Attributes:
        samples: usable samples.
        left_out: numbers of the rows that were left out, by reason.
        notes: choices made, in words for the user.
    """

    samples: list[Sample] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    _ids: Counter[str] = field(default_factory=Counter, repr=False)

    def add(self, number: int, name: str, **values: Any) -> None:
        """Add a sample from row `number`, or leave it out if it is invalid; a duplicate id gets a numeric suffix."""
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
            ScanError: no sample is left; the message lists the reasons (exit 65).
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
        """Reasons why rows were left out, the most frequent first, each with its first row."""
        ranked = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        return [f"{len(rows)} left out: {why} (first: row {rows[0]})" for why, rows in ranked]

    def as_dict(self) -> dict[str, Any]:
        """Counts for JSON."""
        left_out = {why: len(rows) for why, rows in self.left_out.items()}
        return counts(self.samples) | {"left_out": left_out, "notes": self.notes}

    def lines(self) -> list[str]:
        """Lines of text for the terminal: contents, notes, and rows left out."""
        return [format_counts(counts(self.samples)), *self.notes, *self.reasons()]


class ImageFolder:
    """Images of a dataset, by their names in its table.

    Args:
        folder: folder of the images.
        extract: save images embedded in the table to the folder, named after their content.

    Raises:
        NotFoundError: no such folder.
    """

    def __init__(self, folder: str | Path, *, extract: bool = False) -> None:
        self.folder, self.extract = Path(folder), extract
        if not self.folder.is_dir():
            raise NotFoundError(
                f"there is no image folder {self.folder.name}",
                expected="a folder",
                hint="check --images, or make the folder",
            )
        self._found: dict[str, str | None] = {}

    def files_of(self, cell: Any) -> list[str] | str:
        """Files that a cell refers to, or its error.

        A cell is a name, a list of names, or a string of names separated by `;` or `,`, with or without the brackets
        and quotes of a Python or JSON list. An image that `datasets` embeds in parquet is found by `path`, or saved.
        """
        if isinstance(cell, str) and not self._file(cell):
            cell = [name.strip().strip("'\"") for name in cell.strip().strip("[]").replace(";", ",").split(",")]
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        files = [self._kept(one) if isinstance(one, Mapping) else self._file(one) for one in cells]
        inside = any(isinstance(one, Mapping) and one.get("bytes") for one in cells)
        missing = "an image is in the table only, or is not PNG or JPEG; --extract saves PNG and JPEG" * inside
        return [file for file in files if file] if all(files) else missing or "an image is not there"

    def _kept(self, image: Mapping[str, Any]) -> str | None:
        """File of an image that `datasets` stores as a path, as bytes, or as both."""
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
