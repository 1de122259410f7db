"""Command line. Nothing heavy is imported here, so that `--help` and `--version` answer immediately."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (sysexits numbers, see `errors`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    from neuroflamingo.cli.errors import flushed, guarded

    code = guarded(show_version if words == ["--version"] else _run, words)
    if arguments is None:
        code = flushed(code)
        gc.freeze()  # the process ends here: looking through a million objects once more would take a second
    return code


def show_version(_: Sequence[str] = ()) -> None:
    """Print the version."""
    from importlib.metadata import version

    from neuroflamingo.progress import say

    say(f"neuroflamingo {version('neuroflamingo')}")


def _run(arguments: list[str]) -> None:
    from neuroflamingo.cli.app import application
    from neuroflamingo.cli.usage_errors import in_our_words, is_parser_error

    try:
        code = application(args=arguments, prog_name="neuroflamingo", obj=tuple(arguments), standalone_mode=False)
    except Exception as failure:
        if not is_parser_error(failure):
            raise
        raise in_our_words(failure, arguments) from failure
    raise SystemExit(code)
