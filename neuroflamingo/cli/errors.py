"""The edge of the program: every failure becomes a readable message and an exit code; only bugs leave a crash file.

| code | meaning | code | meaning |
| --- | --- | --- | --- |
| 0 | done | 70 | internal error, a crash file was written |
| 1 | some scans failed, the others were written | 73 | an output cannot be created |
| 2 | usage | 74 | reading or writing failed |
| 65 | bad input data | 75 | out of memory or otherwise worth another try |
| 66 | not found | 78 | bad configuration |
| 69 | a model or encoder is not available | 130, 143 | interrupted, terminated |
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from neuroflamingo_preprocessing.cache_home import home_folder
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, is_out_of_memory

INTERRUPTED, TERMINATED = 130, 143
NO_INPUT, INTERNAL, INPUT_OUTPUT, TRY_AGAIN = 66, 70, 74, 75
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No command but those of `_ONLINE` uses the network, and progress is shown by the program itself."""
_ONLINE = (["models", "fetch"],)


class Terminated(BaseException):
    """SIGTERM, as an exception, so that temporary files are removed on the way out."""


def guarded(run: Callable[[list[str]], None], arguments: Sequence[str]) -> int:
    """Run a program on its arguments and turn whatever happens into an exit code."""
    for name, value in _QUIET.items():
        if list(arguments[:2]) not in _ONLINE or not name.endswith("_OFFLINE"):
            os.environ.setdefault(name, value)
    previous = _listen(signal.SIGTERM, _terminate)
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
    """Say on standard error what went wrong, and give the exit code. Exceptions that are bugs leave a crash file."""
    if isinstance(failure, NeuroFlamingoError):
        say_error(str(failure))
        return failure.exit_code
    if isinstance(failure, KeyboardInterrupt):
        say_error("interrupted; files that were finished stay, none is half written")
        return INTERRUPTED
    if isinstance(failure, Terminated):
        say_error("terminated; files that were finished stay, none is half written")
        return TERMINATED
    if is_out_of_memory(failure):
        say_error("out of memory\n  try: close other programs, use --device cpu, or give one scan at a time")
        return TRY_AGAIN
    if isinstance(failure, BrokenPipeError):
        return INPUT_OUTPUT
    if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS):
        say_error(f"reading or writing failed: {failure.strerror}\n  seen: {Path(str(failure.filename or '')).name}")
        return INPUT_OUTPUT
    if isinstance(failure, OSError) and failure.errno == errno.ENAMETOOLONG:
        name = Path(str(failure.filename)).name
        say_error(
            f"there is no file {name[:40]}...\n  expected: a name that a file can have\n  seen: {len(name)} letters\n"
            "  try: check the path"
        )
        return NO_INPUT
    place = _write_crash_file(failure, arguments)
    say_error(
        f"internal error: {type(failure).__name__}: {unnamed(str(failure), arguments)}\n  expected: this is a bug of "
        f"neuroflamingo, not of your input\n  seen: details in {place}\n  try: report it with that file (it holds no "
        "image data)"
    )
    return INTERNAL


def unnamed(text: str, arguments: Sequence[str]) -> str:
    """Text in which paths of arguments have lost their folders, and DICOM inputs all of their names, inner ones too."""
    import re

    from neuroflamingo.provenance import DICOM, redact

    words = {part for word in arguments for part in word.split("=") if len(part) > 1 and "\0" not in part}
    for word in sorted(words, key=len, reverse=True):
        for spelling in (str(Path(word).resolve()), os.path.abspath(word), word):
            if redact(word) != word or spelling != word:
                text = text.replace(spelling, redact(word))
    return re.sub(re.escape(DICOM) + r"""[/\\][^'"\n]*""", DICOM, text)


def say_error(message: str) -> None:
    """One message on standard error, `error:` in red where that is a terminal that wants colour."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    label = "\x1b[1;31merror:\x1b[0m" if colour else "error:"
    print(f"{label} {message}", file=sys.stderr, flush=True)


def _code_of(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    return leaving.code if isinstance(leaving.code, int) else 1


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _listen(number: int, handler: Any) -> Any:
    """Set a signal handler where that is allowed (the main thread), and give the one before."""
    with contextlib.suppress(ValueError):
        return signal.signal(number, handler)
    return None


def _write_crash_file(failure: BaseException, arguments: Sequence[str]) -> str:
    """The traceback, the redacted command and the versions, in the cache folder or else in a temporary one."""
    import platform
    import tempfile

    from neuroflamingo.provenance import redact
    from neuroflamingo_preprocessing.software import installed_version

    lines = [
        f"neuroflamingo {installed_version('neuroflamingo')}",
        f"Python {platform.python_version()}, {platform.platform()}",
        "command: neuroflamingo " + " ".join(redact(word) for word in arguments),
        "",
        unnamed("".join(traceback.format_exception(failure)), arguments),
    ]
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (home_folder() / "crashes", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("\n".join(lines), encoding="utf-8", errors="replace")
        except OSError:
            continue
        return str(folder / name)
    return "nowhere: neither the cache folder nor the temporary folder can be written"
