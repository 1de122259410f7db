"""Files: atomic writing (a killed process leaves no partial file), reading of JSON within limits, hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from neuroflamingo_preprocessing.drafts import draft_file, sweep_once
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, OutputError, ScanError, not_created
from neuroflamingo_preprocessing.user_files import decode_text

MAX_JSON_BYTES = 2**24
"""Largest JSON file that is read; sidecars, cards and states are far smaller."""
MAX_DEPTH = 100
"""Most lists and objects within each other in a JSON file; a model's config has about five."""


def write_bytes_atomic(path: str | Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Write `data` to `path` through a temporary file in the same folder: write, fsync, rename, fsync the folder.

    Without `overwrite`, a hard link takes the place of the rename: it fails if the file has appeared in the meantime,
    so that two processes cannot silently replace each other's output.

    Raises:
        OutputError: exit 73 if the file exists or cannot be created, exit 74 if writing fails (disk full, I/O error).
    """
    target = Path(path)
    _refuse_unfit(target, overwrite)
    with draft_file(target) as draft:
        try:
            with open(draft, "wb") as stream:
                stream.write(data)
            _settle(draft, target, overwrite)
        except OSError as error:
            raise not_written(target, error, f"a complete file of {len(data):,} bytes") from error
    return target


def move_atomic(draft: str | Path, path: str | Path, *, overwrite: bool = False) -> Path:
    """Move a finished draft in the same folder to its final name, as `write_bytes_atomic` does.

    Raises:
        OutputError: see `write_bytes_atomic`.
    """
    target = Path(path)
    _refuse_unfit(target, overwrite)
    try:
        _settle(Path(draft), target, overwrite)
    except OSError as error:
        raise not_written(target, error) from error
    return target


def write_text_atomic(path: str | Path, text: str, *, overwrite: bool = False) -> Path:
    """Write UTF-8 text as `write_bytes_atomic` does; lone surrogates (from odd file names) become question marks."""
    return write_bytes_atomic(path, text.encode("utf-8", errors="replace"), overwrite=overwrite)


def check_writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """Check BEFORE the long work starts that an output can be written, by creating and removing a trial file.

    Permission bits alone do not tell (read-only mounts, access lists, the superuser). What killed runs left in the
    folder is removed.

    Raises:
        OutputError: it cannot be created (exit 73).
    """
    target = Path(path)
    _refuse_unfit(target, overwrite)
    sweep_once(target.parent.absolute())
    with draft_file(target):
        return target


def _refuse_unfit(target: Path, overwrite: bool) -> None:
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise not_created(target, error) from error
    except ValueError as error:  # a NUL byte in the name
        raise OutputError(f"{target!r} is not a usable file name", seen=str(error)) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file (a device, pipe or socket)"
        raise OutputError(f"{target} cannot be written", expected="a new or regular file", seen=kind)
    if not overwrite:
        raise OutputError(
            f"{target} exists", expected="no file of this name", seen="a file", hint="pass --overwrite, or another -o"
        )


def not_written(target: Path, error: OSError, expected: str | None = None) -> OutputError:
    """The error for a write that failed (exit 74)."""
    return OutputError(
        f"writing {target.name} failed",
        expected=expected,
        seen=error.strerror or str(error),
        hint="free some space or choose another folder with -o",
        exit_code=74,
    )


def _settle(temporary: Path, target: Path, overwrite: bool) -> None:
    """Sync the bytes, give the file its name, sync the folder: in any other order a crash can leave an empty file."""
    with open(temporary, "r+b") as stream:
        os.fsync(stream.fileno())
    os.chmod(temporary, _mode_for(target))
    if overwrite:
        os.replace(temporary, target)
    else:
        _link_new(temporary, target)
    fsync_folder(target.parent)


def _mode_for(target: Path) -> int:
    """Permission bits of the file to be replaced, else those of the umask (mkstemp alone gives 0600)."""
    try:
        return stat.S_IMODE(os.stat(target).st_mode)
    except OSError:
        return 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _link_new(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise OutputError(
            f"{target} appeared while this run was working", expected="no file of this name", hint="pass --overwrite"
        ) from error
    except OSError:  # file systems without hard links (FAT, some network mounts)
        os.rename(temporary, target)


def fsync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every file system or system allows opening a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Sync all files and folders of a draft to the disk, and set the permissions that the umask gives."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())
        else:
            fsync_folder(path)
    fsync_folder(folder)
    folder.chmod(0o777 & ~_umask())


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def printable(text: str) -> str:
    """Text that UTF-8 can encode: undecodable bytes of a file name become question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def load_json(file: Path, *, most: int = MAX_JSON_BYTES, links: bool = True, kind: type = dict) -> Any:
    """Read a small JSON file.

    Args:
        file: text, see `decode_text`.
        most: largest size in bytes.
        links: follow symbolic links.
        kind: expected type of the content.

    Raises:
        ValueError: too large, a link, a pipe or device, no text, not JSON, nested too deeply, or of another type.
        OSError: missing, or it cannot be read.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode) and not str(file).startswith(("/dev/fd/", "/proc/self/fd/", "/dev/stdin")):
        raise ValueError("not a regular file" if not file.is_dir() else "a folder")
    if about.st_size > most or (file.is_symlink() and not links):
        raise ValueError(f"{about.st_size:,} bytes, at most {most:,} are read" if about.st_size > most else "a link")
    try:
        with file.open("rb") as stream:
            data = stream.read((about.st_size if stat.S_ISREG(about.st_mode) else most) + 1)  # a pipe has no size
        if len(data) > most:
            raise ValueError(f"more than {most:,} bytes")
        plain = json.loads(decode_text(data))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(plain, kind):
        raise ValueError(f"JSON of another kind: {type(plain).__name__}")
    if _depth(plain) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    return plain


def _members(value: Any) -> Iterable[Any]:
    return cast("dict[str, Any]", value).values() if isinstance(value, dict) else value


def _depth(plain: Any) -> int:
    """How many lists and objects lie within each other; without recursion, which hostile data would exhaust."""
    level: list[Any] = [plain]
    depth = 0
    while level := [each for each in level if each and type(each) in (dict, list)]:
        level = [inner for each in level for inner in _members(each)]
        depth += 1
    return depth


def read_json(
    file: Path,
    *,
    expected: str,
    hint: str | None = None,
    name: str | None = None,
    error: type[NeuroFlamingoError] = ScanError,
    **limits: Any,
) -> Any:
    """Read a user's JSON file with `load_json` (which takes `limits`), and raise a typed error on any fault."""
    try:
        return load_json(file, **limits)
    except (OSError, ValueError) as failure:
        raise error(
            f"{name or file.name} cannot be read",
            expected=expected,
            seen=(getattr(failure, "strerror", None) or str(failure))[:200],
            hint=hint,
            exit_code=65 if error is ModelError else None,
        ) from failure
