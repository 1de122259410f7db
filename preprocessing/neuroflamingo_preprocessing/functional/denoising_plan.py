"""`plan_denoising`: frames to keep, confounds and filters for one run, decided before any voxel is read."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import NeuroFlamingoError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.functional.confounds import (
    Confounds,
    choose,
    find_confounds,
    framewise_displacement,
    read_confounds,
    regressors,
)
from neuroflamingo_preprocessing.functional.denoising import NONE, Denoising

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import ScanSpec

LEAST_LEFT = 10
"""Smallest number of frames kept, and of degrees of freedom left after regression and filtering."""
LOST_WARN, LOST_REFUSE = 0.2, 0.5
"""Shares of scrubbed frames that give a warning, and that are refused. The stringent criterion of Parkes et al. 2018
(NeuroImage 171:415) excludes a run above a fifth; a run that moved in most frames is refused here."""


@dataclass(frozen=True)
class DenoisingPlan:
    """Denoising of one run.

    Attributes:
        options: options of the user.
        kept: indices of the frames kept, counted from `first`.
        first, stop: range of frames that is read; `stop` is excluded.
        seconds: repetition time; None where it is not known.
        columns: names of the confounds that are regressed out.
        regressors: their values over the range, `[frame, column]`; None without confounds.
        displacement: framewise displacement over the range in mm; None where it is not known.
        warnings: for the user.
        record: all of it as plain data, for the metadata.
    """

    options: Denoising
    kept: NDArray[np.intp]
    first: int
    stop: int
    seconds: float | None
    columns: tuple[str, ...]
    regressors: Float64[np.ndarray, "frame column"] | None
    displacement: Float64[np.ndarray, " frame"] | None
    warnings: tuple[str, ...]
    record: dict[str, Any]

    @property
    def changes_values(self) -> bool:
        """True if signals change, beyond frames being left out."""
        return self.regressors is not None or self.options.filters or self.options.detrend

    @property
    def times(self) -> Float64[np.ndarray, " frame"] | None:
        """Time of each frame kept, in seconds from the first one; None where they are evenly spaced."""
        if self.seconds is None or (np.diff(self.kept) == 1).all():
            return None
        return (self.kept - self.kept[0]) * self.seconds

    def clean(self, signals: NDArray[np.floating[Any]]) -> Float32[np.ndarray, "signal frame"]:
        """Denoise signals with `nilearn.signal.clean`.

        The temporal mean of each signal is kept: encoders of volumes read the anatomy in it.

        Args:
            signals: `[signal, frame]` over the range `first` to `stop`.

        Returns:
            `[signal, frame]` over the frames kept.
        """
        if not self.changes_values:
            return signals[:, self.kept].astype(np.float32)
        from nilearn.signal import clean

        inside = signals.T.astype(np.float64)
        whole = len(self.kept) == len(inside)
        level = inside[self.kept].mean(axis=0)
        cleaned = clean(
            inside,
            detrend=self.options.detrend,
            standardize=None,  # the card's own normalisation follows
            sample_mask=None if whole else self.kept.copy(),  # nilearn shifts it in place
            confounds=self.regressors,
            high_pass=self.options.high_pass,
            low_pass=self.options.low_pass,
            t_r=self.seconds,
            butterworth__copy=True,  # else one signal after the other, a hundred times as slow
        )
        cleaned += level - cleaned.mean(axis=0)
        return cleaned.T.astype(np.float32)

    def words(self) -> list[str]:
        """Steps in plain words, one line each."""
        if not self.options:
            return []
        steps = [
            f"frames {self.first} to {self.stop - 1}" + f", {len(self.kept)} of them left" * (self.times is not None)
        ]
        steps += ["detrend"] if self.options.detrend else []
        steps += [f"filter: {self.options.band} left"] if self.options.filters else []
        return steps + ([f"regress out {len(self.columns)} confounds"] if self.columns else [])

    def against(self, spec: ScanSpec) -> list[str]:
        """Warn about a filter that the encoder's card does not declare for its training runs."""
        if not self.options.filters or spec.filtering == "any":
            return []
        says = "says that runs are not filtered" if spec.filtering == "none" else "does not say that runs were filtered"
        return [f"filtered ({self.options.band}), but the encoder's card {says}: it may have seen other frequencies"]


