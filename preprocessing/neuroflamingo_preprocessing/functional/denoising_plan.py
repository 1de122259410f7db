"""`plan_denoising`: what is done to the frames of one run, decided before; regression and filters are nilearn's."""

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
"""Frames that must be left, and degrees of freedom after all regressors and filters."""
LOST_WARN, LOST_REFUSE = 0.2, 0.5
"""Shares of scrubbed frames. Above a fifth a run is excluded by the stringent rule of Parkes et al. 2018 (NeuroImage
171:415); a run that mostly moved is refused here."""


@dataclass(frozen=True)
class DenoisingPlan:
    """What is done to the frames of one run.

    Attributes:
        wanted: by the user.
        kept: numbers of the frames that are left, counted from `first`.
        first, stop: the range of frames that is read.
        seconds: between frames; None where that is not known.
        columns: confounds that are regressed out.
        regressors: their values over the range, `[frame, column]`; None for none.
        displacement: framewise displacement over the range in mm; None where it is not known.
        warnings, about: what was odd, and the record, as plain data.
    """

    wanted: Denoising
    kept: NDArray[np.intp]
    first: int
    stop: int
    seconds: float | None
    columns: tuple[str, ...]
    regressors: Float64[np.ndarray, "frame column"] | None
    displacement: Float64[np.ndarray, " frame"] | None
    warnings: tuple[str, ...]
    about: dict[str, Any]

    @property
    def changes_values(self) -> bool:
        """Whether more is done than leaving frames out."""
        return self.regressors is not None or self.wanted.filters or self.wanted.detrend

    @property
    def times(self) -> Float64[np.ndarray, " frame"] | None:
        """Seconds of each frame that is left, from the first one; None where they are evenly spaced."""
        if self.seconds is None or (np.diff(self.kept) == 1).all():
            return None
        return (self.kept - self.kept[0]) * self.seconds

    def clean(self, signals: NDArray[np.floating[Any]]) -> Float32[np.ndarray, "signal frame"]:
        """Signals `[signal, frame]` over the range to those over the frames that are left, by `nilearn.signal.clean`.

        The mean over time of each signal stays what it was: encoders of volumes read the anatomy in it.
        """
        if not self.changes_values:
            return signals[:, self.kept].astype(np.float32)
        from nilearn.signal import clean

        inside = signals.T.astype(np.float64)
        whole = len(self.kept) == len(inside)
        level = inside[self.kept].mean(axis=0)
        cleaned = clean(
            inside,
            detrend=self.wanted.detrend,
            standardize=None,  # the card's own normalisation follows
            sample_mask=None if whole else self.kept.copy(),  # nilearn shifts it in place
            confounds=self.regressors,
            high_pass=self.wanted.high_pass,
            low_pass=self.wanted.low_pass,
            t_r=self.seconds,
            butterworth__copy=True,  # else one signal after the other, a hundred times as slow
        )
        cleaned += level - cleaned.mean(axis=0)
        return cleaned.T.astype(np.float32)

    def words(self) -> list[str]:
        """The steps, for people."""
        if not self.wanted:
            return []
        said = [
            f"frames {self.first} to {self.stop - 1}" + f", {len(self.kept)} of them left" * (self.times is not None)
        ]
        said += ["detrend"] if self.wanted.detrend else []
        said += [f"filter: {self.wanted.band} left"] if self.wanted.filters else []
        return said + ([f"regress out {len(self.columns)} confounds"] if self.columns else [])

    def against(self, spec: ScanSpec) -> list[str]:
        """Warnings where this is not what the encoder's card says of its runs."""
        if not self.wanted.filters or spec.filtering == "any":
            return []
        says = "says that runs are not filtered" if spec.filtering == "none" else "does not say that runs were filtered"
        return [f"filtered ({self.wanted.band}), but the encoder's card {says}: it may have seen other frequencies"]


def plan_denoising(wanted: Denoising, path: Path, name: str, frames: int, seconds: float | None) -> DenoisingPlan:
    """Read the confounds of a run and decide what is done to its frames.

    Without confounds asked for, those that fMRIPrep put beside the run are used for framewise displacement only.

    Args:
        wanted: by the user.
        path, name: of the run.
        frames: in the file.
        seconds: between frames.

    Raises:
        NotFoundError, ScanError: no table, or one that does not fit; too few frames or degrees of freedom left.
        UsageError: a filter without a repetition time, or above half its frequency.
    """
    said: list[str] = []
    table = wanted.table(path)
    confounds = _beside(path, frames, said) if table is None else read_confounds(table, frames)
    first, stop, unsteady = _range(wanted, confounds, frames, name, said)
    moved = None if confounds is None else framewise_displacement(confounds)
    displacement = None if moved is None else moved[first:stop]
    kept, scrubbed = _kept(wanted, displacement, stop - first, name, said)
    columns, values = _columns(wanted, confounds, slice(first, stop), kept, said) if table else ((), None)
    _check_filter(wanted, seconds, name)
    _check_freedom(wanted, len(kept), len(columns), seconds, name)
    about: dict[str, Any] = {"frames": {"stored": frames, "first": first, "after_last": stop, "left": len(kept)}}
    if unsteady:
        about["frames"]["not_steady"] = unsteady
    if wanted.scrub_fd is not None:
        about["frames"] |= {"scrubbed": scrubbed, "scrubbed_share": round(scrubbed / (stop - first), 4)}
        about["scrub_fd_mm"] = wanted.scrub_fd
    if table and confounds:
        about["confounds"] = {"file": confounds.file, "sha256": confounds.sha256, "strategy": list(wanted.strategy)}
        about["confounds"]["columns"] = list(columns)
    about |= {"high_pass_hz": wanted.high_pass, "low_pass_hz": wanted.low_pass, "detrend": wanted.detrend}
    if values is not None or wanted.filters or wanted.detrend:
        about["software"] = f"nilearn {version('nilearn')}, signal.clean; means over time are kept"
    return DenoisingPlan(
        wanted, kept, first, stop, seconds, columns, values, displacement, tuple(said), about if wanted else {}
    )


