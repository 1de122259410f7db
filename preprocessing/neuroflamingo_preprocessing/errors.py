"""Typed errors of all three packages: each says what happened, what was expected, what was seen and what to try."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class NeuroFlamingoError(Exception):
    """Base class of errors meant for users.

    Args:
        what: what happened, with the name of the file or key.
        expected: what would have been right.
        seen: what was found instead.
        hint: one thing to try.
        exit_code: overrides the class's exit code (sysexits numbers).
    """

    exit_code = 70

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        seen: str | None = None,
        hint: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.expected, self.seen, self.hint = what, expected, seen, hint
        self.noted: tuple[str, ...] = ()
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        parts = [self.what]
        parts += [f"expected: {self.expected}"] if self.expected else []
        parts += [f"seen: {self.seen}"] if self.seen else []
        parts += [f"noted before: {note}" for note in self.noted]
        parts += [f"try: {self.hint}"] if self.hint else []
        return "\n  ".join(parts)


class UsageError(NeuroFlamingoError):
    """Wrong call: numbers of `<image>` tokens and scans differ, or options contradict each other."""

    exit_code = 2


class ScanError(NeuroFlamingoError):
    """Unusable scan: not a NIfTI file, an impossible header, empty or damaged voxels."""

    exit_code = 65


class NotFoundError(NeuroFlamingoError):
    """Missing input file or folder."""

    exit_code = 66


class ModelError(NeuroFlamingoError):
    """Model, encoder or weight file that is not available (exit 69), unknown (66), or does not fit (65)."""

    exit_code = 69


class OutputError(NeuroFlamingoError):
    """Output that cannot be created (exit 73) or written (exit 74)."""

    exit_code = 73


class ConfigError(NeuroFlamingoError):
    """Configuration with unknown keys or invalid values."""

    exit_code = 78


@contextmanager
def noting(notes: Iterable[str]) -> Generator[None]:
    """Add what was odd about an input to the errors raised about it: often it is the reason.

    Args:
        notes: the warnings so far; those given twice count once.
    """
    try:
        yield
    except NeuroFlamingoError as error:
        error.noted = tuple(dict.fromkeys((*notes, *error.noted)))
        raise


def not_readable(what: object, error: OSError) -> ScanError:
    """The error for a scan that the system does not let us read (exit 74)."""
    seen = error.strerror or str(error)
    return ScanError(f"{what} cannot be read", seen=seen, hint="check its permissions", exit_code=74)


def not_created(target: Path, error: OSError) -> OutputError:
    """The error for a file or folder that cannot be made (exit 73; 74 where the disk is full)."""
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(
            f"{target.name[:40]}... cannot be created: the name is too long",
            expected="a name of at most 255 bytes, ending included",
            seen=f"{len(os.fsencode(target.name))} bytes",
            hint="name the output with -o, or give the input a shorter name",
        )
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputError(
        f"{target} cannot be created",
        expected=f"a writable folder {target.parent}",
        seen=error.strerror or str(error),
        hint="free some space, or choose another folder with -o" if full else "choose another folder with -o",
        exit_code=74 if full else None,
    )


def nearest(words: str | Iterable[str], known: Collection[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """Known names closest to misspelled ones, the likeliest first.

    Args:
        words: one or several misspelled names.
        known: valid names.
        count: maximum number for each word.
        cutoff: similarity, from 0 to 1, below which a name is left out.
    """
    words = [words] if isinstance(words, str) else words
    return list(dict.fromkeys(near for word in words for near in get_close_matches(word, known, count, cutoff)))


def did_you_mean(words: str | Iterable[str], known: Collection[str], count: int = 3, cutoff: float = 0.5) -> str:
    """Hint with the `nearest` names, as a question; empty if none is near."""
    near = nearest(words, known, count, cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


def is_out_of_memory(failure: BaseException) -> bool:
    """True for Python's, the system's and the GPU's out-of-memory errors, and for libraries that only say so."""
    if isinstance(failure, MemoryError) or type(failure).__name__ == "OutOfMemoryError":
        return True
    if isinstance(failure, OSError) and failure.errno == errno.ENOMEM:
        return True
    words = ("can't allocate memory", "Cannot allocate memory", "os error 12", "CUBLAS_STATUS_ALLOC_FAILED")
    return not isinstance(failure, NeuroFlamingoError) and any(word in str(failure) for word in words)