def plan_denoising(options: Denoising, path: Path, name: str, frames: int, seconds: float | None) -> DenoisingPlan:
    """Read the confounds of a run and plan its denoising.

    Where no confounds are asked for, a table that fMRIPrep wrote beside the run serves for framewise displacement only.

    Args:
        options: options of the user.
        path, name: file of the run, and its name in messages.
        frames: number of frames in the file.
        seconds: repetition time.

    Raises:
        NotFoundError, ScanError: no table, or one that does not fit; too few frames or degrees of freedom left.
        UsageError: a filter without a repetition time, or with a cut-off above the Nyquist frequency.
    """
    warnings: list[str] = []
    table = options.table(path)
    confounds = _beside(path, frames, warnings) if table is None else read_confounds(table, frames)
    first, stop, unsteady = _range(options, confounds, frames, name, warnings)
    moved = None if confounds is None else framewise_displacement(confounds)
    displacement = None if moved is None else moved[first:stop]
    kept, scrubbed = _kept(options, displacement, stop - first, name, warnings)
    columns, values = _columns(options, confounds, slice(first, stop), kept, warnings) if table else ((), None)
    _check_filter(options, seconds, name)
    _check_freedom(options, len(kept), len(columns), seconds, name)
    record: dict[str, Any] = {"frames": {"stored": frames, "first": first, "after_last": stop, "left": len(kept)}}
    if unsteady:
        record["frames"]["not_steady"] = unsteady
    if options.scrub_fd is not None:
        record["frames"] |= {"scrubbed": scrubbed, "scrubbed_share": round(scrubbed / (stop - first), 4)}
        record["scrub_fd_mm"] = options.scrub_fd
    if table and confounds:
        record["confounds"] = {"file": confounds.file, "sha256": confounds.sha256, "strategy": list(options.strategy)}
        record["confounds"]["columns"] = list(columns)
    record |= {"high_pass_hz": options.high_pass, "low_pass_hz": options.low_pass, "detrend": options.detrend}
    if values is not None or options.filters or options.detrend:
        record["software"] = f"nilearn {version('nilearn')}, signal.clean; means over time are kept"
    return DenoisingPlan(
        options, kept, first, stop, seconds, columns, values, displacement, tuple(warnings), record if options else {}
    )


def _beside(path: Path, frames: int, warnings: list[str]) -> Confounds | None:
    """Confounds beside a run that the user did not ask for: a fault gives a warning, not an error."""
    try:
        return read_confounds(find_confounds(path), frames)
    except NotFoundError:
        return None
    except NeuroFlamingoError as error:
        warnings.append(f"no framewise displacement: {error.what}" + (f" (seen: {error.seen})" if error.seen else ""))
        return None


def _range(
    options: Denoising, confounds: Confounds | None, frames: int, name: str, warnings: list[str]
) -> tuple[int, int, int]:
    """First frame, the one after the last, and the number of non-steady-state frames that fMRIPrep marked."""
    start, stop = options.frames or (0, None)
    stop = frames if stop is None else stop
    unsteady = 0
    if options.confounds is not None and confounds is not None:
        marked = confounds.non_steady()
        unsteady = int(marked.max()) + 1 if len(marked) else 0
        if unsteady > max(options.drop_first, start):
            warnings.append(f"the first {unsteady} frames are left out: fMRIPrep marks them as non-steady-state")
    first = max(options.drop_first, unsteady, start)
    if stop > frames or stop - first < min(LEAST_LEFT, frames):
        raise ScanError(
            f"{name} has too few frames",
            expected=f"at least {LEAST_LEFT} from frame {first} on"
            + (f" before frame {stop}" if options.frames else ""),
            seen=f"{frames} frames",
            hint="change --frames or --drop-first",
        )
    return first, stop, unsteady


