"""`prepare_run`: prepare a 4D run for an encoder of volumes over time, with a geometry log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError
from neuroflamingo_preprocessing.functional.parcel_series import Window, interpolation, target_seconds
from neuroflamingo_preprocessing.functional.run_quality import (
    CENTRED,
    SIGNAL,
    Dvars,
    FrameWatch,
    RunQuality,
    is_centred,
    orientation_warning,
    summarise,
    temporal_snr,
)
from neuroflamingo_preprocessing.geometry import Affine, GeometryStep, apply, as_rows, orientation_codes
from neuroflamingo_preprocessing.structural.volume_quality import brain_on_grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float32, Float64
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.formats.nifti.run import Run
    from neuroflamingo_preprocessing.spec import ScanSpec

TO_GRID = "to_grid"
INTENSITIES = ("clip_negative", "zscore_foreground", "symmetric_int8")
WHOLE_VOXELS = 1e-3
"""Largest offset, in voxels, at which a run still lies on the grid's lattice."""
COVERAGE_REFUSE, COVERAGE_WARN = 0.7, 0.9
"""Shares of the template brain with signal below which a run is refused, or gives a warning."""


@dataclass(frozen=True)
class PreparedRun:
    """Run prepared for an encoder.

    Attributes:
        volumes: float32 `[x, y, z, frame]` on the encoder's grid, normalised.
        affine: grid index to world, RAS mm.
        geometry: every change of geometry, in order.
        quality: see `RunQuality`.
        warnings: from reading, then from preparing.
        mean: mean over time before the intensity steps, `[x, y, z]` on the same grid.
        dvars: change from frame to frame in percent, see `Dvars`; one value for each frame of the run but the first.
    """

    volumes: Float32[np.ndarray, "x y z frame"]
    affine: Affine
    geometry: list[GeometryStep]
    quality: RunQuality
    warnings: tuple[str, ...]
    mean: Float32[np.ndarray, "x y z"]
    dvars: Float64[np.ndarray, " frame"]
    _spec: ScanSpec

    def __len__(self) -> int:
        return self.volumes.shape[-1] // self._length

    @property
    def _length(self) -> int:
        return next(axis.size for axis in self._spec.axes if axis.name == "time") or self.volumes.shape[-1]

    def windows(self) -> Iterator[Window]:
        """Consecutive windows with the card's axes; views, since copies would double the memory of the run."""
        axes = {"x": 0, "y": 1, "z": 2, "time": 3, "channel": 4}
        order = [axes[axis.name] for axis in self._spec.axes]
        for first in range(0, len(self) * self._length, self._length):
            piece = self.volumes[..., first : first + self._length, None]
            yield Window(piece.transpose(order), first, self._length)


