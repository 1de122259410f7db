"""Files that users give: whether they are there and are files, and the text in them."""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, not_readable

MAX_SHOWN = 200
"""Longest path that a message repeats as a whole."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is a part of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def check_input(path: str | Path, expected: str = "a .nii or .nii.gz file") -> None:
    """Check that an input is a file or a folder, before anything is loaded for it.

    Args:
        path: as the user gave it.
        expected: for the messages.

    Raises:
        NotFoundError: it is not there, or a link leads nowhere, as those of git-annex without content (exit 66).
        ScanError: a pipe, a device or a socket (exit 65); a folder that may not be read (exit 74).
    """
    shown = str(path) if len(str(path)) <= MAX_SHOWN else f"{str(path)[:40]}..."
    hint, seen = "check the path", None
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise not_readable(shown, error) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if os.path.islink(path):
            seen = "a link that leads nowhere"
            hint = "fetch its content first: datalad get, or git annex get; or correct the link"
        elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            seen = f"a name of {len(str(path)):,} characters, which no file can have"
        elif not str(path).strip():
            shown, seen = "of this name", "an empty name"
        raise NotFoundError(f"there is no file {shown}", expected=expected, seen=seen, hint=hint) from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise ScanError(
        f"{shown} is {kind}, which is not read: scans are read more than once",
        expected=expected,
        seen=kind,
        hint="write it to a file first, as in `zcat scan.nii.gz > scan.nii`",
    )


def encoding_of(head: bytes) -> tuple[str, int]:
    """Encoding of a text by its byte order mark, and the mark's length; UTF-8 where there is none.

    Args:
        head: the first four bytes.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    return "utf-8", 0


def decode_text(raw: bytes) -> str:
    """Decode a user's text: UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is left out.

    Raises:
        UnicodeDecodeError: none of these.
    """
    encoding, length = encoding_of(raw[:4])
    return raw[length:].decode(encoding)


def utf8_stream(file: Path) -> BinaryIO:
    """Open a user's text as bytes of UTF-8 without byte order mark; other encodings are converted as a whole.

    Raises:
        ScanError: a byte order mark and other bytes than it says; bytes that are not UTF-8 are left to the reader.
    """
    stream = file.open("rb")
    encoding, length = encoding_of(stream.read(4))
    if encoding == "utf-8":
        stream.seek(length)
        return stream
    with stream:
        try:
            return io.BytesIO(decode_text(file.read_bytes()).encode())
        except UnicodeDecodeError as error:
            expected = "text in UTF-8, or in UTF-16 with a byte order mark"
            raise ScanError(f"{file.name} cannot be read", expected=expected, seen=str(error)[:200]) from error
