"""Progress on standard error: a live line with a clock on a terminal, one plain line a stage elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

EVERY_S = 30.0


class Progress:
    """Call it with the name of each stage as it begins; use it as a context manager.

    Args:
        subject: what is worked on, shown before each stage.
        quiet: show nothing at all.
        live: None asks the terminal (and `NO_COLOR`, `TERM`).
    """

    def __init__(self, subject: str = "", *, quiet: bool = False, live: bool | None = None) -> None:
        self.subject, self.quiet = subject, quiet
        self.live = wants_live() if live is None else live
        self._stage: str | None = None
        self._begin = time.perf_counter()
        self._status = None
        self._counted = ("", 0.0)

    def __call__(self, stage: str) -> None:
        self._finish()
        self._stage, self._begin = stage, time.perf_counter()
        if self.quiet:
            return
        if not self.live:
            print(self._line(stage), file=sys.stderr, flush=True)
            return
        from rich.console import Console
        from rich.markup import escape

        self._status = Console(stderr=True).status(escape(self._line(stage)))
        self._status.start()

    def count(self, part: str, done: int, total: int) -> None:
        """Progress within a stage: redrawn on a terminal, elsewhere a line for each new part and every half minute."""
        name, told = self._counted
        now = time.perf_counter()
        if self.quiet or (part == name and not self.live and now - told < EVERY_S):
            return
        self._counted = (part, now)
        line = self._line(f"{part} {done}/{total}")
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(line))
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(failed=kind is not None)

    def _line(self, stage: str) -> str:
        return f"{self.subject}: {stage}" if self.subject else stage

    def _finish(self, failed: bool = False) -> None:
        if self._status is None or self._stage is None:
            return
        self._status.stop()
        self._status = None
        mark = "\x1b[31m✗\x1b[0m" if failed else "\x1b[32m✓\x1b[0m"
        print(
            f"{mark} {self._line(self._stage)}  {time.perf_counter() - self._begin:.1f} s", file=sys.stderr, flush=True
        )


def wants_live() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not plain
