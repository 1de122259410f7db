"""Parcel series in text tables: numbers with or without names, a line for each frame or for each parcel."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.user_files import decode_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import Axis

Rows = Literal["frames", "parcels"]
MAX_TABLE_BYTES, MAX_TABLE_CELLS = 2**26, 2**24
MAX_NAME = 80


@dataclass(frozen=True)
class Table:
    """Numbers of a file, before frames and parcels are told apart.

    Attributes:
        values: as stored; `[parcel, frame]` after `oriented`.
        seconds: repetition time, if the file states it.
        kind: kind of file.
        rows: whether its lines are frames or parcels, if known.
        names: parcel names in order, if the file has them.
        columns, lines: names in the header, and in the first column; empty if there are none.
    """

    values: NDArray[Any]
    seconds: float | None = None
    kind: str = "parcel table"
    rows: Rows | None = None
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


def read_table(raw: bytes, separator: str) -> Table:
    """Read numbers with a header, a column of names, both or neither; `n/a` among numbers is refused like any word.

    Raises:
        ValueError: too large, not text, lines of different lengths, words among the numbers.
    """
    whole = decode_text(raw)
    cells = whole.count(separator) + whole.count("\n")
    if cells > MAX_TABLE_CELLS:
        raise ValueError(f"a table of {cells:,} cells")
    columns: list[str] = []
    lines: list[str] = []
    rows: list[NDArray[np.float32]] = []
    for line in csv.reader(io.StringIO(whole, newline=""), delimiter=separator):
        words = [word.strip() for word in line]
        if not any(words):
            continue
        if not rows and not columns and _is_header(words):
            columns = words
            continue
        if len(words) > 1 and not _is_number(words[0]):
            lines.append(words.pop(0))
        with np.errstate(over="ignore"):  # to infinity, which is refused later
            rows.append(np.array(words, dtype=np.float64).astype(np.float32))
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError("no lines of numbers" if not rows else f"lines of {min(widths)} to {max(widths)} columns")
    if lines and len(lines) != len(rows):
        raise ValueError(f"names in the first column of {len(lines)} of {len(rows)} lines")
    if lines and len(columns) > len(rows[0]):
        columns = columns[1:]  # the header of the column of names
    if columns and len(columns) != len(rows[0]):
        raise ValueError(f"{len(columns)} names over {len(rows[0])} columns of numbers")
    return Table(np.stack(rows), columns=printable(columns), lines=printable(lines))


def _is_header(words: list[str]) -> bool:
    """True for names, or for column numbers; the first cell does not count, it may head a column of names."""
    numbered = _counted(words) or (not words[0] and _counted(words[1:]))  # pandas: no name over the lines' numbers
    return not any(_is_number(word) for word in words[1:] or words) or numbered


def printable(names: list[str]) -> tuple[str, ...]:
    """Names as records keep them: cut to 80 characters, without control characters."""
    return tuple("".join(c for c in name if c.isprintable())[:MAX_NAME] for name in names)


def _counted(cells: list[str]) -> bool:
    """True for a line that numbers its columns from 0 or 1: a header, not the values of a frame."""
    return len(cells) > 2 and cells in ([str(n + first) for n in range(len(cells))] for first in (0, 1))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def oriented(table: Table, parcels: Axis, time: Axis, name: str, stated_rows: Rows | None) -> Table:
    """Orient a table as `[parcel, frame]`: as stated, else as it fits the encoder's number of parcels.

    A shape that fits neither way is left for the caller to refuse.

    Args:
        table: as read.
        parcels, time: axes of the encoder.
        name: name of the file, for messages.
        stated_rows: `--rows` of the user.

    Raises:
        ScanError: both ways fit, or the file contradicts the user.
    """
    lines, columns = table.values.shape
    ways: dict[Rows, bool] = {
        "frames": parcels.accepts(columns) and time.accepts(lines),
        "parcels": parcels.accepts(lines) and time.accepts(columns),
    }
    if table.rows is not None and stated_rows not in (None, table.rows):
        raise ScanError(
            f"{name} itself states whether its lines are frames or parcels",
            expected=f"--rows {table.rows}, or none",
            seen=f"--rows {stated_rows}",
            hint="leave out --rows",
        )
    rows = table.rows or stated_rows
    if rows is None and all(ways.values()):
        raise ScanError(
            f"{name}: either the lines or the columns may be the parcels",
            expected="a table that fits the encoder one way only",
            seen=f"{lines} lines of {columns} numbers",
            hint="say which: --rows frames, or --rows parcels",
        )
    if rows is None:
        fitting = [way for way, fits in ways.items() if fits]
        rows = fitting[0] if fitting else ("frames" if table.kind == "parcel table" else "parcels")
        if not fitting and 1 in (lines - (parcels.size or 0), columns - (parcels.size or 0)):
            raise ScanError(
                f"{name} has one line or column more than the encoder has parcels",
                expected=f"{parcels.describe()}, {time.describe()}",
                seen=f"{lines} lines of {columns} numbers",
                hint="save the table without a column of line numbers (pandas: index=False)",
            )
    values = table.values.T if rows == "frames" else table.values
    names = table.names or (table.columns if rows == "frames" else table.lines)
    return replace(table, values=values, rows=rows, names=names if len(names) == len(values) else ())
