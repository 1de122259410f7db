"""Error handling of the command line: a message and an exit code for every failure, a crash file for bugs only.

| code | meaning | code | meaning |
| --- | --- | --- | --- |
| 0 | done | 70 | internal error, a crash file was written |
| 1 | some scans failed, the others were written | 73 | an output cannot be created |
| 2 | usage | 74 | reading or writing failed |
| 65 | bad input data | 75 | out of memory, or another temporary failure |
| 66 | a file, model or encoder not found | 78 | bad configuration |
| 69 | weights or a package not available here | 130, 143 | interrupted, terminated |
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from neuroflamingo.progress import say, visible_lines
from neuroflamingo_preprocessing.cache_home import home_folder
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, is_out_of_memory

SOME_FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
NO_INPUT, INTERNAL, INPUT_OUTPUT, TRY_AGAIN = 66, 70, 74, 75
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Keep libraries offline (but not in `_ONLINE`, nor with `_ALLOWED`) and quiet: the program shows its own progress."""
_ONLINE = (["models", "fetch"],)
_ALLOWED = "--allow-download"


class _VisibleFormatter(logging.Formatter):
    """Log lines show no raw control characters, as everything else that is printed."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, as `say` would print it."""
        return visible_lines(super().format(record))


class Terminated(BaseException):
    """Raised on SIGTERM, so that temporary files are removed before the program exits."""


def guarded(run: Callable[[list[str]], None], arguments: Sequence[str]) -> int:
    """Run a program with its arguments and turn any outcome into an exit code."""
    online = list(arguments[:2]) in _ONLINE or _ALLOWED in arguments
    for name, value in _QUIET.items():
        if not (online and name.endswith("_OFFLINE")):
            os.environ.setdefault(name, value)
    previous = _listen(signal.SIGTERM, _terminate)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_VisibleFormatter())
    try:
        run(list(arguments))
    except SystemExit as leaving:
        return _code_of(leaving)
    except BaseException as failure:
        return report_failure(failure, arguments)
    finally:
        _listen(signal.SIGTERM, previous)
    return 0


def report_failure(failure: BaseException, arguments: Sequence[str] = ()) -> int:
    """Print an error to standard error and return its exit code; an unexpected exception also writes a crash file."""
    if isinstance(failure, NeuroFlamingoError):
        say_error(str(failure))
        return failure.exit_code
    if isinstance(failure, KeyboardInterrupt):
        say_error("interrupted; finished files are kept, no file is half written")
        return INTERRUPTED
    if isinstance(failure, Terminated):
        say_error("terminated; finished files are kept, no file is half written")
        return TERMINATED
    if is_out_of_memory(failure):
        say_error("out of memory\n  try: close other programs, use --device cpu, or process one scan at a time")
        return TRY_AGAIN
    if isinstance(failure, BrokenPipeError):
        return INPUT_OUTPUT
    if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS):
        name = f"\n  seen: {Path(str(failure.filename)).name}" if failure.filename else ""
        say_error(f"reading or writing failed: {failure.strerror}{name}\n  try: free some space, or write elsewhere")
        return INPUT_OUTPUT
    if isinstance(failure, OSError) and failure.errno == errno.ENAMETOOLONG:
        name = Path(str(failure.filename)).name
        say_error(
            f"there is no file {name[:40]}...\n  expected: a valid file name\n  seen: {len(name)} characters\n"
            "  try: check the path"
        )
        return NO_INPUT
    place = _write_crash_file(failure, arguments)
    say_error(
        f"internal error: {type(failure).__name__}: {redact_paths(str(failure), arguments)}\n"
        "  expected: this is a bug in neuroflamingo, not a problem with your input\n"
        f"  seen: details in {place}\n"
        "  try: report it with that file (it contains no image data)"
    )
    return INTERNAL


def redact_paths(text: str, arguments: Sequence[str]) -> str:
    """Remove the folders from all argument paths in a text, and the names of DICOM inputs entirely."""
    import re

    from neuroflamingo.provenance import DICOM, redact

    words = {part for word in arguments for part in word.split("=") if len(part) > 1 and "\0" not in part}
    for word in sorted(words, key=len, reverse=True):
        for spelling in (str(Path(word).resolve()), os.path.abspath(word), word):
            if redact(word) != word or spelling != word:
                text = text.replace(spelling, redact(word))
    return re.sub(re.escape(DICOM) + r"""[/\\][^'"\n]*""", DICOM, text)


def say_error(message: str) -> None:
    """Print a message to standard error; `error:` is red on a colour terminal."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    if colour:
        print("\x1b[1;31merror:\x1b[0m ", end="", file=sys.stderr)
    say(message if colour else f"error: {message}", file=sys.stderr, flush=True)


def flushed(code: int) -> int:
    """Write out what is still buffered, before the process ends; 74 if nobody takes it (a closed pipe, a full disk)."""
    try:
        sys.stdout.flush()
    except OSError as failure:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # the interpreter's own last flush must not fail again
        return report_failure(failure)
    return code


def _code_of(leaving: SystemExit) -> int:
    if isinstance(leaving.__context__, OSError) and leaving.__context__.errno == errno.EPIPE:
        return INPUT_OUTPUT  # typer makes 1 of it
    if leaving.code is None:
        return 0
    return leaving.code if isinstance(leaving.code, int) else 1


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _listen(number: int, handler: Any) -> Any:
    """Set a signal handler if possible (in the main thread) and return the previous one."""
    with contextlib.suppress(ValueError):
        return signal.signal(number, handler)
    return None


def _write_crash_file(failure: BaseException, arguments: Sequence[str]) -> str:
    """Write traceback, redacted command and versions to the cache folder, or else to the temporary folder."""
    import platform
    import tempfile

    from neuroflamingo.provenance import redact
    from neuroflamingo_preprocessing.software import installed_version

    lines = [
        f"neuroflamingo {installed_version('neuroflamingo')}",
        f"Python {platform.python_version()}, {platform.platform()}",
        "command: neuroflamingo " + " ".join(redact(word) for word in arguments),
        "",
        redact_paths("".join(traceback.format_exception(failure)), arguments),
    ]
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (home_folder() / "crashes", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("\n".join(lines), encoding="utf-8", errors="replace")
        except OSError:
            continue
        return str(folder / name)
    return "no file: neither the cache folder nor the temporary folder is writable"
