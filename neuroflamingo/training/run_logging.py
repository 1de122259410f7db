"""Logging of a run: one line of JSON per step, accelerate's trackers, and a progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from neuroflamingo.training.run_progress import NOT_USED, StageProgress
from neuroflamingo_preprocessing.files import write_text_atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.training.task import Plan


class Telling:
    """Log, trackers and progress of one run; only the first process writes.

    Args:
        folder: folder of `log.jsonl`; lines of steps that will be repeated are removed first.
        plan: has the name, the number of steps and the logging interval.
        accelerator: has the trackers and tells which process this is.
        step: optimiser steps already done.
        quiet: nothing on standard error.
    """

    def __init__(self, folder: Path, plan: Plan, accelerator: Accelerator, step: int, quiet: bool) -> None:
        self.accelerator, self.every, self.steps = accelerator, plan.log.every, plan.optim.steps
        self.main = accelerator.is_main_process
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        self.trackers = bool(plan.log.trackers)
        if self.main:
            cut_log(self.path, step)
        if self.trackers:
            accelerator.init_trackers(plan.name)
        self.progress = StageProgress(plan.name, plan.optim.steps, quiet=quiet or not self.main)

    def __enter__(self) -> Self:
        self.log = self.path.open("a", encoding="utf-8") if self.main else None
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        if self.log:
            self.log.close()
        if self.trackers:
            self.accelerator.end_training()

    def step(self, step: int, figures: dict[str, float], validation: dict[str, float]) -> None:
        """Log an optimiser step, with the figures of the validation after it, if there was one."""
        shown = (
            f"{figures['tokens_per_s']:,.0f} tokens/s" * bool(figures["tokens_per_s"]),
            f"{figures['scans_per_s']:.1f} scans/s" * bool(figures["scans_per_s"]),
            f"data wait {100 * figures['data_wait']:.0f} %",
            f"{figures['memory_mb'] / 1024:.1f} GB",
        )
        self.progress.update(step, figures, " · ".join(filter(None, shown)))
        if validation:
            self.progress.validated(step, validation)
        if step % self.every and not validation and step != self.steps:
            return
        said: dict[str, Any] = figures | {f"validation_{key}": value for key, value in validation.items()}
        warning = {"warning": NOT_USED} if validation.get("reliance") == 0 else {}
        if self.log:
            self.log.write(json.dumps({"step": step, "time": round(time.time(), 3)} | said | warning) + "\n")
            self.log.flush()
        if self.trackers:
            self.accelerator.log(said, step=step)


def cut_log(path: Path, step: int) -> None:
    """Keep only the lines up to this step; later steps will be repeated."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (done := _step_of(line)) is not None and done <= step]
    if len(kept) != len(lines):
        write_text_atomic(path, "".join(f"{line}\n" for line in kept), overwrite=True)


def _step_of(line: str) -> int | None:
    """Read the step of a line; None for a truncated line."""
    try:
        said: Any = json.loads(line)
    except json.JSONDecodeError:
        return None
    return said["step"] if isinstance(said, dict) else None
