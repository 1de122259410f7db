"""`prepare_series`: prepare a parcel series for an encoder (repetition time, normalisation, windows)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.files import load_json, write_text_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import ScanSpec, Step

LEAST_FRAMES = 10
"""Shortest run: fewer frames give no usable statistics."""
PARCELS_AT_ONCE = 32
FLAT = 1e-6
"""A parcel is constant if its spread is at most this share of the median parcel's."""

Series = Float32[np.ndarray, "parcel frame"]
Times = Float64[np.ndarray, " frame"] | None
Line = tuple[Float64[np.ndarray, "parcel 1"], Float64[np.ndarray, "parcel 1"]]
"""Gain and offset of each parcel: every normalisation here is linear."""


@dataclass(frozen=True)
class Window:
    """Window of a run, of the length that the encoder takes.

    Attributes:
        tensor: float32, the axes of the card.
        first_frame: index in the run (after resampling in time), from 0.
        frames: number of frames with data; the others are padding.
    """

    tensor: NDArray[np.float32]
    first_frame: int
    frames: int


@dataclass(frozen=True)
class RobustScaling:
    """Centre and spread of each parcel over a training set: what `robust_fixed` divides by.

    Attributes:
        median, spread: median and inter-quartile range of each parcel, after its mean in each run is subtracted.
        runs, frames: numbers of runs and frames they were fitted on.
    """

    median: NDArray[np.float64]
    spread: NDArray[np.float64]
    runs: int
    frames: int

    @classmethod
    def fit(cls, series: Iterable[Series]) -> RobustScaling:
        """Fit over all frames of all runs; values that are exactly 0 (parcels without data) are left out.

        Args:
            series: parcel series `[parcel, frame]`, one for each run.

        Raises:
            UsageError: no series, or series of different atlases.
        """
        parts = [np.asarray(each, np.float32) for each in series]
        if not parts or len({len(part) for part in parts}) != 1:
            raise UsageError(
                "a scaling cannot be fitted",
                expected="at least one parcel series, all of one atlas",
                seen=", ".join(str(len(part)) for part in parts[:5]) or "none",
            )
        quartiles = []
        for first in range(0, len(parts[0]), PARCELS_AT_ONCE):  # thousands of runs fit in memory only once
            some = [part[first : first + PARCELS_AT_ONCE].astype(np.float64) for part in parts]
            pooled = np.concatenate([each - each.mean(axis=1, keepdims=True) for each in some], axis=1)
            quartiles.append(_quartiles(pooled))
        low, middle, high = (np.concatenate(each) for each in zip(*quartiles, strict=True))
        return cls(middle, high - low, len(parts), sum(part.shape[1] for part in parts))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the scaling as JSON."""
        plain = {"median": self.median.tolist(), "spread": self.spread.tolist()}
        plain |= {"format": "neuroflamingo-robust-scaling", "runs": self.runs, "frames": self.frames}
        write_text_atomic(path, json.dumps(plain) + "\n", overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> RobustScaling:
        """Read a scaling that `save` wrote.

        Raises:
            NotFoundError: no such file.
            ScanError: not a scaling (exit 65).
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"there is no file {path}", expected="a scaling, as JSON", hint="check the path")
        try:
            plain = load_json(path)
            median, spread = (np.array(plain[key], dtype=np.float64) for key in ("median", "spread"))
            if median.ndim != 1 or median.shape != spread.shape or not np.isfinite([median, spread]).all():
                raise ValueError("median and spread are not finite numbers of equal length")
            return cls(median, spread, int(plain["runs"]), int(plain["frames"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ScanError(
                f"{path.name} is not a scaling", expected="JSON that RobustScaling.save wrote", seen=repr(error)[:200]
            ) from error


def prepare_series(
    series: Series,
    seconds: float | None,
    spec: ScanSpec,
    name: str,
    scaling: RobustScaling | None = None,
    times: Times = None,
) -> tuple[Iterator[Window], list[str]]:
    """Prepare a parcel series for an encoder: the windows, and warnings.

    The series is resampled to the declared repetition time, normalised as the card's steps say (with statistics of the
    whole run) and cut into consecutive windows. Frames left at the end are dropped; a run shorter than one window is
    padded with each parcel's mean.

    Args:
        series: `[parcel, frame]`, finite.
        seconds: repetition time.
        spec: `card.scan` of the encoder.
        name: name of the run, for messages.
        scaling: fitted on a training set, for `robust_fixed`; None: the run's own quartiles.
        times: time of each frame in seconds from the first, where frames in between were left out.

    Raises:
        ScanError: another number of parcels, too few frames, a repetition time that the card refuses (exit 65).
        UsageError: the repetition time is needed and not known; a scaling that the card does not use.
        ModelError: an unknown step in the card (exit 65).
    """
    series, warnings = at_repetition_time(series, seconds, spec, name, times)
    time = next(axis for axis in spec.axes if axis.name == "time")
    gain, offset = _line(series, spec, name, scaling, warnings)
    length = time.size or series.shape[1]
    padded = _padded(series, length, warnings)
    count = max(1, series.shape[1] // length)
    left = series.shape[1] - count * length
    if left > 0:
        warnings.append(f"the last {left} frames do not fill a window of {length} and are left out")

    def windows() -> Iterator[Window]:
        for first in range(0, count * length, length):
            piece = padded[:, first : first + length]
            yield Window((piece * gain + offset).astype(np.float32), first, min(length, series.shape[1] - first))

    return windows(), warnings


def at_repetition_time(
    series: Series, seconds: float | None, spec: ScanSpec, name: str, times: Times = None
) -> tuple[Series, list[str]]:
    """Resample a parcel series to the card's repetition time, before any normalisation; also gives warnings.

    Raises:
        ScanError, UsageError, ModelError: see `prepare_series`.
    """
    parcels, time = (next((a for a in spec.axes if a.name == wanted), None) for wanted in ("parcel", "time"))
    if parcels is None or time is None or spec.modality != "parcels":
        raise ModelError("this encoder does not take parcel series", seen=spec.describe(), exit_code=65)
    if not parcels.accepts(len(series)):
        raise ScanError(
            f"{name} does not have the encoder's number of parcels",
            expected=parcels.describe() + (f" of {spec.parcellation.identifier}" if spec.parcellation else ""),
            seen=str(len(series)),
            hint="use the atlas that the encoder's card names",
        )
    if series.shape[1] < max(LEAST_FRAMES, 2):
        raise ScanError(f"{name} is too short", expected=f"{LEAST_FRAMES} frames or more", seen=str(series.shape[1]))
    warnings: list[str] = []
    target = target_seconds(seconds, spec, name, warnings)
    if target is not None and seconds is not None:
        series = resample_in_time(series, seconds, target, times)
    return series, warnings


def target_seconds(seconds: float | None, spec: ScanSpec, name: str, warnings: list[str]) -> float | None:
    """Repetition time to resample to, in seconds; None where no resampling is needed.

    Args:
        seconds: repetition time of the run.
        spec: `card.scan` of the encoder.
        name: name of the run, for messages.
        warnings: extended in place.

    Raises:
        UsageError: the encoder asks for a repetition time and none is known.
        ScanError: another repetition time, and the card says to refuse it.
    """
    wanted = spec.repetition_time
    if wanted is None:
        return None
    if seconds is None:
        raise UsageError(
            f"the repetition time of {name} is not known",
            expected=f"{wanted.seconds} s within {wanted.tolerance} s, else {wanted.policy.replace('_', ' ')}",
            hint=f"--tr {wanted.seconds}, if that is the repetition time of the run",
        )
    if abs(seconds - wanted.seconds) <= wanted.tolerance:
        return None
    if wanted.policy == "as_is":
        warnings.append(f"repetition time {seconds:g} s, the encoder was trained on {wanted.seconds} s")
        return None
    if wanted.policy == "refuse":
        raise ScanError(
            f"{name} does not have the encoder's repetition time",
            expected=f"{wanted.seconds} s within {wanted.tolerance} s",
            seen=f"{seconds:g} s",
            hint=f"resample it to {wanted.seconds} s first",
        )
    warnings.append(f"resampled in time from {seconds:g} s to {wanted.seconds} s between frames, linearly")
    return wanted.seconds


def resample_in_time(
    values: NDArray[np.float32], seconds: float, target: float, times: Times = None
) -> NDArray[np.float32]:
    """Interpolate linearly along the last axis; the first frame stays in place, nothing is extrapolated.

    Args:
        values: `[..., frame]`.
        seconds, target: repetition time before and after.
        times: time of each frame in seconds from the first, where they are not evenly spaced.
    """
    before, share = interpolation(values.shape[-1], seconds, target, times)
    after = np.minimum(before + 1, values.shape[-1] - 1)
    out = np.take(values, after, axis=-1)
    earlier = np.take(values, before, axis=-1)
    out -= earlier
    out *= share
    out += earlier
    return out


def interpolation(
    frames: int, seconds: float, target: float, times: Times = None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each resampled frame, the index of the source frame before it, and the weight (0 to 1) of the next one."""
    here = np.arange(frames) * seconds if times is None else times
    at = np.arange(math.floor(here[-1] / target + 1e-9) + 1) * target
    before = np.clip(np.searchsorted(here, at + 1e-9 * seconds, side="right") - 1, 0, max(frames - 2, 0))
    gap = here[np.minimum(before + 1, frames - 1)] - here[before]
    share = np.clip((at - here[before]) / np.where(gap > 0, gap, 1.0), 0.0, 1.0)
    return before, share.astype(np.float32)


def check_series_spec(spec: ScanSpec) -> Step | None:
    """Normalisation step of a card of parcel series, None if it names none.

    Raises:
        ModelError: steps that this version does not know (exit 65).
    """
    steps = [step for step in spec.steps if step.name != "parcel_mean"]
    if len(steps) > 1 or any(step.name not in NORMALISATIONS for step in steps):
        raise ModelError(
            "this encoder asks for unknown steps",
            expected=f"parcel_mean, then at most one of {', '.join(NORMALISATIONS)}",
            seen=", ".join(step.name for step in spec.steps),
            hint="correct the steps in the encoder's card",
            exit_code=65,
        )
    return steps[0] if steps else None


def _padded(series: Series, length: int, warnings: list[str]) -> Series:
    """Pad a short series to one window with each parcel's mean."""
    missing = length - series.shape[1]
    if missing <= 0:
        return series
    warnings.append(f"the run has {series.shape[1]} frames; {missing} were padded with each parcel's mean")
    means = series.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    return np.concatenate([series, np.repeat(means, missing, axis=1)], axis=1)


def _line(series: Series, spec: ScanSpec, name: str, scaling: RobustScaling | None, warnings: list[str]) -> Line:
    """Gain and offset of the card's normalisation for this run; both 0 for constant parcels."""
    step = check_series_spec(spec)
    if scaling is not None and (step is None or not step.name.startswith("robust")):
        raise UsageError("this encoder's normalisation takes no scaling", hint="leave out --scaling")
    if step is None:
        return np.ones((len(series), 1)), np.zeros((len(series), 1))
    if scaling is not None and len(scaling.median) != len(series):
        raise UsageError(
            "the scaling was fitted on another atlas", expected=f"{len(series)} parcels", seen=str(len(scaling.median))
        )
    if scaling is None and step.name.startswith("robust"):
        warnings.append("scaled by the run's own quartiles: no scaling fitted on a training set was given")
    gain, offset, flat = NORMALISATIONS[step.name](series.astype(np.float64), step, scaling)
    if flat.all():
        raise ScanError(
            f"{name} is constant", expected="a signal that changes over time", seen="no change in any parcel"
        )
    if flat.any():
        warnings.append(f"{int(flat.sum())} parcels are constant and were set to 0")
    return np.where(flat, 0.0, gain), np.where(flat, 0.0, offset)


def _quartiles(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Quartiles of each row over its values that are not exactly 0; 0 for a row without any."""
    masked = np.where(values == 0, np.nan, values)
    masked[np.isnan(masked).all(axis=1)] = 0.0
    low, middle, high = np.nanpercentile(masked, (25, 50, 75), axis=1)
    return low, middle, high


def _flat(spread: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Constant parcels, against the spread of the median parcel: series have no common unit."""
    known = spread[spread > 0]
    return spread <= FLAT * (np.median(known) if len(known) else 1.0)


Factors: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]"
"""Gain and offset of each parcel, and a mask of the constant parcels."""


def _robust(series: NDArray[np.float64], step: Step, scaling: RobustScaling | None) -> Factors:
    """BrainLM's scaler as intended: subtract the run's mean and the median, divide by the inter-quartile range."""
    mean, median, spread = _robust_parts(series, scaling)
    flat = _flat(spread)
    gain = _gain(step) / np.where(flat, 1.0, spread)
    return gain, -(mean + median) * gain, flat


def _robust_as_published(series: NDArray[np.float64], step: Step, scaling: RobustScaling | None) -> Factors:
    """BrainLM's scaler as its published code computes it: the median alone is divided by the range, not the series."""
    mean, median, spread = _robust_parts(series, scaling)
    flat = _flat(spread)
    gain = np.full_like(mean, _gain(step))
    return gain, -(mean + median / np.where(flat, 1.0, spread)) * gain, flat


def _robust_parts(
    series: NDArray[np.float64], scaling: RobustScaling | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    mean = series.mean(axis=1, keepdims=True)
    if scaling is not None:
        return mean, scaling.median[:, None], scaling.spread[:, None]
    low, middle, high = _quartiles(series - mean)
    return mean, middle[:, None], (high - low)[:, None]


def _zscore(series: NDArray[np.float64], step: Step, _: RobustScaling | None) -> Factors:
    """Each parcel by its own mean and standard deviation over the run."""
    mean, spread = series.mean(axis=1, keepdims=True), series.std(axis=1, keepdims=True)
    flat = _flat(spread)
    gain = _gain(step) / np.where(flat, 1.0, spread)
    return gain, -mean * gain, flat


def _zscore_run(series: NDArray[np.float64], step: Step, _: RobustScaling | None) -> Factors:
    """One mean and one standard deviation for the whole run."""
    spread = series.std()
    gain = np.full((len(series), 1), _gain(step) / (spread or 1.0))
    return gain, -series.mean() * gain, np.full((len(series), 1), spread == 0)


def _gain(step: Step) -> float:
    return float(dict(step.constants).get("gain", 1.0))


NORMALISATIONS: dict[str, Callable[..., Factors]] = {
    "robust_fixed": _robust,
    "robust_as_published": _robust_as_published,
    "zscore_parcel": _zscore,
    "zscore_run": _zscore_run,
}
