"""Quality of fMRI runs: empty and repeated frames, tSNR, DVARS, motion, and orientation against the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.structural.template import load_template

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.formats.nifti.run import Run
    from neuroflamingo_preprocessing.geometry import Affine

STILL = 1e-6
"""Frames whose voxels differ by no more than this share of their standard deviation are one frame stored twice."""
SPARSE = 97
"""Step between the voxels that are compared first: most frames differ there already."""
SIGNAL = 0.2
"""Brain is where the mean volume exceeds this share of its 95th percentile."""
FAR_OUT = 3.0
"""A spike is this many inter-quartile ranges above the third quartile of DVARS (Tukey's far-out values; FSL's
fsl_motion_outliers takes 1.5, which marks frames in every run), and above `SPIKE_FACTOR` times the median."""
SPIKE_FACTOR = 1.5
MOVED_MM, MOVED_SHARE, JUMP_MM = 0.5, 0.2, 5.0
"""A frame moved if its framewise displacement exceeds 0.5 mm (Power et al. 2012). More than a fifth of such frames, or
one above 5 mm, gives a warning (the thresholds of Parkes et al. 2018)."""
CENTRED = "the mean of the run was removed (denoised or z-scored): tSNR and DVARS are not known"
TURNED_MARGIN = 0.03
"""Gain in the Dice coefficient of signal and template brain, with the head turned, that gives a warning. The template's
own brain has 0.99 upright, and at most 0.87 turned."""
LEAST_FRAMES_FOR_SPIKES = 8


@dataclass(frozen=True)
class RunQuality:
    """Quality measures of a run; None where one is not known.

    Attributes:
        coverage: share of the template brain that shows signal.
        tsnr: median over voxels (or parcels) with signal of the temporal mean divided by the standard deviation.
        dvars: median over frames of the root mean square change over those voxels, in percent of their mean.
        spikes: number of frames with outlying DVARS.
        empty, repeated: number of frames with one value in all voxels; of frames identical to the one before.
        fd_mean, fd_max: framewise displacement in mm, see `confounds.framewise_displacement`.
        fd_moved: share of frames with a framewise displacement above 0.5 mm.
    """

    coverage: float | None = None
    tsnr: float | None = None
    dvars: float | None = None
    spikes: int = 0
    empty: int = 0
    repeated: int = 0
    fd_mean: float | None = None
    fd_max: float | None = None
    fd_moved: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Known measures as plain data."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class FrameWatch:
    """Check of the frames of a run as they are read: NaN, constant and repeated frames.

    Attributes:
        lost: number of voxel values that are NaN.
        empty, repeated: indices of frames with one value in all voxels, and of frames identical to the one before.
        frames: number of frames seen.
    """

    lost: int = 0
    empty: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    frames: int = 0
    _before: NDArray[np.float32] | None = None

    def add(self, first: int, block: Float32[np.ndarray, "x y z frame"]) -> None:
        """Check the next block.

        Args:
            first: index of its first frame.
            block: voxels as stored.
        """
        for index in range(block.shape[-1]):
            frame = block[..., index].reshape(-1, order="F")
            there = frame
            if np.isnan(frame.sum()):
                there = frame[~np.isnan(frame)]
                self.lost += len(frame) - len(there)
            if not len(there) or (np.ptp(there[::SPARSE]) == 0 and np.ptp(there) == 0):
                self.empty.append(first + index)
            elif self._before is not None and _same(frame, self._before):
                self.repeated.append(first + index)
            self._before = frame
        self._before = None if self._before is None else self._before.copy()  # let go of the block
        self.frames = first + block.shape[-1]

    def words(self) -> list[str]:
        """Warnings about the frames seen."""
        warnings = [f"{self.lost} voxels are not numbers and count as background"] if self.lost else []
        pairs = (self.empty, "hold one value in all voxels"), (self.repeated, "repeat the frame before")
        return warnings + [
            f"{len(numbers)} of {self.frames} frames {fault}, the first is number {numbers[0]}"
            for numbers, fault in pairs
            if numbers
        ]


def _same(frame: NDArray[np.float32], before: NDArray[np.float32]) -> bool:
    """True for a repeated frame; a sparse sample of voxels settles nearly all frames without a look at the rest."""
    few, earlier = frame[::SPARSE], before[::SPARSE]
    if np.nanmax(np.abs(few - earlier), initial=0) > STILL * np.nanmax(np.abs(few), initial=0):
        return False
    return float(np.nanmax(np.abs(frame - before))) <= STILL * float(np.nanstd(frame))


class Dvars:
    """Root mean square change from frame to frame over some voxels (Power et al. 2012), in percent of their mean."""

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._changes: list[float] = []
        self._level = self._count = 0.0

    def add(self, values: Float32[np.ndarray, " voxel"]) -> None:
        """Add the voxels of the next frame."""
        if self._before is not None:
            change = values - self._before
            self._changes.append(float(np.sqrt(np.mean(np.square(change, dtype=np.float64)))))
        self._before = values
        self._level += float(values.mean(dtype=np.float64))
        self._count += 1

    def percent(self) -> Float64[np.ndarray, " frame"]:
        """DVARS of each frame but the first, in percent; empty where the mean of the voxels is not positive."""
        level = self._level / self._count if self._count else 0.0
        return 100 * np.array(self._changes) / level if level > 0 else np.zeros(0)


def spikes(dvars: Sequence[float] | NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the frames with outlying DVARS; none in runs of a few frames."""
    if len(dvars) < LEAST_FRAMES_FOR_SPIKES:
        return np.zeros(0, np.intp)
    low, middle, high = np.percentile(dvars, (25, 50, 75))
    return 1 + np.flatnonzero(np.asarray(dvars) > max(high + FAR_OUT * (high - low), SPIKE_FACTOR * middle))


