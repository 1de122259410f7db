"""DICOM files of a folder, a zip archive or a single file. Their names are never shown: they often name patients."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from neuroflamingo_preprocessing.errors import ScanError, UsageError

MAX_FILES = 100_000
MAX_ARCHIVE_BYTES = 2**34
"""Largest total size of all members, unpacked."""
MAX_RATIO, RATIO_FREE_BYTES = 100, 2**26
"""Largest ratio of unpacked to packed size, beyond 64 MB: real series compress to about a third, empty ones to a
fiftieth."""
MAX_DIRECTORY_BYTES = 2**24
"""Largest table of contents of an archive: 100,000 members with names of 100 letters."""
CHUNK_BYTES = 2**20
OTHER_ENDINGS = (".npz", ".npy", ".zarr", ".nii", ".gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Extensions of other formats, even if the content looks like DICOM: their readers say what is wrong with them."""
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".tar", ".7z", ".rar")
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
FIRST_ELEMENTS = {2: range(0, 3), 8: range(0, 0x19)}
"""Group to elements with which a DICOM file without preamble may begin."""


def is_dicom_input(path: str | Path) -> bool:
    """True for a path to read as DICOM: a folder (not a zarr store), a zip archive, or a DICOM file."""
    path = Path(path)
    if path.is_dir():
        return not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
    if path.suffix.lower() in OTHER_ENDINGS or not path.is_file():
        return False
    return _is_zip(path) or is_dicom_file(path)


def refuse_series(path: Path, series: int | None) -> None:
    """Refuse a series number for anything but DICOM.

    Raises:
        UsageError: a series of another file.
    """
    if series is not None and path.exists():
        raise UsageError(
            f"{path.name} has no series {series}",
            expected="a DICOM folder, zip archive or file",
            seen="a file of another format",
            hint="leave out --series",
        )


def is_dicom_file(path: Path) -> bool:
    """True if a file begins like DICOM, with or without preamble; False for one that cannot be read."""
    head = _first_bytes(path)
    return head is not None and looks_like_dicom(head)


def _first_bytes(path: Path) -> bytes | None:
    """The first 140 bytes of a file; None if it is no regular file (reading a pipe would block) or cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            return stream.read(140)
    except OSError:
        return None


def _with_lost(files: Iterable[tuple[Path, PurePath, bytes]]) -> list[Path]:
    """Files that begin as DICOM does, and empty ones that are named like those beside them.

    Args:
        files: the file, its name in the input, and its first 140 bytes.
    """
    found, lost, named = [], [], set()
    for file, name, head in files:
        alike = name.parent, name.suffix.lower() if name.suffix[1:].isalpha() else ""
        if looks_like_dicom(head):
            found.append(file)
            named.add(alike)
        elif not head.strip(b"\0"):
            lost += [] if name.name.startswith(".") else [(file, alike)]
    return [*found, *(file for file, alike in lost if alike in named)]


def looks_like_dicom(head: bytes) -> bool:
    """True if the first 140 bytes of a file look like DICOM; see `is_dicom_file`."""
    if head[128:132] == b"DICM":
        return True
    group, element = int.from_bytes(head[:2], "little"), int.from_bytes(head[2:4], "little")
    explicit = re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None
    return element in FIRST_ELEMENTS.get(group, ()) and (explicit or 0 < int.from_bytes(head[4:8], "little") <= 256)


def shown_name(path: str | Path) -> str:
    """Name of an input in messages and records: its file name, but none for DICOM, often named after the patient."""
    return "DICOM input" if is_dicom_input(path) else Path(path).name


def folder_state(folder: Path) -> str:
    """Hash of the names, sizes and modification times of all files of a folder, to notice any change."""
    words = []
    for file in walk(folder):
        stated = file.stat()
        words.append(f"{file.relative_to(folder)}\0{stated.st_size}\0{stated.st_mtime_ns}")
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()


def holds_dicom(path: str | Path, looked_at: int = 2000) -> bool:
    """True for a zip or DICOM file, or a folder with a DICOM file among its first `looked_at` files.

    Such inputs are not named in any record: folders and archives are often named after patients.
    """
    try:
        if not Path(path).is_dir():
            return is_dicom_input(path)
        return any(
            is_dicom_file(file) or _is_zip(file) for _, file in zip(range(looked_at), walk(Path(path)), strict=False)
        )
    except (OSError, ValueError, ScanError):  # a NUL in the name; more files than are looked at
        return False


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder in a fixed order, without following links to folders.

    Raises:
        ScanError: more than 100,000 files.
    """
    count = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                raise ScanError(
                    "the folder holds too many files to search for a series",
                    expected=f"at most {MAX_FILES:,}",
                    hint="name the folder of one examination",
                )
            yield Path(parent, name)


