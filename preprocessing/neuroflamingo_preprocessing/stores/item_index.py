"""The parquet index of a store: one row per item, for pandas and other tools.

The commit markers are authoritative, the index only repeats what the items say. An index that is missing, damaged, of
another version or out of step with the markers is rebuilt: rows of items that still exist are kept, new items are read.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.bids.entities import entities_of
from neuroflamingo_preprocessing.errors import ModelError, OutputError
from neuroflamingo_preprocessing.files import write_bytes_atomic
from neuroflamingo_preprocessing.formats.zarr.claims import check_claims, read_metadata
from neuroflamingo_preprocessing.software import require_bids_extra
from neuroflamingo_preprocessing.stores.items import ItemStore, StoredItem, read_stored

if TYPE_CHECKING:
    import pyarrow

INDEX, VERSION = "index.parquet", "1"
MARK = b"neuroflamingo index"
QUALITY = "quality_"
SHOWN = ("sub", "ses", "task", "run")
MAX_BYTES = 2**32


def read_index(store: ItemStore[Any]) -> pyarrow.Table:
    """Read the index of a store, rebuilt if it is out of step with the commit markers.

    | column | |
    | --- | --- |
    | key | key of the item |
    | name, input_sha256 | name (without folder) and hash of the input file |
    | sub, ses, task, run, entities | BIDS entities of the name; all of them as one text |
    | shape, dtype, windows | of the main array; windows is the length of its first axis |
    | bytes | size on disk |
    | warnings | number of warnings |
    | quality_... | each quality measure of the preparation |

    Items whose metadata are damaged are left out: the next run reports and drops them.
    """
    table, in_step = _made(store)
    if not in_step:
        with contextlib.suppress(OutputError):  # a read-only store: the table is right all the same
            _write(store.path / INDEX, table)
    return table


def write_index(store: ItemStore[Any]) -> Path:
    """Bring the index in step with the items, at the end of a run.

    Raises:
        OutputError: it cannot be written (exit 74).
    """
    table, in_step = _made(store)
    if not in_step:
        _write(store.path / INDEX, table)
    return store.path / INDEX


def _made(store: ItemStore[Any]) -> tuple[pyarrow.Table, bool]:
    """Index built from the items, and whether the file on disk is equal to it."""
    keys = list(store)
    table = _read(store.path / INDEX)
    if table is not None and table.column("key").to_pylist() == keys:
        return table, True
    wanted = set(keys)
    rows = {row["key"]: row for row in ([] if table is None else table.to_pylist()) if row["key"] in wanted}
    for key in keys:
        if key not in rows:
            with contextlib.suppress(ModelError):
                rows[key] = _row(store, store[key])
    return _table([rows[key] for key in keys if key in rows]), False


def _row(store: ItemStore[Any], item: StoredItem) -> dict[str, Any]:
    """Row of an item, from its JSON files alone: zarr would open every array."""
    metadata = item.metadata
    name = str(metadata.get("name") or "")
    entities = entities_of(Path(name))
    try:
        main = item.folder / item.MAIN
        shape = list(check_claims(main, item.MAIN, item.KINDS[item.MAIN]))
        dtype = str(read_metadata(main)["data_type"])
        files = read_stored(item.folder / "commit.json", store.path)["files"]
        size = sum(int(said["bytes"]) for said in files.values())
        source, warnings = metadata.get("input") or {}, metadata.get("warnings") or ()
        quality = {k: float(v) for k, v in (metadata.get("quality") or {}).items() if isinstance(v, int | float)}
        row = {"name": name, "input_sha256": source.get("sha256"), **{e: entities.get(e) for e in SHOWN}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the item {item.key[:12]} cannot be described", seen=str(error), exit_code=65) from error
    row |= {"key": item.key, "entities": "_".join(f"{k}-{v}" for k, v in entities.items())}
    row |= {"shape": shape, "dtype": dtype, "windows": shape[0], "bytes": size, "warnings": len(warnings)}
    return row | {QUALITY + figure: value for figure, value in quality.items()}


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    require_bids_extra("a store's index")
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    names = {"key": text, "name": text, "input_sha256": text, **dict.fromkeys(SHOWN, text), "entities": text}
    names |= {"shape": pa.list_(number), "dtype": text, "windows": number, "bytes": number, "warnings": number}
    figures = sorted({name for row in rows for name in row if name.startswith(QUALITY) and row[name] is not None})
    fields = [pa.field(name, kind) for name, kind in (names | dict.fromkeys(figures, pa.float64())).items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata={MARK: VERSION.encode()}))


def _write(path: Path, table: pyarrow.Table) -> None:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", write_page_checksum=True)
    write_bytes_atomic(path, out.getvalue(), overwrite=True)


def _read(path: Path) -> pyarrow.Table | None:
    """Index on disk; None if it is missing, damaged, a link, or of another version."""
    require_bids_extra("a store's index")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        table = pq.read_table(path, page_checksum_verification=True, use_threads=False)
        marked = (table.schema.metadata or {}).get(MARK) == VERSION.encode()
        return table if marked and table.schema.equals(_table(table.to_pylist()).schema) else None
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        return None
