"""The typed errors of all three packages: each says what, what was expected, what was seen and one thing to try."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches


class NeuroFlamingoError(Exception):
    """Base of every error meant for a user.

    Args:
        what: what happened, naming the file or key.
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
        parts = [what]
        parts += [f"expected: {expected}"] if expected else []
        parts += [f"seen: {seen}"] if seen else []
        parts += [f"try: {hint}"] if hint else []
        super().__init__("\n  ".join(parts))
        self.what, self.expected, self.seen, self.hint = what, expected, seen, hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(NeuroFlamingoError):
    """The call itself is wrong: numbers of `<image>` tokens and scans differ, options contradict each other."""

    exit_code = 2


class ScanError(NeuroFlamingoError):
    """A scan cannot be used: not a NIfTI file, impossible header, empty or broken voxels."""

    exit_code = 65


class NotFoundError(NeuroFlamingoError):
    """An input file or folder does not exist."""

    exit_code = 66


class ModelError(NeuroFlamingoError):
    """A model, encoder or weight file is unknown, unavailable (exit 69) or does not fit (exit 65)."""

    exit_code = 69


class OutputError(NeuroFlamingoError):
    """An output cannot be created (exit 73) or written (exit 74)."""

    exit_code = 73


class ConfigError(NeuroFlamingoError):
    """A configuration has unknown keys or values that do not fit."""

    exit_code = 78


def not_readable(what: object, error: OSError) -> ScanError:
    """The error for a scan that the system does not let us read (exit 74)."""
    seen = error.strerror or str(error)
    return ScanError(f"{what} cannot be read", seen=seen, hint="check its permissions", exit_code=74)


def nearest(words: str | Iterable[str], known: Collection[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The known names that misspelled ones may stand for, the likeliest first.

    Args:
        words: one or several.
        known: names that would have been right.
        count: how many at most for each word.
        cutoff: likeness from 0 to 1 below which a name is not near.
    """
    words = [words] if isinstance(words, str) else words
    return list(dict.fromkeys(near for word in words for near in get_close_matches(word, known, count, cutoff)))


def did_you_mean(words: str | Iterable[str], known: Collection[str], count: int = 3, cutoff: float = 0.5) -> str:
    """The `nearest` names as a question for a hint; empty where none is near."""
    near = nearest(words, known, count, cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


def is_out_of_memory(failure: BaseException) -> bool:
    """Python's, a GPU's, or torch's on the CPU, which is a plain RuntimeError."""
    if isinstance(failure, MemoryError) or type(failure).__name__ == "OutOfMemoryError":
        return True
    return isinstance(failure, RuntimeError) and "can't allocate memory" in str(failure)