@contextmanager
def dicom_files(path: Path) -> Iterator[list[Path]]:
    """List the DICOM files of an input; an archive is unpacked for as long as the context is open.

    `DICOMDIR` is left out: the images themselves say which series they belong to. Files of nothing but zeros, or of
    nothing at all, that are named like DICOM files beside them are listed too: a copy that broke off leaves such files.

    Raises:
        ScanError: no DICOM files; an archive that is damaged, hostile or too large.
    """
    if path.is_dir():
        files = [(file, _first_bytes(file)) for file in walk(path) if file.name.upper() != "DICOMDIR"]
        found = _with_lost([(file, file.relative_to(path), head) for file, head in files if head is not None])
        if not found:
            raise _none_found("folder", path)
        yield found
    elif _is_zip(path):
        with tempfile.TemporaryDirectory(prefix="neuroflamingo-dicom-") as place:
            found = _unpack(path, Path(place))
            if not found:
                raise _none_found("archive", path)
            yield found
    else:
        yield [path]


def _none_found(what: str, path: Path) -> ScanError:
    names = [file.name.lower() for file in walk(path)] if path.is_dir() else []
    seen, hint = "no file that begins as DICOM does", "check the path; other formats must be named file by file"
    if any(name.endswith((".nii", ".nii.gz")) for name in names):
        seen, hint = "NIfTI files", "name one scan inside it"
    elif packed := [name for name in names if name.endswith(PACKED)]:
        seen, hint = f"{len(packed)} packed file{'s' * (len(packed) > 1)}", "unpack them first: only zip is read"
    return ScanError(
        f"the {what} holds no DICOM files", expected="a folder or zip archive of a DICOM series", seen=seen, hint=hint
    )


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return path.is_file() and stream.read(4) in ZIP_MAGIC
    except OSError:
        return False


class _BoundedReader:
    """File that refuses huge reads: `zipfile` reads the table of contents of an archive at once, whatever its size."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise _refused("its table of contents is too large", f"at most {MAX_DIRECTORY_BYTES:,} bytes", f"{size:,}")
        return self._stream.read(size)


def _unpack(path: Path, place: Path) -> list[Path]:
    """Write the DICOM members under numbers; their names are checked, but never used as paths."""
    try:
        with path.open("rb") as raw, zipfile.ZipFile(_BoundedReader(raw)) as archive:  # type: ignore[arg-type]
            members = [member for member in archive.infolist() if not member.is_dir()]
            limit = _check_members(members, archive.infolist(), path.stat().st_size)
            found: list[tuple[Path, PurePath, bytes]] = []
            written = 0
            for number, member in enumerate(members):
                with archive.open(member) as stream:
                    head = stream.read(140)
                    if head[:4] in ZIP_MAGIC:
                        raise _refused("it holds another archive", "DICOM files", "a zip archive inside")
                    name = PurePath(member.filename)
                    is_dicom = looks_like_dicom(head)
                    if name.name.upper() == "DICOMDIR" or not (is_dicom or not head.strip(b"\0")):
                        continue
                    target = place / f"{number:06d}"
                    if is_dicom:
                        written += _write(head, stream, target, limit - written)
                    else:
                        target.touch()
                    found.append((target, name, head))
            return _with_lost(found)
    except ScanError:
        raise
    except OSError as error:
        raise ScanError(
            "the archive cannot be unpacked",
            seen=error.strerror or "a damaged archive",
            hint="free some space in the temporary folder (TMPDIR), or unpack it yourself and name the folder",
            exit_code=74,
        ) from None
    except Exception:  # zipfile, zlib, lzma and bz2 raise many types; their messages may hold the members' names
        raise _refused("it is damaged or of an unknown kind", "a zip archive without password", None) from None


def _check_members(members: list[zipfile.ZipInfo], everything: list[zipfile.ZipInfo], size: int) -> int:
    """Check the table of contents, and give the number of bytes that may be unpacked."""
    if len(members) > MAX_FILES:
        raise _refused("it has too many members", f"at most {MAX_FILES:,}", f"{len(members):,}")
    for member in everything:
        name, mode = member.orig_filename.replace("\\", "/"), member.external_attr >> 16
        if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise _refused("a member's name leads out of it", "relative names without ..", None)
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused("a member is a link or a device", "plain files", None)
        if member.flag_bits & 1:
            raise _refused("it is encrypted", "an archive without password", None)
    limit = min(MAX_ARCHIVE_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * size))
    claimed = sum(member.file_size for member in members)
    if claimed > limit:
        raise _refused("it would unpack to far more than it holds", f"at most {limit:,} bytes", f"{claimed:,}")
    return limit


def _write(head: bytes, stream: Any, target: Path, allowed: int) -> int:
    """Write a member and give its size, counted here: the size in the table of contents may be wrong."""
    written, chunk = 0, head
    with target.open("wb") as out:
        while chunk:
            written += len(chunk)
            if written > allowed:
                raise _refused("it unpacks to far more than it claims", f"at most {allowed:,} more bytes", None)
            out.write(chunk)
            chunk = stream.read(CHUNK_BYTES)
    return written


def _refused(why: str, expected: str, seen: str | None) -> ScanError:
    return ScanError(
        f"the archive is not unpacked: {why}",
        expected=expected,
        seen=seen,
        hint="unpack it yourself, look at what is in it, and name the folder",
    )