def summarise(
    watch: FrameWatch, dvars: Dvars, run: Run, tsnr: float | None, coverage: float | None = None
) -> tuple[RunQuality, list[str]]:
    """Quality measures of a run, and warnings."""
    changes = dvars.percent()
    sudden = spikes(changes)
    words = watch.words()
    if len(sudden):
        words.append(f"{len(sudden)} frames change suddenly (outlying DVARS), the first is number {sudden[0]}")
    moved: dict[str, Any] = {}
    if run.displacement is not None and len(run.displacement):
        moved = {"fd_mean": float(run.displacement.mean()), "fd_max": float(run.displacement.max())}
        moved["fd_moved"] = float((run.displacement > MOVED_MM).mean())
        words += _motion_warnings(moved)
    quality = RunQuality(
        coverage,
        tsnr,
        float(np.median(changes)) if len(changes) else None,
        len(sudden),
        len(watch.empty),
        len(watch.repeated),
        **moved,
    )
    return quality, words


def _motion_warnings(moved: dict[str, float]) -> list[str]:
    if moved["fd_moved"] <= MOVED_SHARE and moved["fd_max"] <= JUMP_MM:
        return []
    return [
        f"the head moved a lot: framewise displacement above {MOVED_MM:g} mm in {moved['fd_moved']:.0%} of the frames, "
        f"at most {moved['fd_max']:.2g} mm"
    ]


