"""`bids_index`: the files of a BIDS dataset as an Arrow table, cached as parquet until a folder changes.

Folders are walked here; bids2table parses the names with the BIDS schema. Its own `index_dataset` (2.3.1) gives an
empty table for a dataset whose folder has a dot in its name (`ds000117-1.0.5`) or brackets anywhere in its path,
follows a link to a parent folder forty times, and takes longer (tests/benchmarks/bids_index.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.bids.entities import folded_label, parse_name
from neuroflamingo_preprocessing.cache_home import home_folder
from neuroflamingo_preprocessing.errors import OutputError, ScanError
from neuroflamingo_preprocessing.files import write_bytes_atomic
from neuroflamingo_preprocessing.software import require_bids_extra
from neuroflamingo_preprocessing.user_files import decode_text

if TYPE_CHECKING:
    import pyarrow

VERSION = 2
IGNORED = ".bidsignore"
DEEPEST = 12
"""Maximum depth of folders; BIDS needs three. Without a limit, links that fan out would never end."""
SETTLED_NS = 2 * 10**9
"""An index is not cached if a folder changed within this time before it was read: it may have changed again within the
same tick of the file system's clock (FAT: 2 s), which its time stamp would not show."""
Stamps = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class BidsIndex:
    """Data files of a dataset.

    Attributes:
        table: a row for each file: a column for each entity that occurs, `datatype`, `suffix`, `ext`, and `path`
            relative to the root of the dataset.
        misnamed: number of images left out because they have no BIDS name, or lie in another subject's folder.
        recased: number of images whose names BIDS writes with other capital letters; they are in the table.
        empty: folders of subjects without any file, such as subdatasets of datalad that are not installed.
        ignored: number of files that `.bidsignore` leaves out.
        loops: number of folders skipped because a link leads back to them.
    """

    table: pyarrow.Table
    misnamed: int = 0
    ignored: int = 0
    loops: int = 0
    recased: int = 0
    empty: tuple[str, ...] = ()

    def files(self) -> list[dict[str, Any]]:
        """Rows as dictionaries, without the entities that a file lacks."""
        return [{key: value for key, value in row.items() if value is not None} for row in self.table.to_pylist()]


def bids_index(root: str | Path) -> BidsIndex:
    """Index a dataset, or read the cached index if no folder of the dataset has changed since.

    Only names are read, so git-annex scans whose content is missing are included. JSON sidecars are not, nor is
    anything outside the `sub-` folders (`derivatives`, `sourcedata`, `code`). The index is kept in the cache folder,
    never in the dataset; if that cannot be written, the dataset is indexed each time.

    Raises:
        ScanError: a folder that cannot be read (exit 74).
    """
    root = Path(root).absolute()
    kept = home_folder() / "bids" / f"{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]}.parquet"
    return _kept(kept, root) or _fresh(root, kept)


def _fresh(root: Path, kept: Path) -> BidsIndex:
    began = time.time_ns()
    walk = _Walk(root)
    files, ignored = _without_ignored(root, sorted(walk.files))
    good, misnamed = [], []
    for file in files:
        (good if _belongs(file) else misnamed).append(file)
    as_bids = {file: _as_bids(file) for file in good}
    with_files = {file.partition("/")[0] for file in walk.files}
    index = BidsIndex(
        table=_table(as_bids),
        misnamed=len(_images(misnamed)),
        ignored=ignored,
        loops=walk.loops,
        recased=len(_images(file for file, name in as_bids.items() if name != file)),
        empty=tuple(sorted(name for name in walk.stamps if _is_subject(name) and name not in with_files)),
    )
    stamps = walk.stamps | {IGNORED: _stamp(root / IGNORED)}
    if max(max(stamp) for stamp in stamps.values()) < began - SETTLED_NS:
        _keep(index, stamps, kept)
    return index


def _images(files: Iterable[str]) -> list[str]:
    return [file for file in files if file.lower().endswith((".nii", ".nii.gz"))]


def _is_subject(folder: str) -> bool:
    return re.fullmatch(r"sub-[A-Za-z0-9]+", folder, re.IGNORECASE) is not None


class _Walk:
    """All files below the `sub-` folders of a dataset, and the time stamps of all folders."""

    def __init__(self, root: Path) -> None:
        self.files: list[str] = []
        self.stamps: Stamps = {}
        self.loops = 0
        todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
        while todo:
            folder, above = todo.pop()
            try:
                status = os.stat(f"{root}/{folder}")  # before it is listed: a change in between then shows
                here = (status.st_dev, status.st_ino)
                if here in above or len(above) > DEEPEST:
                    self.loops += 1
                    continue
                self.stamps[folder] = (status.st_mtime_ns, status.st_ctime_ns)
                todo += [(inside, (*above, here)) for inside in self._look(root, folder)]
            except OSError as error:
                raise ScanError(
                    f"a folder of the dataset {root.name} cannot be read",
                    seen=error.strerror or str(error),
                    hint="check its permissions",
                    exit_code=74,
                ) from error

    def _look(self, root: Path, folder: str) -> list[str]:
        """List a folder: gives its subfolders, and adds its files to `files`."""
        folders = []
        with os.scandir(f"{root}/{folder}") as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or (not folder and not name.lower().startswith("sub-")):
                    continue
                inside = f"{folder}/{name}" if folder else name
                if not entry.is_dir():
                    self.files.append(inside)
                elif name.lower().startswith("sub-") and "." in name:
                    self.files.append(inside)  # a folder that counts as one file: .ome.zarr, .ds
                else:
                    folders.append(inside)
        return folders


