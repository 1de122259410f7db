"""What a person sees of a long training: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

EVERY_S = 30.0


class StageProgress:
    """Progress of one stage on standard error: step, loss, seconds a step, time left, validation figures."""

    def __init__(self, name: str, steps: int, start: int, quiet: bool = False, unit: str = "step") -> None:
        self.name, self.steps, self.start, self.quiet, self.unit = name, steps, start, quiet, unit
        self.began = self.printed = time.monotonic()
        self.loss: float | None = None
        self.losses = 0
        self.bar = None
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(name, total=steps, completed=start)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.bar:
            self.bar.stop()

    def update(self, step: int, figures: dict[str, float], more: str | None = None) -> None:
        """So many steps are done; the loss, where there is one among the figures, is shown smoothed.

        Args:
            step: steps done.
            figures: of this step.
            more: what to show beside the loss; None: on lines, all other figures.
        """
        loss = figures.get("loss")
        if loss is not None:
            keep = min(0.98, self.losses / (self.losses + 3))  # the first ones are soon forgotten
            self.loss = loss if self.loss is None else keep * self.loss + (1 - keep) * loss
            self.losses += 1
        shown = "" if self.loss is None else f"loss {self.loss:.3f}"
        if self.bar:
            self.bar.update(self.task, completed=step, description=f"{self.name}  {shown}  {more or ''}".rstrip())
        elif not self.quiet and (time.monotonic() - self.printed > EVERY_S or step == self.steps):
            self.printed = time.monotonic()
            each = (self.printed - self.began) / max(1, step - self.start)
            left = each * (self.steps - step) / 60
            rest = (f"{k} {v:.3f}" for k, v in figures.items() if k not in ("loss", "norm", "seconds"))
            parts = " ".join(rest) if more is None else more
            words = [f"{self.name}: {self.unit} {step}/{self.steps}", *([shown] if shown else [])]
            line = ", ".join([*words, f"{each:.2f} s/{self.unit}", f"{left:.0f} min left"])
            print(f"{line} {parts}".rstrip(), file=sys.stderr, flush=True)

    def note(self, step: int, figures: dict[str, float]) -> None:
        if self.quiet:
            return
        line = f"{self.name}: validation at step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items())
        if self.bar:
            self.bar.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)