def temporal_snr(mean: NDArray[np.float64], squares: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    """Median temporal SNR over the voxels that change; 0 if none do.

    Args:
        mean, squares: temporal mean of each voxel, and of its square.
        inside: voxels to use.
    """
    spread = np.sqrt(np.maximum(squares - mean**2, 0))
    moving = inside & (spread > 0)
    return float(np.median(mean[moving] / spread[moving])) if moving.any() else 0.0


def is_centred(mean: NDArray[np.float64], squares: NDArray[np.float64], inside: NDArray[np.bool_]) -> bool:
    """True for a run whose temporal mean was removed, as denoising and z-scoring do: it is smaller than the change.

    Args:
        mean, squares, inside: see `temporal_snr`.
    """
    if not inside.any():
        return False
    spread = np.sqrt(np.maximum(squares - mean**2, 0))
    return float(np.median(np.abs(mean[inside]))) < float(np.median(spread[inside]))


def assess_run(run: Run) -> tuple[RunQuality, list[str]]:
    """Quality of a run in its own space, in one pass; DVARS over the voxels that are bright in the first block."""
    watch, dvars = FrameWatch(), Dvars()
    total, squares = np.zeros(run.shape), np.zeros(run.shape)
    bright = np.zeros(run.shape, bool)
    for first, block in run.blocks(watch=watch):
        np.nan_to_num(block, copy=False)
        if first == 0:
            level = block.mean(axis=-1)
            bright = level > SIGNAL * max(float(np.percentile(level, 98)), 0.0)
        for index in range(block.shape[-1]):
            frame = block[..., index]
            total += frame
            squares += np.square(frame, dtype=np.float64)
            if bright.any():
                dvars.add(frame[bright])
    mean = total / run.frames
    return _summarise_voxels(watch, dvars, run, mean, squares / run.frames)


def _summarise_voxels(
    watch: FrameWatch, dvars: Dvars, run: Run, mean: NDArray[np.float64], squares: NDArray[np.float64]
) -> tuple[RunQuality, list[str]]:
    """Measures of a run from temporal mean and mean square; without tSNR and DVARS where the mean was removed."""
    if is_centred(mean, squares, squares > SIGNAL**2 * np.percentile(squares, 98)):
        quality, odd = summarise(watch, Dvars(), run, None)
        return quality, [*odd, CENTRED]
    inside = mean > SIGNAL * max(float(np.percentile(mean, 98)), 0.0)
    return summarise(watch, dvars, run, temporal_snr(mean, squares, inside))


def assess_series(
    series: Float32[np.ndarray, "parcel frame"], watch: FrameWatch, run: Run
) -> tuple[RunQuality, list[str]]:
    """Quality of a run of which only parcel means were kept: tSNR and DVARS are those of the parcels."""
    dvars = Dvars()
    for frame in series.T:
        dvars.add(np.ascontiguousarray(frame))
    mean = series.mean(axis=1, dtype=np.float64)
    squares = np.square(series, dtype=np.float64).mean(axis=1)
    if is_centred(mean, squares, squares > 0):
        return summarise(watch, Dvars(), run, None)  # denoised here, or said by the run
    return summarise(watch, dvars, run, temporal_snr(mean, squares, mean > 0))


def orientation_warning(signal: NDArray[np.bool_], affine: Affine) -> str | None:
    """Warning if the signal overlaps the template brain better with the head turned by quarter turns or flipped.

    The template is symmetric, so a swap of left and right cannot be seen here and is not among the candidates.

    Args:
        signal: `[x, y, z]`, true where there is signal.
        affine: voxel index of that grid to world, RAS mm.

    Returns:
        The warning, None where the head lies as the header says.
    """
    template = load_template()
    step = max(1, round(min(signal.shape) / 24))  # some 24 voxels along the shortest axis decide as well as all
    index = np.moveaxis(np.indices(signal.shape), 0, -1)[::step, ::step, ::step].reshape(-1, 3)
    seen = signal[::step, ::step, ::step].reshape(-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    places = np.argwhere(template.mask[::4, ::4, ::4] > 0.5) * 4
    centre = (places @ template.affine[:3, :3].T + template.affine[:3, 3]).mean(axis=0)
    to_voxel = np.linalg.inv(template.affine)
    best, straight = (0.0, ""), 0.0
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        if signs[0] < 0:
            continue  # the same as its mirror image
        there = (world - centre)[:, order] * signs + centre
        voxel = np.rint(there @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
        inside = ((voxel >= 0) & (voxel < template.mask.shape)).all(axis=1)
        brain = np.zeros(len(voxel), bool)
        brain[inside] = template.mask[tuple(voxel[inside].T)] > 0.5
        dice = 2 * float((brain & seen).sum()) / max(int(brain.sum() + seen.sum()), 1)
        if order == (0, 1, 2) and signs == (1, 1, 1):
            straight = dice
        best = max(best, (dice, _turn(order, signs)))
    if best[0] <= straight + TURNED_MARGIN:
        return None
    return (
        f"the head seems to be turned against its header ({best[1]}; overlap with the brain {best[0]:.2f} "
        f"instead of {straight:.2f}): left and right may be wrong too"
    )


def _turn(order: tuple[int, ...], signs: tuple[int, ...]) -> str:
    """Axis permutation and flips in words, for the warning."""
    names = ("left-right", "front-back", "up-down")
    flips = [names[axis] for axis in range(3) if signs[axis] < 0]
    words = [f"{names[order[axis]]} as {names[axis]}" for axis in range(3) if order[axis] != axis]
    return ", ".join([*words, *(f"{name} reversed" for name in flips)])