@dataclass
class _Foreground:
    """Running statistics of the voxels that are not 0."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    lowest: float = np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        seen = values[values != 0].astype(np.float64)
        if len(seen):
            self.count += len(seen)
            self.total += float(seen.sum())
            self.squares += float(np.dot(seen, seen))
            self.lowest = min(self.lowest, float(seen.min()))

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def spread(self) -> float:
        return float(np.sqrt(max(self.squares / self.count - self.mean**2, 0.0)))


@dataclass(frozen=True)
class _Seen:
    """Results from a run on the grid: quality, mean volume, and DVARS in percent."""

    quality: RunQuality
    mean: Float32[np.ndarray, "x y z"]
    dvars: Float64[np.ndarray, " frame"]


def check_run_spec(spec: ScanSpec) -> None:
    """Check that `prepare_run` can do what a spec asks for.

    Raises:
        ModelError: not a 4D input of one channel, no grid, unknown steps (exit 65).
    """
    names = [step.name for step in spec.steps]
    known = names.count(TO_GRID) == 1 and set(names) <= {TO_GRID, *INTENSITIES}
    if spec.modality != "volume4d" or spec.spacing_mm is None or not known or names.count("zscore_foreground") > 1:
        raise ModelError(
            "this encoder's input cannot be prepared from a run",
            expected=f"a 4D volume on a grid in space, steps {TO_GRID} and any of {', '.join(INTENSITIES)}",
            seen=f"{spec.describe()}, steps {', '.join(names) or 'none'}",
            hint="correct the card, or give prepared arrays",
            exit_code=65,
        )


def prepare_run(run: Run, spec: ScanSpec, *, may_resample: bool = True) -> PreparedRun:
    """Bring a run in MNI space to the grid, the repetition time and the intensities that an encoder declares.

    Runs on the grid's own lattice are cropped and padded without interpolation; others are interpolated linearly, once.
    Steps before `to_grid` take their statistics from the run as stored, later ones from the grid.

    Args:
        run: as `read_run` gives it, denoised or not.
        spec: `card.scan` of the encoder.
        may_resample: False refuses interpolation in space and time.

    Raises:
        ScanError: damaged, too short, not in the grid's space, constant, another repetition time (exit 65).
        UsageError: resampling is needed and `may_resample` is false; an unknown repetition time.
        ModelError: see `check_run_spec`.
    """
    check_run_spec(spec)
    names = [step.name for step in spec.steps]
    warnings = list(run.provenance.warnings)
    target = target_seconds(run.repetition_time, spec, run.name, warnings)
    length = next(axis.size for axis in spec.axes if axis.name == "time") or run.frames
    _check_length(run, length, target)
    placed = _Placement(run, spec)
    if not may_resample and (target is not None or not placed.copies):
        raise UsageError(
            f"{run.name} would have to be resampled {'in space' if not placed.copies else 'in time'}",
            expected="a run on the encoder's lattice and at its repetition time",
            seen=f"affine {np.round(run.affine[:3], 3).tolist()}, {run.repetition_time} s",
            hint="leave out --no-resample",
        )
    before = names[: names.index(TO_GRID)]
    volumes, stored, seen = _read(run, spec, placed, before, target, warnings)
    _judge(run, seen.quality, warnings)
    normalise(volumes, names, run.name, stored if "zscore_foreground" in before else None)
    left = volumes.shape[-1] % length
    if left:
        warnings.append(f"the last {left} frames do not fill a window of {length} and are left out")
    geometry = [*run.geometry, placed.log()]
    return PreparedRun(volumes, spec.grid_affine, geometry, seen.quality, tuple(warnings), seen.mean, seen.dvars, spec)


def _check_length(run: Run, length: int, target: float | None) -> None:
    frames = run.frames
    if target is not None and run.repetition_time is not None:
        frames = len(interpolation(run.frames, run.repetition_time, target, run.times)[0])
    if frames < length:
        raise ScanError(
            f"{run.name} is too short",
            expected=f"at least {length} frames" + (f" of {target:g} s" if target else ""),
            seen=f"{frames}",
            hint="give a longer run: missing volumes are not made up",
        )


class _Placement:
    """Mapping of the run's voxels onto the grid: a copy where the lattices coincide, else linear interpolation."""

    def __init__(self, run: Run, spec: ScanSpec) -> None:
        self.run, self.spec = run, spec
        self.shape = spec.grid_shape
        self.to_voxel = np.linalg.inv(run.affine) @ spec.grid_affine
        turn, shift = self.to_voxel[:3, :3], self.to_voxel[:3, 3]
        whole = np.abs(self.to_voxel[:3] - np.round(self.to_voxel[:3])).max() < WHOLE_VOXELS
        self.copies = bool(whole and (np.abs(np.round(turn)).sum(0) == 1).all() and (np.abs(turn) < 1.01).all())
        self._order = np.abs(turn).argmax(axis=0)  # for each axis of the grid, that of the run
        self._signs = np.sign(turn[self._order, range(3)]).astype(int)
        self._start = np.round(shift).astype(int)[self._order]

    def fill(self, block: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write a block `[x, y, z, frame]` of the run into a block of zeros on the grid."""
        if self.copies:
            self._copy(block, out)
            return
        import torch  # here, since most runs are on the grid's lattice and never need it

        shape, size = torch.tensor(self.shape), torch.tensor(block.shape[:3], dtype=torch.float64)
        index = torch.stack(torch.meshgrid(*(torch.arange(int(n)) for n in shape), indexing="ij"), -1).double()
        place = index @ torch.from_numpy(self.to_voxel[:3, :3].T) + torch.from_numpy(self.to_voxel[:3, 3])
        unit = ((2 * place + 1) / size - 1).float().flip(-1)[None]  # grid_sample counts axes from the last one
        source = torch.from_numpy(np.ascontiguousarray(block.transpose(3, 0, 1, 2)))[None]
        sampled = torch.nn.functional.grid_sample(source, unit, mode="bilinear", align_corners=False)
        out[...] = sampled[0].permute(1, 2, 3, 0).numpy()

    def _copy(self, block: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        # Both sides are basic slices, so no voxel is copied twice: index arrays would gather into a temporary.
        source = block.transpose(*self._order, 3)
        here, there = [], []
        for axis in range(3):
            place = self._start[axis] + self._signs[axis] * np.arange(self.shape[axis])
            inside = np.flatnonzero((place >= 0) & (place < source.shape[axis]))
            if not len(inside):
                return
            here.append(slice(inside[0], inside[-1] + 1))
            low, high = sorted((place[inside[0]], place[inside[-1]]))
            cut = slice(low, high + 1)
            source = source[(*[slice(None)] * axis, cut)]
            there.append(slice(None, None, int(self._signs[axis])))
        out[tuple(here)] = source[tuple(there)]

    def log(self) -> GeometryStep:
        """Entry for the geometry log."""
        orientation_warning = orientation_codes(self.run.affine) != orientation_codes(self.spec.grid_affine)
        method = "cut, padded" + (" and turned" if orientation_warning else "") if self.copies else "linear"
        return GeometryStep(
            name="to the grid",
            before=as_rows(self.run.affine),
            after=as_rows(self.spec.grid_affine),
            interpolation="none" if self.copies else "linear",
            reason=f"to the encoder's grid in MNI space ({method})",
            shape_before=self.run.shape,
            shape_after=self.shape,
        )


class _Frames:
    """Frames of the result, resampled in time as they arrive where the repetition time changes.

    Only the last frame of the block before is kept, so that the run is never held beside its result.
    """

    def __init__(self, run: Run, shape: tuple[int, int, int], target: float | None) -> None:
        count, self._between = run.frames, None
        if target is not None and run.repetition_time is not None:
            self._between = interpolation(run.frames, run.repetition_time, target, run.times)
            count = len(self._between[0])
        self.volumes = np.zeros((count, *shape[::-1]), np.float32).T  # each frame is contiguous
        self._last: NDArray[np.float32] | None = None

    def room(self, first: int, count: int) -> NDArray[np.float32]:
        """Zeros to fill with frames: part of the result itself if the repetition time stays the same."""
        if self._between is None:
            return self.volumes[..., first : first + count]
        return np.zeros((count, *self.volumes.shape[2::-1]), np.float32).T

    def put(self, first: int, here: NDArray[np.float32]) -> None:
        """Take frames that were filled in, and interpolate between them."""
        if self._between is None:
            return
        before, share = self._between
        for index in range(here.shape[-1]):
            frame, earlier = here[..., index], self._last
            for number in np.flatnonzero(before == first + index - 1):
                assert earlier is not None
                self.volumes[..., number] = earlier + (frame - earlier) * share[number]
            self._last = frame
        self._last = None if self._last is None else self._last.copy()


def _read(
    run: Run, spec: ScanSpec, placed: _Placement, before: list[str], target: float | None, warnings: list[str]
) -> tuple[NDArray[np.float32], _Foreground, _Seen]:
    """Frames on the grid, foreground statistics of the run as stored, and quality, in one pass."""
    brain = _brain(spec, run.name)
    frames, stored = _Frames(run, placed.shape, target), _Foreground()
    total, squares = np.zeros(placed.shape), np.zeros(placed.shape)
    watch, dvars = FrameWatch(), Dvars()
    for first, block in run.blocks(watch=watch):
        np.nan_to_num(block, copy=False)
        if "clip_negative" in before:
            np.maximum(block, 0, out=block)
        if "zscore_foreground" in before:
            stored.add(block)
        here = frames.room(first, block.shape[-1])
        placed.fill(block, here)
        for index in range(here.shape[-1]):  # one frame's doubles at a time
            frame = here[..., index]
            total += frame
            squares += np.square(frame, dtype=np.float64)
            dvars.add(frame[brain])
        frames.put(first, here)
        del block, here
    mean = total / run.frames
    squares /= run.frames
    centred = is_centred(mean, squares, brain & (squares > 0))
    level = np.sqrt(np.maximum(squares - mean**2, 0)) if centred else mean  # of denoised runs, what varies is brain
    bright = np.percentile(level[brain], 95)
    signal = (level > SIGNAL * bright) & (bright > 0)
    shown = brain & signal
    tsnr, dvars = (None, Dvars()) if centred else (temporal_snr(mean, squares, shown), dvars)
    warnings += [CENTRED] if centred else []
    quality, quality_warnings = summarise(watch, dvars, run, tsnr, float(shown.sum() / brain.sum()))
    turn_warning = orientation_warning(signal, spec.grid_affine)
    warnings += quality_warnings + ([turn_warning] if turn_warning else [])
    return frames.volumes, stored, _Seen(quality, mean.astype(np.float32), dvars.percent())


def _brain(spec: ScanSpec, name: str) -> NDArray[np.bool_]:
    """Template brain on the encoder's grid; refuses a grid that misses it."""
    brain = brain_on_grid(spec)
    if brain.any():
        return brain
    low, high = np.sort([apply(spec.grid_affine, np.array(index)) for index in ((0, 0, 0), spec.grid_shape)], axis=0)
    raise ScanError(
        f"{name} cannot be prepared: the encoder's grid does not reach the brain",
        expected="a grid that covers the template brain in MNI space",
        seen=", ".join(f"{axis} {a:g} to {b:g} mm" for axis, a, b in zip("xyz", low, high, strict=True)),
        hint="correct spacing_mm and origin_mm in the encoder's card",
    )


def _judge(run: Run, quality: RunQuality, warnings: list[str]) -> None:
    """Refuse a run that does not show the template brain; warn where it shows part of it."""
    coverage = quality.coverage or 0.0
    if coverage < COVERAGE_REFUSE:
        raise ScanError(
            f"{run.name} is not in MNI space, or shows little of the brain",
            expected=f"signal in at least {COVERAGE_REFUSE:.0%} of the template brain",
            seen=f"{coverage:.0%}",
            hint="register it first (fMRIPrep: --output-spaces MNI152NLin6Asym:res-2)",
        )
    if coverage < COVERAGE_WARN:
        warnings.append(f"{1 - coverage:.0%} of the template brain shows no signal")
    if run.provenance.header.get("sform") != "MNI152" and "space-MNI" not in run.name:
        warnings.append("neither the header nor the name says that the run is in MNI space; this is assumed")


def normalise(
    volumes: Float32[np.ndarray, "x y z frame"], names: list[str], what: str, stored: _Foreground | None = None
) -> None:
    """Apply the named intensity steps in order and in place; other names are skipped.

    Args:
        volumes: `[x, y, z, frame]`.
        names: names of steps.
        what: name of the run, for messages.
        stored: statistics of the run as stored; None: those of `volumes`.

    Raises:
        ScanError: one value in all voxels (exit 65).
    """
    for name in names:
        if name == "clip_negative":
            np.maximum(volumes, 0, out=volumes)
        elif name == "zscore_foreground":
            _zscore(volumes, stored, what)
        elif name == "symmetric_int8":
            _quantise(volumes)


def _zscore(volumes: NDArray[np.float32], stored: _Foreground | None, what: str) -> None:
    """Z-score the non-zero voxels by one mean and standard deviation; set all others to the lowest of the results."""
    seen = stored or _Foreground()
    if stored is None:
        for frame in range(volumes.shape[-1]):
            seen.add(volumes[..., frame])
    if not seen.count or seen.spread == 0:
        raise ScanError(f"{what} is constant", expected="a signal that varies", seen="one value in all voxels")
    for frame in range(volumes.shape[-1]):
        here = volumes[..., frame]
        empty = here == 0
        here -= np.float32(seen.mean)
        here /= np.float32(seen.spread)
        here[empty] = (seen.lowest - seen.mean) / seen.spread


def _quantise(volumes: NDArray[np.float32]) -> None:
    """Round to 255 levels around 0, as if the run had been stored as signed bytes with one scale."""
    scale = np.float32(max(abs(float(volumes.min())), abs(float(volumes.max()))) / 127)
    if scale > 0:
        for frame in range(volumes.shape[-1]):
            here = volumes[..., frame]
            np.rint(here / scale, out=here)
            here *= scale
