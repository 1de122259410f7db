"""`Denoising`: options for frames to leave out, confound regression, temporal filtering and scrubbing."""

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
    """Denoising options for fMRI runs; the default does nothing.

    Attributes:
        confounds: confound table, or `auto` for the one that fMRIPrep wrote beside each run.
        strategy: sets of confounds or column names, see `confounds.choose`; `("none",)` regresses nothing out.
        high_pass, low_pass: cut-off frequencies in Hz of a fifth-order Butterworth filter, applied forwards and
            backwards.
        detrend: remove a linear trend.
        drop_first: number of initial frames to leave out; with confounds, non-steady-state frames marked by fMRIPrep
            are left out as well.
        frames: first frame, and the one after the last (None: the end), counted from 0.
        scrub_fd: leave out frames with a framewise displacement above this, in mm.

    Raises:
        UsageError: options that contradict each other; see also `check_table`.
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
                "a confound table, but no --confound-strategy",
                expected="--confound-strategy with a set (6p, 24p, 36p, acompcor, ...) or column names",
                hint="--confound-strategy none uses the table for frames and motion only",
            )
        for name, hertz in (("--high-pass", self.high_pass), ("--low-pass", self.low_pass)):
            if hertz is not None and not (np.isfinite(hertz) and hertz > 0):
                raise UsageError(f"{name} is not a frequency", expected="a number of Hz above 0", seen=f"{hertz}")
        if self.high_pass is not None and self.low_pass is not None and self.high_pass >= self.low_pass:
            raise UsageError(
                "the band-pass filter passes nothing", expected="--high-pass below --low-pass", seen=self.band
            )
        first, stop = self.frames or (0, None)
        if self.drop_first < 0 or first < 0 or (stop is not None and stop <= first):
            raise UsageError(
                "the range of frames is not valid",
                expected="--frames FIRST:AFTER, counted from 0, FIRST below AFTER",
                seen=f"{self.frames or self.drop_first}",
            )
        if self.scrub_fd is not None and not self.scrub_fd > 0:
            raise UsageError("--scrub-fd is not a distance", expected="millimetres above 0", seen=f"{self.scrub_fd}")

    def __bool__(self) -> bool:
        return self != Denoising()

    def check_table(self) -> None:
        """Refuse a strategy or scrubbing without a confound table.

        Not checked on construction, because the table may be named per run in a manifest.

        Raises:
            UsageError: a strategy or scrubbing without confounds.
        """
        if self.confounds is None and (self.strategy not in ((), NONE) or self.scrub_fd is not None):
            raise UsageError(
                "regression and scrubbing need a confound table",
                expected="--confounds FILE.tsv, --confounds auto for fMRIPrep's table beside the run, or `confounds` "
                "in the manifest",
                hint="add it, or leave out --confound-strategy and --scrub-fd",
            )

    @property
    def filters(self) -> bool:
        """True if a temporal filter is applied."""
        return self.high_pass is not None or self.low_pass is not None

    @property
    def changes_values(self) -> bool:
        """True if signals change, beyond frames being left out; a plan may still find nothing to regress out."""
        return self.filters or self.detrend or self.strategy not in ((), NONE)

    @property
    def band(self) -> str:
        """Pass band in words: `0.01 to 0.1 Hz`."""
        low = "0" if self.high_pass is None else f"{self.high_pass:g}"
        return f"{low} Hz and above" if self.low_pass is None else f"{low} to {self.low_pass:g} Hz"

    @property
    def one_table(self) -> bool:
        """True if a single table is given, which can belong to one run only."""
        return self.confounds is not None and self.confounds != AUTO

    def anywhere(self) -> Denoising:
        """Copy with an absolute path to the confound table, for workers with another working directory."""
        return replace(self, confounds=Path(self.confounds).absolute()) if self.one_table else self  # type: ignore[arg-type]

    def table(self, run: Path) -> Path | None:
        """Path of the confound table of a run, None without confounds.

        Raises:
            UsageError: see `check_table`.
            NotFoundError: no table beside the run.
        """
        self.check_table()
        if self.confounds == AUTO:
            return find_confounds(run)
        return None if self.confounds is None else Path(self.confounds)

    def changes(self, run: Path | None) -> dict[str, Any]:
        """Options that differ from the default, as plain data: part of the key of a prepared run in a store.

        A table enters by the hash of its content, so that a renamed table gives the same key.

        Raises:
            NotFoundError: no table beside the run.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        table = None if run is None else self.table(run)
        if table is None:
            return plain
        files = [file for file in (table, component_file(table)) if file.is_file()]
        return plain | {"confounds": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]}
