"""Reading of untrusted tables: JSON lines, JSON lists, CSV, TSV and parquet. Nothing in them is executed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.software import require_bids_extra
from neuroflamingo_preprocessing.user_files import utf8_stream

Row = dict[str, Any] | str
"""Contents of a row, or the reason why it cannot be read."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MAX_TABLE_BYTES, MAX_LINE, MAX_SKIPPED = 2**30, 2**20, 2**26
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def json_lines(file: Path, *, strict: bool = False) -> Iterator[tuple[int, Row]]:
    """Yield the numbered lines of a UTF-8 file with one JSON object per line; empty lines are skipped.

    Args:
        file: at most 1 GiB, each line at most 1 MiB.
        strict: refuse duplicate keys, NaN and infinities; otherwise the last key is used, and the latter become None.

    Raises:
        NotFoundError: no such file.
    """
    _refuse_missing(file)
    if file.stat().st_size > MAX_TABLE_BYTES:
        yield 0, f"larger than {MAX_TABLE_BYTES:,} bytes; split it into several files"
        return
    with utf8_stream(file) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if line is None:
                yield number, f"longer than {MAX_LINE:,} bytes"
            elif line.strip():
                row = _parsed(line.rstrip(), strict)
                yield number, row if isinstance(row, dict | str) else "no JSON object"


def records(
    file: str | Path, columns: Collection[str] | None = None, *, ragged: bool = False
) -> Iterator[tuple[int, Row]]:
    """Yield the numbered rows of a table of any of `ENDINGS`; a JSON file is a list of objects or one object per line.

    Args:
        file: the table.
        columns: columns needed; None: all. Other columns of a parquet table are not read.
        ragged: accept lines of a text table with more or fewer cells than columns.

    Raises:
        NotFoundError: no such file (exit 66).
        ScanError: the file cannot be read at all (exit 65).
    """
    file = Path(file)
    _refuse_missing(file)
    ending = file.suffix.lower()
    if ending not in ENDINGS:
        raise ScanError(f"{file.name} is not a supported table", expected=f"one of {', '.join(ENDINGS)}", seen=ending)
    if ending != ".parquet" and file.stat().st_size > MAX_TABLE_BYTES:
        raise ScanError(
            f"{file.name} is too large",
            expected=f"at most {MAX_TABLE_BYTES:,} bytes",
            seen=f"{file.stat().st_size:,}",
            hint="split it into several files",
        )
    if ending == ".jsonl":
        return json_lines(file)
    if ending == ".json":
        return _json_list(file)
    return _parquet(file, columns) if ending == ".parquet" else _table(file, DELIMITERS[ending], ragged)


def _refuse_missing(file: Path) -> None:
    if not file.is_file():
        raise NotFoundError(f"there is no file {file.name}", expected="a file with samples", hint="check the path")


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines; None for one that is too long, which is never held in memory in full.

    What follows a line of more than `MAX_SKIPPED` bytes is not read: no table has such lines, and skipping takes time.
    """
    while line := stream.readline(MAX_LINE + 1):
        whole, skipped = len(line) <= MAX_LINE, 0
        while len(line) > MAX_LINE and not line.endswith(b"\n") and skipped <= MAX_SKIPPED:
            line = stream.readline(MAX_LINE + 1)
            skipped += len(line)
        yield line if whole else None
        if skipped > MAX_SKIPPED:
            return


def _parsed(text: bytes, strict: bool) -> Any:
    """Parse JSON, or return the reason why it cannot be read; a JSON string is not accepted."""
    hooks: dict[str, Any] = {"object_pairs_hook": _once, "parse_constant": _refused} if strict else {}
    try:
        value = json.loads(text.decode("utf-8"), **(hooks or {"parse_constant": lambda _: None}))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start + 1}); save the file as UTF-8"
    except RecursionError:
        return "JSON nested too deeply"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, column {error.colno})"
    except ValueError as error:
        return f"not JSON ({error})"
    return "no JSON object" if isinstance(value, str) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return row


def _refused(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _json_list(file: Path) -> Iterator[tuple[int, Row]]:
    with utf8_stream(file) as stream:
        text = stream.read()
    value = _parsed(text, strict=False)
    if isinstance(value, list):
        yield from ((n, row if isinstance(row, dict) else "no JSON object") for n, row in enumerate(value, start=1))
        return
    first = _parsed(text.lstrip().partition(b"\n")[0], strict=False)
    if isinstance(value, str) and isinstance(first, dict):
        yield from json_lines(file)
        return
    seen = value if isinstance(value, str) else f"a single {type(value).__name__}"
    raise ScanError(f"{file.name} cannot be read", expected="a JSON list of objects, or one object per line", seen=seen)


def _text_lines(stream: TextIO) -> Iterator[str]:
    """Yield lines of limited length, so that a single one cannot fill the memory."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise csv.Error(f"a line of more than {MAX_LINE:,} characters")
        yield line


def _table(file: Path, delimiter: str, ragged: bool) -> Iterator[tuple[int, Row]]:
    """Yield rows, numbered by their last line, since quoted text may contain line breaks; `n/a` (BIDS) is missing."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        with io.TextIOWrapper(utf8_stream(file), encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(_text_lines(stream), delimiter=delimiter, strict=True)
            for row in reader:
                whole = ragged or (None not in row and None not in row.values())
                kept = {name: value for name, value in row.items() if value not in ("", "n/a", None)}
                yield reader.line_num, kept if whole else "more or fewer cells than columns"
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "tab-separated" if delimiter == "\t" else "comma-separated"
        raise ScanError(f"{file.name} cannot be read", expected=f"{kind} UTF-8 text", seen=str(error)[:200]) from error
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path, columns: Collection[str] | None) -> Iterator[tuple[int, Row]]:
    require_bids_extra("a parquet table")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            number = 0
            names = [name for name in table.schema_arrow.names if columns is None or name in columns]
            rows = 64 if columns is None else 10_000  # few: there may be images in them
            for batch in table.iter_batches(rows, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ScanError(f"{file.name} cannot be read", expected="a parquet table", seen=str(error)[:200]) from error