def _beside(path: Path, frames: int, said: list[str]) -> Confounds | None:
    """A table that nobody asked for: what is wrong with it is told, not refused."""
    try:
        return read_confounds(find_confounds(path), frames)
    except NotFoundError:
        return None
    except NeuroFlamingoError as error:
        said.append(f"no framewise displacement: {error.what}" + (f" (seen: {error.seen})" if error.seen else ""))
        return None


def _range(
    wanted: Denoising, confounds: Confounds | None, frames: int, name: str, said: list[str]
) -> tuple[int, int, int]:
    """First frame, the one after the last, and how many fMRIPrep marked at the beginning."""
    start, stop = wanted.frames or (0, None)
    stop = frames if stop is None else stop
    unsteady = 0
    if wanted.confounds is not None and confounds is not None:
        marked = confounds.non_steady()
        unsteady = int(marked.max()) + 1 if len(marked) else 0
        if unsteady > max(wanted.drop_first, start):
            said.append(f"the first {unsteady} frames are left out: fMRIPrep marks them as not steady")
    first = max(wanted.drop_first, unsteady, start)
    if stop > frames or stop - first < min(LEAST_LEFT, frames):
        raise ScanError(
            f"{name} has too few frames",
            expected=f"at least {LEAST_LEFT} from frame {first} on"
            + (f" before frame {stop}" if wanted.frames else ""),
            seen=f"{frames} frames",
            hint="change --frames or --drop-first",
        )
    return first, stop, unsteady


def _kept(
    wanted: Denoising, displacement: NDArray[np.float64] | None, count: int, name: str, said: list[str]
) -> tuple[NDArray[np.intp], int]:
    """Numbers of the frames within the range that are left, and how many were scrubbed."""
    if wanted.scrub_fd is None:
        return np.arange(count), 0
    if displacement is None:
        raise ScanError(
            f"the motion of {name} is not known",
            expected="trans_x ... rot_z, or framewise_displacement, among the confounds",
            seen="neither",
            hint="leave --scrub-fd out, or give fMRIPrep's confounds",
        )
    kept = np.flatnonzero(displacement <= wanted.scrub_fd)
    lost = count - len(kept)
    if lost > LOST_REFUSE * count or len(kept) < LEAST_LEFT:
        raise ScanError(
            f"too little of {name} is left",
            expected=f"at least {1 - LOST_REFUSE:.0%} of the frames, and {LEAST_LEFT}, within {wanted.scrub_fd:g} mm",
            seen=f"{len(kept)} of {count}",
            hint="leave this run out, or take a larger --scrub-fd",
        )
    if lost:
        words = (
            f"{lost} of {count} frames ({lost / count:.0%}) moved by more than {wanted.scrub_fd:g} mm and are left out"
        )
        said.append(words + ": much motion" * (lost > LOST_WARN * count))
    return kept, lost


def _columns(
    wanted: Denoising, confounds: Confounds | None, part: slice, kept: NDArray[np.intp], said: list[str]
) -> tuple[tuple[str, ...], NDArray[np.float64] | None]:
    """Names and values over the range; columns that are constant there carry nothing and are told."""
    if confounds is None or wanted.strategy in ((), NONE):
        return (), None
    names = choose(confounds, wanted.strategy, filtered=wanted.high_pass is not None)
    values = regressors(confounds, names)[part]
    spread = np.ptp(values[kept], axis=0)
    flat = spread <= 1e-12 * np.abs(values[kept]).max(axis=0)
    if flat.any():
        gone = [name for name, constant in zip(names, flat, strict=True) if constant]
        said.append(
            f"{len(gone)} confounds are constant and are not used: {', '.join(gone[:5])}" + ", ..." * (len(gone) > 5)
        )
    left = tuple(name for name, constant in zip(names, flat, strict=True) if not constant)
    return left, values[:, ~flat] if left else None


def _check_filter(wanted: Denoising, seconds: float | None, name: str) -> None:
    if not wanted.filters:
        return
    if seconds is None:
        raise UsageError(
            f"the repetition time of {name} is not known, and a filter needs it", hint="give it in seconds: --tr"
        )
    highest = 0.5 / seconds
    if max(wanted.high_pass or 0, wanted.low_pass or 0) >= highest:
        raise UsageError(
            f"{name} has no such frequencies",
            expected=f"--high-pass and --low-pass below {highest:.4g} Hz, half of one frame in {seconds:g} s",
            seen=wanted.band,
            hint="take a lower frequency, or leave the filter out",
        )


def _check_freedom(wanted: Denoising, frames: int, columns: int, seconds: float | None, name: str) -> None:
    """Refuse to regress and filter until nothing is left."""
    share = 1.0
    if wanted.filters and seconds is not None:
        highest = 0.5 / seconds
        share = ((wanted.low_pass or highest) - (wanted.high_pass or 0.0)) / highest
    left = frames * share - columns - wanted.detrend - 1
    if (columns or wanted.filters) and left < LEAST_LEFT:
        raise ScanError(
            f"{name} is too short for so many confounds",
            expected=f"{LEAST_LEFT} degrees of freedom left, or more",
            seen=f"{frames} frames, of which the filter leaves {share:.0%}, and {columns} confounds",
            hint="choose fewer confounds or a wider filter",
        )
