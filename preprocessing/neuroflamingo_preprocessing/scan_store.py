"""`ScanStore`: prepared scans on disk, addressed by what they were made of; a killed job leaves whole items only.

    STORE/store.json               format, version, name and digest of the encoder's card
    STORE/items/ab/abcdef.../      one prepared file
        tensor/                    zarr v3 array [window, axes of the card]; a shard for each window
        about.json                 where it came from, geometry log, warnings
        commit.json                size and SHA-256 of each file above; written last
    STORE/log.jsonl, summary.json  what `prepare` did

An item is made under a temporary name, synced to the disk and renamed. Readers see committed items only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroflamingo_preprocessing.atomic import write_text_atomic
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, OutputError, ScanError
from neuroflamingo_preprocessing.shards import read_layout, read_part

FORMAT, SCHEMA = "neuroflamingo-scan-store", 1
CHUNK = 64
MAX_META_BYTES = 2**24
DRAFT = ".draft-"
TEMPORARY = ".neuroflamingo-"
"""How names of files begin that `atomic` is writing."""
SPACE_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class StoredScan:
    """One item of a store.

    Attributes:
        key: its address, 64 hexadecimal digits.
        about: name and hash of the input, geometry log, warnings, windows.
        folder: where it lies.
    """

    key: str
    about: Mapping[str, Any]
    folder: Path

    def open(self) -> Any:
        """The tensor `[window, ...]` as a zarr array: slices of it read the chunks that they need."""
        import zarr

        return zarr.open_array(self.folder / "tensor", mode="r")

    def sizes(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Shape and names of the axes of the tensor, window first."""
        layout = read_layout(self.folder / "tensor")
        if layout is not None:
            return layout.shape, layout.axes
        array = self.open()
        return array.shape, tuple(map(str, array.metadata.dimension_names or ()))

    def read(self, part: Any = ...) -> NDArray[np.float32]:
        """The tensor `[window, ...]`, or a part of it; every chunk carries a checksum.

        Raises:
            ScanError: damaged (exit 65).
        """
        try:
            plain = read_part(self.folder / "tensor", part)
            return np.asarray(self.open()[part]) if plain is None else plain
        except (ValueError, RuntimeError, OSError) as error:
            raise ScanError(
                f"the item {self.key[:12]} of the store is damaged",
                expected="the bytes that were written",
                seen=str(error)[:200],
                hint="run `neuroflamingo prepare` with --verify: it names, drops and makes damaged items again",
            ) from error


