"""`ItemStore`: base class of scan stores and token stores, whose items are either complete or absent after any crash.

    STORE/store.json               format, version, and what all items have in common
    STORE/items/ab/abcdef.../      the item of one input file
        NAME/                      zarr v3 arrays
        about.json                 provenance, geometry log, warnings
        commit.json                size and SHA-256 of each file above; written last
    STORE/index.parquet            one row per item; built from the items, which take precedence
    STORE/log.jsonl, summary.json  what the runs did

The key of an item is the hash of what it was made of. An item is written under a temporary name, synced to the disk and
renamed; readers see only items with a commit marker. So there are no locks: two processes that make the same item write
equal drafts under different names, and the rename of the second one fails on the folder that is already there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from neuroflamingo_preprocessing.drafts import TEMPORARY_PREFIX, draft_folder, sweep_drafts
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, ScanError, not_created
from neuroflamingo_preprocessing.files import (
    fsync_folder,
    fsync_tree,
    read_json,
    sha256_of,
    write_text_atomic,
)
from neuroflamingo_preprocessing.formats.zarr.claims import check_claims
from neuroflamingo_preprocessing.formats.zarr.shards import Layout, read_layout, read_part
from neuroflamingo_preprocessing.software import require_bids_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 1
"""Version of the files and of the numbers in them, raised when either changes; items of older versions are not used."""
MAX_WINDOWS = 2**16


@dataclass(frozen=True)
class StoredItem:
    """One item of a store.

    Attributes:
        key: 64 hexadecimal digits, see `item_key`.
        metadata: name and hash of the input, geometry log, warnings, windows.
        folder: folder of the item.
    """

    key: str
    metadata: Mapping[str, Any]
    folder: Path

    MAIN: ClassVar[str] = "tensor"
    KINDS: ClassVar[Mapping[str, tuple[str, ...]]] = {"tensor": ("float32",)}
    MADE_BY: ClassVar[str] = "neuroflamingo prepare"

    def open(self, name: str | None = None) -> Any:
        """Open an array of the item, by default the main one, as a zarr array; slices read only the chunks they need.

        Raises:
            ScanError: not as this program writes arrays, or claims more than its bytes can hold (exit 65).
        """
        import zarr

        name = name or self.MAIN
        try:
            shape = check_claims(self.folder / name, name, self.KINDS[name])
            if shape[0] > MAX_WINDOWS:
                raise ValueError(f"{name} claims {shape[0]:,} windows")
            return zarr.open_array(self.folder / name, mode="r", zarr_format=3)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(error) from error

    def sizes(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Shape of the main array and names of its axes, window first.

        Raises:
            ScanError: see `open`.
        """
        try:
            check_claims(self.folder / self.MAIN, self.MAIN, self.KINDS[self.MAIN])
            layout = self._layout(None)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(error) from error
        if layout is not None:
            return layout.shape, layout.axes
        array = self.open()
        return array.shape, tuple(map(str, array.metadata.dimension_names or ()))

    def _layout(self, name: str | None) -> Layout | None:
        """Layout for the fast reader; None where the array is left to zarr."""
        layout = read_layout(self.folder / (name or self.MAIN))
        if layout is None or str(layout.dtype) not in self.KINDS[name or self.MAIN] or layout.shape[0] > MAX_WINDOWS:
            return None
        return layout

    def read(self, part: Any = ..., name: str | None = None) -> NDArray[Any]:
        """Read an array `[window, ...]`, or a part of it; the checksum of every chunk is verified.

        Args:
            part: index as numpy takes it.
            name: name of the array; None: the main one.

        Raises:
            ScanError: damaged (exit 65).
        """
        try:
            layout = self._layout(name)
            plain = None if layout is None else read_part(self.folder / (name or self.MAIN), layout, part)
            return np.asarray(self.open(name)[part]) if plain is None else plain
        except (ValueError, RuntimeError, OSError) as error:
            raise self._damaged(error) from error

    def element(self, part: Any) -> dict[str, NDArray[Any]]:
        """Element of a dataset: the arrays of one window, or a part of it."""
        return {self.MAIN: self.read(part)}

    def _damaged(self, error: Exception) -> ScanError:
        return ScanError(
            f"the item {self.key[:12]} of the store is damaged",
            expected="the bytes that were written",
            seen=f"{type(error).__name__}: {error}"[:200],
            hint=f"run `{self.MADE_BY}` with --verify: it reports damaged items and makes them again",
        )