def _kept(
    options: Denoising, displacement: NDArray[np.float64] | None, count: int, name: str, warnings: list[str]
) -> tuple[NDArray[np.intp], int]:
    """Indices of the frames kept within the range, and the number of scrubbed frames."""
    if options.scrub_fd is None:
        return np.arange(count), 0
    if displacement is None:
        raise ScanError(
            f"the motion of {name} is not known",
            expected="trans_x ... rot_z, or framewise_displacement, among the confounds",
            seen="neither",
            hint="leave out --scrub-fd, or give fMRIPrep's confounds",
        )
    kept = np.flatnonzero(displacement <= options.scrub_fd)
    lost = count - len(kept)
    if lost > LOST_REFUSE * count or len(kept) < LEAST_LEFT:
        raise ScanError(
            f"too little of {name} is left",
            expected=f"at least {1 - LOST_REFUSE:.0%} of the frames, and {LEAST_LEFT}, within {options.scrub_fd:g} mm",
            seen=f"{len(kept)} of {count}",
            hint="exclude this run, or raise --scrub-fd",
        )
    if lost:
        words = (
            f"{lost} of {count} frames ({lost / count:.0%}) moved by more than {options.scrub_fd:g} mm and are left out"
        )
        warnings.append(words + ": much motion" * (lost > LOST_WARN * count))
    return kept, lost


def _columns(
    options: Denoising, confounds: Confounds | None, part: slice, kept: NDArray[np.intp], warnings: list[str]
) -> tuple[tuple[str, ...], NDArray[np.float64] | None]:
    """Names and values of the confounds over the range, without constant columns, which give a warning."""
    if confounds is None or options.strategy in ((), NONE):
        return (), None
    names = choose(confounds, options.strategy, filtered=options.high_pass is not None)
    values = regressors(confounds, names)[part]
    spread = np.ptp(values[kept], axis=0)
    flat = spread <= 1e-12 * np.abs(values[kept]).max(axis=0)
    if flat.any():
        gone = [name for name, constant in zip(names, flat, strict=True) if constant]
        warnings.append(
            f"{len(gone)} confounds are constant and are not used: {', '.join(gone[:5])}" + ", ..." * (len(gone) > 5)
        )
    left = tuple(name for name, constant in zip(names, flat, strict=True) if not constant)
    return left, values[:, ~flat] if left else None


def _check_filter(options: Denoising, seconds: float | None, name: str) -> None:
    if not options.filters:
        return
    if seconds is None:
        raise UsageError(
            f"the repetition time of {name} is not known, and a filter needs it", hint="give it in seconds: --tr"
        )
    highest = 0.5 / seconds
    if max(options.high_pass or 0, options.low_pass or 0) >= highest:
        raise UsageError(
            f"{name} has no signal at these frequencies",
            expected=f"--high-pass and --low-pass below {highest:.4g} Hz, the Nyquist frequency at {seconds:g} s",
            seen=options.band,
            hint="give a lower cut-off, or leave out the filter",
        )


def _check_freedom(options: Denoising, frames: int, columns: int, seconds: float | None, name: str) -> None:
    """Refuse regression and filtering that leave too few degrees of freedom.

    A filter leaves the share of the frequencies that it passes; each confound and the trend take one degree.
    """
    share = 1.0
    if options.filters and seconds is not None:
        highest = 0.5 / seconds
        share = ((options.low_pass or highest) - (options.high_pass or 0.0)) / highest
    left = frames * share - columns - options.detrend - 1
    if (columns or options.filters) and left < LEAST_LEFT:
        raise ScanError(
            f"{name} is too short for so many confounds",
            expected=f"at least {LEAST_LEFT} degrees of freedom left",
            seen=f"{frames} frames, of which the filter leaves {share:.0%}, and {columns} confounds",
            hint="choose fewer confounds or a wider filter",
        )