def item_key(input_sha256: str, spec_digest: str, how: Mapping[str, Any]) -> str:
    """The address of an item: what it is made of, not where that lies.

    Args:
        input_sha256: of the input file.
        spec_digest: of `card.scan`.
        how: everything else that changes the tensor (repetition time, hash of an atlas, ...).
    """
    parts = {"input": input_sha256, "spec": spec_digest, "how": dict(how), "schema": SCHEMA}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ScanStore:
    """A folder of prepared scans; see the module. Any number of processes may read and write one store.

    Args:
        path: the folder.

    Raises:
        NotFoundError: no such folder.
        ModelError: no store, or one of another version (exit 65).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise NotFoundError(f"there is no store {self.path}", expected="a folder that `neuroflamingo prepare` made")
        self.head = _read_json(self.path / "store.json", self.path)
        if self.head.get("format") != FORMAT or self.head.get("schema") != SCHEMA:
            raise ModelError(
                f"{self.path} is no scan store of this version",
                expected=f"{FORMAT}, schema {SCHEMA}",
                seen=f"{self.head.get('format')}, schema {self.head.get('schema')}",
                exit_code=65,
            )

    @classmethod
    def create(cls, path: str | Path, *, encoder: str, card_digest: str, spec_digest: str) -> ScanStore:
        """A new store, or the one that is there if it is for the same input of an encoder.

        Raises:
            OutputError: the folder holds something else, or cannot be made (exit 73).
            ModelError: it is a store for another preparation (exit 65).
        """
        path = Path(path)
        head = {"format": FORMAT, "schema": SCHEMA, "encoder": encoder, "card": card_digest, "spec": spec_digest}
        others = sorted(p.name for p in path.iterdir() if not p.name.startswith(TEMPORARY)) if path.is_dir() else []
        if others and not (path / "store.json").exists():  # asked last: another process may be making the store
            raise OutputError(
                f"{path} holds something else",
                expected="a new folder, or a scan store",
                seen=", ".join(others[:3]),
                hint="choose another folder with -o",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path} cannot be created", seen=error.strerror or str(error)) from error
        if not (path / "store.json").exists():
            with contextlib.suppress(OutputError):  # another process was quicker
                write_text_atomic(path / "store.json", json.dumps(head, indent=1) + "\n")
        store = cls(path)
        if store.head.get("spec") != spec_digest:
            raise ModelError(
                f"{path} is a store for another preparation",
                expected=f"{encoder}, spec {spec_digest[:12]}",
                seen=f"{store.head.get('encoder')}, spec {str(store.head.get('spec'))[:12]}",
                hint="choose another folder with -o",
                exit_code=65,
            )
        return store

    def _folder(self, key: str) -> Path:
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            raise NotFoundError(f"{key!r} is no key of a store", expected="64 hexadecimal digits")
        return self.path / "items" / key[:2] / key

    def __contains__(self, key: str) -> bool:
        return (self._folder(key) / "commit.json").is_file()

    def __iter__(self) -> Iterator[str]:
        """Keys of the committed items, sorted."""
        for marker in sorted((self.path / "items").glob("??/" + "?" * 64 + "/commit.json")):
            yield marker.parent.name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, key: str) -> StoredScan:
        """An item, by its key.

        Raises:
            NotFoundError: no such item was committed.
            ModelError: what describes it is damaged (exit 65).
        """
        folder = self._folder(key)
        if key not in self:
            raise NotFoundError(f"the store has no item {key[:12]}", expected=f"one of {len(self)}")
        return StoredScan(key, _read_json(folder / "about.json", self.path), folder)

    def peek(self, key: str) -> StoredScan:
        """An item without what is said about it, for loops that want its numbers only; not even looked for."""
        return StoredScan(key, {}, self._folder(key))

    def fault(self, key: str, *, thorough: bool = False) -> str | None:
        """What is wrong with a committed item: files that are missing or of another size, or (thorough) content."""
        folder = self._folder(key)
        try:
            promised = _read_json(folder / "commit.json", self.path)["files"]
            for name, said in promised.items():
                file = folder / name
                if file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
                    return f"{name} points elsewhere"
                if not file.is_file() or file.stat().st_size != said["bytes"]:
                    return f"{name} is missing or of another size"
                if thorough and _sha256(file) != said["sha256"]:
                    return f"{name} has other bytes than were written"
        except (ModelError, KeyError, TypeError, AttributeError, OSError, ValueError) as error:
            return f"commit.json cannot be read ({type(error).__name__})"
        return None

    def drop(self, key: str) -> None:
        """Take an item out; it is no longer seen before its first file goes."""
        folder = self._folder(key)
        aside = folder.with_name(f"{DRAFT}dropped-{os.getpid()}-{key[:12]}")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside)
            shutil.rmtree(aside)

    def put(
        self, key: str, windows: Sequence[NDArray[np.float32]], axes: Sequence[str], about: Mapping[str, Any]
    ) -> bool:
        """Write an item; False if it was there already, or another process was quicker.

        Args:
            key: see `item_key`.
            windows: tensors of one shape, the axes of the card.
            axes: their names.
            about: plain data.

        Raises:
            OutputError: it cannot be written (exit 74); nothing of it is left.
        """
        folder = self._folder(key)
        if key in self:
            return False
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            prefix = f"{DRAFT}{socket.gethostname()}-{os.getpid()}-"
            draft = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        except OSError as error:
            raise _not_written(self.path, error) from error
        try:
            _write_tensor(draft / "tensor", windows, axes)
            (draft / "about.json").write_text(json.dumps(dict(about), ensure_ascii=False) + "\n", encoding="utf-8")
            files = sorted(p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file())
            said = {n: {"bytes": (draft / n).stat().st_size, "sha256": _sha256(draft / n)} for n in files}
            (draft / "commit.json").write_text(json.dumps({"schema": SCHEMA, "files": said}) + "\n", encoding="utf-8")
            _sync(draft)
            draft.chmod(0o755)
            try:
                draft.rename(folder)
            except OSError:
                if key in self:
                    return False
                raise
            _sync_folder(folder.parent)
            return True
        except OSError as error:
            raise _not_written(self.path, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def sweep(self) -> int:
        """Remove drafts that processes of this machine left when they died; gives how many."""
        swept = 0
        for draft in (self.path / "items").glob(f"??/{DRAFT}{socket.gethostname()}-*"):
            pid = draft.name.removeprefix(f"{DRAFT}{socket.gethostname()}-").partition("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(draft, ignore_errors=True)
                swept += 1
        return swept


def _write_tensor(path: Path, windows: Sequence[NDArray[np.float32]], axes: Sequence[str]) -> None:
    """One shard a window; 64 voxels along each axis of space and all of the others in a chunk; zstd 1, crc32c."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    shape = windows[0].shape
    chunk = [min(CHUNK, n) if name in SPACE_AXES else n for name, n in zip(axes, shape, strict=True)]
    shard = [c * -(-n // c) for c, n in zip(chunk, shape, strict=True)]
    array = zarr.create_array(
        path,
        shape=(len(windows), *shape),
        dtype="float32",
        chunks=(1, *chunk),
        shards=(1, *shard),
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
        dimension_names=("window", *axes),
        zarr_format=3,
        config={"write_empty_chunks": True},  # so that a shard that is missing is a loss, not a volume of zeros
    )
    for index, window in enumerate(windows):
        array[index] = window


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Not every file system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"writing into the store {path.name} failed",
        seen=error.strerror or str(error),
        hint="free some space; then run the same command again: it goes on where it stopped",
        exit_code=74,
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(file: Path, store: Path) -> dict[str, Any]:
    try:
        if file.is_symlink() or file.stat().st_size > MAX_META_BYTES:
            raise ValueError("too large, or a link")
        plain = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError("no mapping")
        return plain
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file.name} in the store {store.name} cannot be read",
            expected="JSON that this program wrote",
            seen=str(error)[:200],
            exit_code=65,
        ) from error


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
