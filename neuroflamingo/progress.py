"""Progress on standard error: a live line with a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from types import TracebackType
from typing import Any, Self, TextIO

EVERY_S = 30.0


def visible(text: object) -> str:
    """Text with control and direction-changing characters shown as a box: they could disguise a name.

    Raw, they could also steer a terminal. Line ends and tabs are among them.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") else character
        for character in str(text)
    )


def visible_lines(text: object) -> str:
    """`visible` for text of several lines: its line ends and tabs stay."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in str(text).split("\n"))


def say(*values: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print as `print` does, but `visible_lines` only: names come from files, and must not steer the terminal.

    All that the program prints goes through here. What the stream's encoding lacks becomes a question mark.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = visible_lines(sep.join(map(str, values)))
    print(text.encode(encoding, errors="replace").decode(encoding), end=end, file=stream, flush=flush)


class Progress:
    """Progress of a piece of work: call it with the name of each stage as it begins, `count` its parts.

    Args:
        subject: what is worked on, shown before all else.
        quiet: show nothing at all.
        live: None asks the terminal (and `NO_COLOR`, `TERM`).
    """

    def __init__(self, subject: str = "", *, quiet: bool = False, live: bool | None = None) -> None:
        self.subject, self.quiet = subject, quiet
        self.live = not quiet and (wants_live() if live is None else live)
        self._stage, self._part = "", ""
        self._bar: Any = None

    def __call__(self, stage: str) -> None:
        """Show the name of the stage that begins."""
        self._finish()
        self._stage = stage
        if self.live:
            self._open()
        else:
            self.note(stage)

    def count(self, part: str, done: int, total: int, detail: str = "") -> None:
        """Show how many parts are done: at once on a terminal, elsewhere the first, the last, and every half minute."""
        now = time.monotonic()
        if first := part != self._part:
            self._part, self._begin = part, (now, done)
        line = f"{part} {done}/{total}" + (f", {detail}" if detail else "")
        if self.live:
            (self._bar or self._open()).update(0, description=self._line(line), completed=done, total=total)
        elif first or done == total or now - self._told > EVERY_S:
            self._told = now
            each = (now - self._begin[0]) / max(1, done - self._begin[1])
            left = f", {each:.2f} s each, {each * (total - done) / 60:.0f} min left"
            self.note(line if first else line + left)

    def note(self, line: str) -> None:
        """Show a line that stays."""
        if self._bar is not None:
            self._bar.console.print(self._line(line), markup=False, highlight=False)
        elif not self.quiet:
            say(self._line(line), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(failed=kind is not None)

    def _line(self, text: str) -> str:
        return visible(": ".join(filter(None, (self.subject, text))))

    def _open(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        text = TextColumn("{task.description}", markup=False)
        columns = (SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._bar.add_task(self._line(self._stage), total=None)
        self._bar.start()
        return self._bar

    def _finish(self, failed: bool = False) -> None:
        if self._bar is None:
            return
        seconds = self._bar.tasks[0].elapsed or 0.0
        self._bar.stop()
        self._bar = None
        mark = "\x1b[31m✗\x1b[0m" if failed else "\x1b[32m✓\x1b[0m"
        print(f"{mark} {self._line(self._stage)}  {seconds:.1f} s", file=sys.stderr, flush=True)


def wants_live() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not plain
