"""The command line. Nothing heavy is imported here, so that `--help` and `--version` answer at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (sysexits numbers, see `errors`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from importlib.metadata import version

        print(f"neuroflamingo {version('neuroflamingo')}")
        return 0
    from neuroflamingo.cli.errors import guarded

    code = guarded(_run, words)
    if arguments is None:
        gc.freeze()  # the process ends here: looking through a million objects once more would take a second
    return code


def _run(arguments: list[str]) -> None:
    from neuroflamingo.cli.app import application

    application(args=arguments, prog_name="neuroflamingo", obj=tuple(arguments))
