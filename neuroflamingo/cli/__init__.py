"""The command line. Nothing heavy is imported here, so that `--help` and `--version` answer at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (sysexits numbers; see `failures`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from importlib.metadata import version

        print(f"neuroflamingo {version('neuroflamingo')}")
        return 0
    from neuroflamingo.cli.failures import guarded

    return guarded(words)
