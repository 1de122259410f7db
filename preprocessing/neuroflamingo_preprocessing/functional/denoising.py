"""`Denoising`: which frames of runs a user wants left out, and what is to be taken out of the others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.functional.confounds import component_file, find_confounds

AUTO = "auto"
NONE = ("none",)


@dataclass(frozen=True)
class Denoising:
    """What a user wants done to the frames of runs; by default nothing.

    Attributes:
        confounds: a table, or `auto` for the one that fMRIPrep put beside each run.
        strategy: sets or columns of it, see `confounds.choose`; `("none",)` regresses nothing out.
        high_pass, low_pass: in Hz, a Butterworth filter of order 5, forwards and backwards.
        detrend: take a straight line out.
        drop_first: frames at the beginning to leave out; with confounds, those that fMRIPrep marks as not steady too.
        frames: first frame, and the one after the last (None: the end), counted from 0.
        scrub_fd: leave out frames whose framewise displacement is larger, in mm.

    Raises:
        UsageError: wishes that contradict each other; see also `check_table`.
    """

    confounds: str | Path | None = None
    strategy: tuple[str, ...] = ()
    high_pass: float | None = None
    low_pass: float | None = None
    detrend: bool = False
    drop_first: int = 0
    frames: tuple[int, int | None] | None = None
    scrub_fd: float | None = None

    def __post_init__(self) -> None:
        if self.confounds is not None and not self.strategy and self.scrub_fd is None:
            raise UsageError(
                "which confounds?",
                expected="--confound-strategy with a set (6p, 24p, 36p, acompcor, ...) or columns by name",
                hint="--confound-strategy none uses the table for frames and motion only",
            )
        for name, hertz in (("--high-pass", self.high_pass), ("--low-pass", self.low_pass)):
            if hertz is not None and not (np.isfinite(hertz) and hertz > 0):
                raise UsageError(f"{name} is no frequency", expected="Hz above 0", seen=f"{hertz}")
        if self.high_pass is not None and self.low_pass is not None and self.high_pass >= self.low_pass:
            raise UsageError("the filter passes nothing", expected="--high-pass below --low-pass", seen=self.band)
        first, stop = self.frames or (0, None)
        if self.drop_first < 0 or first < 0 or (stop is not None and stop <= first):
            raise UsageError(
                "no such frames",
                expected="counts from 0, --frames FIRST:AFTER",
                seen=f"{self.frames or self.drop_first}",
            )
        if self.scrub_fd is not None and not self.scrub_fd > 0:
            raise UsageError("--scrub-fd is no distance", expected="millimetres above 0", seen=f"{self.scrub_fd}")

    def __bool__(self) -> bool:
        return self != Denoising()

    def check_table(self) -> None:
        """Refuse columns or motion of no table: not known before the inputs are, as a manifest may name the tables.

        Raises:
            UsageError: a strategy or scrubbing without confounds.
        """
        if self.confounds is None and (self.strategy not in ((), NONE) or self.scrub_fd is not None):
            raise UsageError(
                "no confounds to take columns or motion from",
                expected="--confounds FILE.tsv, --confounds auto for fMRIPrep's beside the run, or `confounds` in a "
                "manifest's line",
                hint="add it, or leave --confound-strategy and --scrub-fd out",
            )

    @property
    def filters(self) -> bool:
        """Whether frequencies are taken out."""
        return self.high_pass is not None or self.low_pass is not None

    @property
    def changes_values(self) -> bool:
        """Whether more is wanted than leaving frames out; a plan may still find nothing to regress out."""
        return self.filters or self.detrend or self.strategy not in ((), NONE)

    @property
    def band(self) -> str:
        """What the filter passes, in words."""
        low = "0" if self.high_pass is None else f"{self.high_pass:g}"
        return f"{low} Hz and more" if self.low_pass is None else f"{low} to {self.low_pass:g} Hz"

    @property
    def one_table(self) -> bool:
        """Whether the confounds are those of one run."""
        return self.confounds is not None and self.confounds != AUTO

    def anywhere(self) -> Denoising:
        """With a path that a worker in another folder finds too."""
        return replace(self, confounds=Path(self.confounds).absolute()) if self.one_table else self  # type: ignore[arg-type]

    def table(self, run: Path) -> Path | None:
        """The confound table for a run; None if none is used.

        Raises:
            UsageError: see `check_table`.
            NotFoundError: there is none beside the run.
        """
        self.check_table()
        if self.confounds == AUTO:
            return find_confounds(run)
        return None if self.confounds is None else Path(self.confounds)

    def changes(self, run: Path | None) -> dict[str, Any]:
        """All that makes a difference to what is prepared, as plain data: part of its address in a store.

        Raises:
            NotFoundError: there is no table.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        table = None if run is None else self.table(run)
        if table is None:
            return plain
        files = [file for file in (table, component_file(table)) if file.is_file()]
        return plain | {"confounds": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]}
