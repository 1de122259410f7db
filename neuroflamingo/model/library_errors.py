"""Typed errors for what a library raises while it reads a file that a user gave: the file is named, not a bug."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, is_out_of_memory

_OURS = ("neuroflamingo", "neuroflamingo_encoders", "neuroflamingo_preprocessing")


@contextmanager
def blame_file(file: Path, expected: str, hint: str | None = None) -> Iterator[None]:
    """Turn any error of a library into a `ModelError` that names a file of a model.

    Errors that this project's own code raises are passed on: typed ones as they are, others are bugs and have to be
    seen. So is running out of memory.

    Args:
        file: the file that the libraries obey inside.
        expected: what the file should hold.
        hint: one thing to try; None: to save the model again.

    Raises:
        ModelError: exit 65; 74 where the system does not let the file be read.
    """
    try:
        yield
    except NeuroFlamingoError:
        raise
    except BaseException as error:  # the tokenizers' own failures (PanicException) are no Exception
        panicked = type(error).__name__ == "PanicException"
        if is_out_of_memory(error) or not (panicked or (isinstance(error, Exception) and _of_library(error))):
            raise
        refused = isinstance(error, OSError) and error.errno is not None
        raise ModelError(
            f"{file.name} in {file.parent} cannot be used",
            expected=expected,
            seen=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            hint="check its permissions" if refused else hint or "save the model again with save_pretrained",
            exit_code=74 if refused else 65,
        ) from error


def _of_library(error: BaseException) -> bool:
    """Whether the innermost line that ran was not one of ours, or called compiled code with errors of its own kind."""
    if type(error).__module__.partition(".")[0] not in ("builtins", "json", *_OURS):
        return True
    place: TracebackType | None = error.__traceback__
    module = ""
    while place is not None:
        module = str(place.tb_frame.f_globals.get("__name__", ""))
        place = place.tb_next
    return module.partition(".")[0] not in _OURS