def _without_ignored(root: Path, files: list[str]) -> tuple[list[str], int]:
    """Files that `.bidsignore` (same syntax as `.gitignore`) does not name, and the number of those it does."""
    place = root / IGNORED
    if not place.is_file():
        return files, 0
    require_bids_extra("a BIDS dataset")
    from pathspec import GitIgnoreSpec

    try:
        ignored = GitIgnoreSpec.from_lines(decode_text(place.read_bytes()).splitlines())
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a pattern that is none
        raise ScanError(
            f"{IGNORED} of {root.name} cannot be read", expected="patterns as in .gitignore", seen=str(error)[:200]
        ) from error
    left = [file for file in files if not ignored.match_file(file)]
    return left, len(files) - len(left)


def _belongs(file: str) -> bool:
    """True if a file has a BIDS name with the subject of its folder."""
    subject, _, name = file.partition("/")[0], *file.rpartition("/")[1:]
    parsed = parse_name(name)
    if parsed is None or "." not in name or "sub" not in parsed.entities or not _is_text(file):
        return False
    return folded_label("sub", subject) == folded_label("sub", parsed.entities["sub"])


def _as_bids(file: str) -> str:
    """Path of a file with the names of entities and the suffix in BIDS's own letters."""
    folder, _, name = file.rpartition("/")
    parsed = parse_name(name)
    if parsed is None:
        return file
    pairs = "".join(f"{entity}-{label}_" for entity, label in parsed.entities.items())
    subject, _, below = folder.partition("/")
    subject = "sub-" + subject[4:]
    return "/".join(part for part in (subject, below, pairs + parsed.suffix + parsed.extension) if part)


def _is_text(file: str) -> bool:
    try:
        file.encode()
    except UnicodeEncodeError:  # bytes of a folder's name that are no text
        return False
    return True


def _table(files: Mapping[str, str]) -> pyarrow.Table:
    """Rows of files, by their paths as BIDS would write them."""
    require_bids_extra("a BIDS dataset")
    import pyarrow
    from bids2table import get_arrow_schema, parse_bids_entities, validate_bids_entities

    rows: list[dict[str, Any]] = []
    with _quiet():
        for file, name in files.items():
            if file.endswith(".json"):
                continue
            known, other = validate_bids_entities(parse_bids_entities(name))
            rows.append(known | ({"extra_entities": [*other.items()]} if other else {}) | {"path": file})
    schema = get_arrow_schema()
    always = {"path", "suffix", "ext"}
    seen = always.union(*rows)
    present = [field for field in schema if field.name in seen]
    columns = [pyarrow.array([row.get(field.name) for row in rows], field.type) for field in present]
    return pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(present, metadata=schema.metadata))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence bids2table, which logs every label that BIDS does not know; they are kept as `extra_entities`."""
    logger = logging.getLogger("bids2table")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _stamp(path: str | Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ctime_ns)


def _made_with() -> str:
    return f"{VERSION}, bids2table {version('bids2table')}"


def _keep(index: BidsIndex, stamps: Stamps, place: Path) -> None:
    from pyarrow import parquet

    about = {
        "made_with": _made_with(),
        "stamps": stamps,
        "odd": index.misnamed,
        "ignored": index.ignored,
        "loops": index.loops,
        "recased": index.recased,
        "empty": index.empty,
    }
    metadata = (index.table.schema.metadata or {}) | {b"neuroflamingo": json.dumps(about).encode()}
    stream = BytesIO()
    parquet.write_table(index.table.replace_schema_metadata(metadata), stream, compression="zstd")
    with suppress(OSError, OutputError):  # a cache that cannot be kept costs time, not the work
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(place, stream.getvalue(), overwrite=True)


def _kept(place: Path, root: Path) -> BidsIndex | None:
    """Cached index, if it still holds."""
    if not place.is_file():
        return None
    require_bids_extra("a BIDS dataset")
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(place)
        about = json.loads(table.schema.metadata[b"neuroflamingo"])
        if about["made_with"] != _made_with() or any(
            list(_stamp(f"{root}/{folder}")) != stamp for folder, stamp in about["stamps"].items()
        ):
            return None
        counts = (about[name] for name in ("odd", "ignored", "loops", "recased"))
        return BidsIndex(table, *counts, empty=tuple(about["empty"]))
    except (OSError, ArrowException, KeyError, TypeError, ValueError):
        return None  # damaged, or of another version: the dataset is read again