def item_key(input_sha256: str, made_for: str, options: Mapping[str, Any]) -> str:
    """Key of an item: a hash of what it is made of, independent of paths.

    Args:
        input_sha256: hash of the input file.
        made_for: digest of `card.scan` for prepared scans, of the card for tokens.
        options: everything else that changes the result (repetition time, hash of an atlas, hash of weights, ...).
    """
    parts = {"input": input_sha256, "spec": made_for, "how": dict(options), "schema": SCHEMA}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


ItemT = TypeVar("ItemT", bound=StoredItem)


class ItemStore(Generic[ItemT]):
    """Folder of items, which any number of processes may read and write at the same time; see the module.

    Args:
        path: folder of the store.

    Raises:
        NotFoundError: no such folder.
        ModelError: not a store, or one of another version (exit 65).
    """

    FORMAT: ClassVar[str]
    NOUN: ClassVar[str]
    SAME: ClassVar[tuple[str, ...]]
    """Entries of `store.json` that all items share: a run with other values is refused."""
    ITEM: ClassVar[type[StoredItem]] = StoredItem

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            made_by = f"a folder that `{self.ITEM.MADE_BY}` made"
            raise NotFoundError(f"there is no store {self.path}", expected=made_by, hint="check the path")
        self.head = read_stored(self.path / "store.json", self.path)
        if self.head.get("format") != self.FORMAT or self.head.get("schema") != SCHEMA:
            raise ModelError(
                f"{self.path} is not a {self.NOUN} of this version",
                expected=f"{self.FORMAT}, schema {SCHEMA}",
                seen=f"{self.head.get('format')}, schema {self.head.get('schema')}",
                exit_code=65,
            )

    @classmethod
    def is_at(cls, path: str | Path) -> bool:
        """True for a store of this kind, of any version."""
        file = Path(path) / "store.json"
        return file.is_file() and read_stored(file, file.parent).get("format") == cls.FORMAT

    @classmethod
    def _create(cls, path: str | Path, metadata: Mapping[str, Any]) -> Self:
        """Create a store, or open an existing one that agrees in `SAME`.

        Raises:
            OutputError: the folder holds something else, or cannot be created (exit 73) or written (74).
            ModelError: a store for something else (exit 65).
        """
        require_bids_extra("a store")  # its index, which is written when the work is done
        path = Path(path)
        head = {"format": cls.FORMAT, "schema": SCHEMA, **metadata}
        try:
            path.mkdir(parents=True, exist_ok=True)
            others = sorted(p.name for p in path.iterdir() if not p.name.startswith(TEMPORARY_PREFIX))
        except OSError as error:
            raise not_created(path, error) from error
        if others and not (path / "store.json").exists():  # checked last: another process may be creating it
            raise OutputError(
                f"{path} holds something else",
                expected=f"a new folder, or a {cls.NOUN}",
                seen=", ".join(others[:3]),
                hint="choose another folder with -o",
            )
        if not (path / "store.json").exists():
            try:
                write_text_atomic(path / "store.json", json.dumps(head, indent=1) + "\n")
            except OutputError:
                if not (path / "store.json").exists():  # else another process created it in the meantime
                    raise
        store = cls(path)
        if any(store.head.get(name) != head[name] for name in cls.SAME):
            raise ModelError(
                f"{path} is a {cls.NOUN} for something else",
                expected=cls._identity(head),
                seen=cls._identity(store.head),
                hint="choose another folder with -o",
                exit_code=65,
            )
        return store

    @classmethod
    def _identity(cls, head: Mapping[str, Any]) -> str:
        return ", ".join([str(head.get("encoder")), *(f"{name} {str(head.get(name))[:12]}" for name in cls.SAME)])

    def _folder(self, key: str) -> Path:
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            raise NotFoundError(f"{key[:80]!r} is not a key of a store", expected="64 hexadecimal digits")
        return self.path / "items" / key[:2] / key

    def __contains__(self, key: str) -> bool:
        return (self._folder(key) / "commit.json").is_file()

    def __iter__(self) -> Iterator[str]:
        """Keys of the committed items, sorted."""
        for marker in sorted((self.path / "items").glob("??/" + "?" * 64 + "/commit.json")):
            yield marker.parent.name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, key: str) -> ItemT:
        """Item of a key.

        Raises:
            NotFoundError: no such item was committed.
            ModelError: its metadata are damaged (exit 65).
        """
        folder = self._folder(key)
        if key not in self:
            raise NotFoundError(f"the store has no item {key[:12]}", expected=f"one of {len(self)}")
        return self.ITEM(key, read_stored(folder / "about.json", self.path), folder)  # type: ignore[return-value]

    def peek(self, key: str) -> ItemT:
        """Item without its metadata, for loops that read arrays only; its existence is not checked."""
        return self.ITEM(key, {}, self._folder(key))  # type: ignore[return-value]

    def fault(self, key: str, *, thorough: bool = False) -> str | None:
        """Fault of a committed item in words: missing files, other sizes, or (thorough) content; None if sound."""
        folder = self._folder(key)
        try:
            promised = read_stored(folder / "commit.json", self.path)["files"]
            for name, promise in promised.items():
                file = folder / name
                if file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
                    return f"{name} points elsewhere"
                if not file.is_file() or file.stat().st_size != promise["bytes"]:
                    return f"{name} is missing or of another size"
                if thorough and sha256_of(file) != promise["sha256"]:
                    return f"{name} has other bytes than were written"
        except (ModelError, KeyError, TypeError, AttributeError, OSError, ValueError) as error:
            return f"commit.json cannot be read ({type(error).__name__})"
        return None

    def drop(self, key: str) -> None:
        """Remove an item; it is renamed first, so that no reader sees it half deleted.

        Raises:
            OutputError: it cannot be moved (exit 74).
        """
        folder = self._folder(key)
        try:
            if folder.exists():
                with draft_folder(folder) as aside, contextlib.suppress(FileNotFoundError):  # or another removed it
                    folder.rename(aside / key)
        except (OSError, OutputError) as error:
            raise self.not_written(error) from error

    def _put(self, key: str, metadata: Mapping[str, Any], write: Callable[[Path], None]) -> bool:
        """Write an item; False if it existed already, or another process wrote it in the meantime.

        A folder of this name that is no whole item, such as an interrupted copy of the store leaves, is replaced.

        Args:
            key: see `item_key`.
            metadata: plain data.
            write: writes the arrays into the folder that it is given.

        Raises:
            OutputError: it cannot be written (exit 74); nothing of it is left.
        """
        folder = self._folder(key)
        if self._is_whole(key):
            return False
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with draft_folder(folder) as draft:
                write(draft)
                _describe(draft, metadata)
                fsync_tree(draft)
                if not self._commit(draft, key):
                    return False
            fsync_folder(folder.parent)
            return True
        except (OSError, OutputError) as error:
            raise self.not_written(error) from error

    def _commit(self, draft: Path, key: str) -> bool:
        """Rename a draft to its item, with the marker in it; False if another process committed the item first."""
        for last in (False, False, True):  # as others may do the same to the same remains
            try:
                draft.rename(self._folder(key))
                return True
            except OSError as error:
                if self._is_whole(key):
                    return False
                if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                self.drop(key)
        raise AssertionError("the last attempt returns or raises")

    def _is_whole(self, key: str) -> bool:
        return key in self and self.fault(key) is None

    def sweep(self) -> int:
        """Remove drafts of dead processes of this host, and count them."""
        return sum(sweep_drafts(folder) for folder in (self.path, *(self.path / "items").glob("??")))

    def not_written(self, error: OSError | OutputError) -> OutputError:
        """Error for a write that failed, or for a draft that could not be made."""
        return OutputError(
            f"writing into the store {self.path.name} failed",
            seen=(error.seen if isinstance(error, OutputError) else error.strerror) or str(error),
            hint="free some space; then run the same command again: it resumes where it stopped",
            exit_code=74,
        )


def _describe(draft: Path, metadata: Mapping[str, Any]) -> None:
    """Write the metadata of a draft, then the commit marker, which lists all other files and therefore comes last."""
    (draft / "about.json").write_text(json.dumps(dict(metadata), ensure_ascii=False) + "\n", encoding="utf-8")
    files = sorted(p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file())
    promised = {n: {"bytes": (draft / n).stat().st_size, "sha256": sha256_of(draft / n)} for n in files}
    (draft / "commit.json").write_text(json.dumps({"schema": SCHEMA, "files": promised}) + "\n", encoding="utf-8")


def read_stored(file: Path, store: Path) -> dict[str, Any]:
    """Read a small JSON file of a store.

    Raises:
        ModelError: not a JSON mapping, too large, or a link (exit 65).
    """
    name = f"{file.name} in the store {store.name}"
    return read_json(file, expected="JSON that this program wrote", name=name, error=ModelError, links=False)
