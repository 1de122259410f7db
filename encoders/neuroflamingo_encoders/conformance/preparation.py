"""Group 8: unusual scans give finite tokens or a clear error, and the card's preparation does what it declares."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neuroflamingo_encoders.conformance.subject import Check, Failure, NotApplicable, Subject
from neuroflamingo_encoders.layers.intensity import scale_intensity
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.functional.parcel_series import (
    NORMALISATIONS,
    check_series_spec,
    prepare_series,
    target_seconds,
)
from neuroflamingo_preprocessing.functional.prepare_run import (
    INTENSITIES,
    TO_GRID,
    check_run_spec,
    normalise,
    prepare_run,
)
from neuroflamingo_preprocessing.read import read_run
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.sequence import check_sequence_spec
from neuroflamingo_preprocessing.spec import ScanSpec, Step
from neuroflamingo_preprocessing.structural.prepare_volume import check_spec, prepare_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SPREAD_MM = 12.0
"""Standard deviation in mm of the Gaussian ball in the test scans."""


def _given(value: float, where: str) -> Callable[[Subject], str]:
    """Make a check that an input with this value gives finite tokens or a typed error."""

    def check(subject: Subject) -> str:
        x = subject.input()
        if not x.is_floating_point():
            raise NotApplicable("the input is not made of floating point numbers")
        if where == "everywhere":
            x = torch.full_like(x, value)
        else:
            x.view(-1)[x.numel() // 2] = value
        try:
            tokens = subject.encode(x).tokens
        except NeuroFlamingoError as refusal:
            return f"refused: {refusal.what}"
        except Exception as error:
            raise Failure(f"no clear error, but {type(error).__name__}: {error}") from error
        if not bool(tokens.isfinite().all()):
            raise Failure(f"{int((~tokens.isfinite()).sum())} numbers of the tokens are NaN or infinite")
        return "finite tokens"

    check.__doc__ = f"{value} {where} gives finite tokens or a clear error."
    return check


def steps(subject: Subject) -> str:
    """The declared steps are known to the preprocessing, and fitted ones carry their statistics."""
    scan = subject.full_card.scan
    unfitted = [step.name for step in scan.steps if step.scope == "training_set" and not step.constants]
    if unfitted:
        raise Failure(f"'{unfitted[0]}' has statistics of a training set, but none among its constants")
    check = _CHECK_STEPS.get(scan.modality)
    runs, placed = scan.takes_runs, scan.modality == "volume3d" and scan.channels and scan.spacing_mm is not None
    if not (scan.steps or runs or placed):
        raise NotApplicable(f"{scan.describe()} is not prepared from files: it comes as a ready tensor")
    if check is None:
        raise Failure(f"nothing does the step '{scan.steps[0].name}' to an input of the kind {scan.modality}")
    try:
        check(scan)
    except NeuroFlamingoError as refusal:
        raise Failure(" ".join(str(refusal).split())) from refusal
    return ", ".join(step.name for step in scan.steps) or "no step"


def geometry(subject: Subject) -> str:
    """A ball at a known position, stored in three orientations and spacings, arrives there on the card's grid."""
    steps(subject)
    scan = subject.full_card.scan
    if scan.spacing_mm is None:
        raise NotApplicable("the card declares no grid in space")
    if scan.modality == "volume4d":
        return _run_geometry(scan)
    geometric = tuple(s for s in scan.steps if s.name in ("gaussian_antialias", "linear_resampling"))
    bare = scan.model_copy(update={"steps": geometric})
    storage = ((1.0, (1, 1, 1)), (1.5, (-1, -1, 1)), (0.8, (1, -1, -1)))

    def prepared(stored: Scan) -> tuple[np.ndarray, np.ndarray]:
        made = prepare_volume(stored, bare)
        if not scan.accepts(made.tensor.shape):
            raise Failure(f"a volume is prepared to {list(made.tensor.shape)}, not {scan.describe()}")
        return made.tensor[0], made.affine

    return _arrival(bare, storage, prepared)


def _run_geometry(scan: ScanSpec) -> str:
    """Check the geometry with a run of two frames, on the grid's lattice (copied) and on another one (interpolated)."""
    axes = tuple(axis.model_copy(update={"size": 2}) if axis.name == "time" else axis for axis in scan.axes)
    bare = scan.model_copy(update={"axes": axes, "steps": (Step.named(TO_GRID),), "repetition_time": None})

    def prepared(stored: Scan) -> tuple[np.ndarray, np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.nii"
            _write_run(path, 100 + np.stack([stored.voxels] * 2, axis=-1), stored.affine)
            return prepare_run(read_run(path), bare).volumes[..., 1] - 100, bare.grid_affine

    return _arrival(bare, ((1.0, (1, 1, 1)), (1.0, (-1, -1, 1)), (1.5, (1, -1, -1))), prepared)


def _arrival(bare: ScanSpec, storage: Iterable[tuple[float, tuple[int, ...]]], prepared: Callable[..., Any]) -> str:
    """Check where a ball arrives on the grid, for each spacing (relative to the grid's) and axis directions."""
    shape, affine = np.array(bare.grid_shape), bare.grid_affine
    place = affine[:3, :3] @ (shape * (0.35, 0.6, 0.55)) + affine[:3, 3]
    worst = 0.0
    for stretch, flips in storage:
        volume, own = prepared(_stored_ball(place, shape, affine, stretch, flips))
        volume = volume.astype(float)
        weight = volume.clip(volume.max() / 4) - volume.max() / 4
        seen = [float((weight * index).sum() / weight.sum()) for index in np.indices(volume.shape)]
        far = float(np.linalg.norm(own[:3, :3] @ seen + own[:3, 3] - place))
        worst = max(worst, far)
        if far > max(bare.spacing_mm or ()):
            raise Failure(f"a ball arrives {far:.1f} mm from its place when stored with axes {flips} and x {stretch}")
    return f"arrives within {worst:.2f} mm"


def _stored_ball(
    place: np.ndarray, shape: np.ndarray, affine: np.ndarray, stretch: float, flips: tuple[int, ...]
) -> Scan:
    """Scan that covers the grid, with a Gaussian ball at `place` (mm), in another spacing and axis directions."""
    counts = np.ceil(shape / stretch).astype(int) + 4
    directions = affine[:3, :3] * stretch * np.array(flips)
    centre = affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3]
    origin = centre - directions @ ((counts - 1) / 2)
    index = np.indices(counts.tolist()).reshape(3, -1)
    distance = ((directions @ index + (origin - place)[:, None]) ** 2).sum(0)
    stored = np.eye(4)
    stored[:3, :3], stored[:3, 3] = directions, origin
    voxels = 1000.0 * np.exp(-distance / (2 * SPREAD_MM**2)).reshape(counts)
    return Scan(voxels.astype(np.float32), stored)


def _write_run(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    import nibabel

    image = nibabel.Nifti1Image(voxels.astype(np.float32), affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    image.to_filename(path)


def time_and_parcels(subject: Subject) -> str:
    """A repetition time or parcellation other than the card's is refused or resampled as declared."""
    scan = subject.full_card.scan
    rate, parcels = scan.repetition_time, next((a.size for a in scan.axes if a.name == "parcel"), None)
    if rate is None and parcels is None:
        raise NotApplicable("the card declares neither a repetition time nor a parcellation")
    done = []
    if rate is not None:
        _refused(lambda: target_seconds(None, scan, "a run", []), "a run of unknown repetition time")
        warnings: list[str] = []
        if rate.policy == "refuse":
            _refused(lambda: target_seconds(3 * rate.seconds, scan, "a run", []), "another repetition time")
        elif (target_seconds(3 * rate.seconds, scan, "a run", warnings) is None) != (rate.policy == "as_is"):
            raise Failure(f"another repetition time is not treated {rate.policy}")
        if rate.policy != "refuse" and not warnings:
            raise Failure("another repetition time is accepted silently")
        done.append(f"{rate.seconds} s, else {rate.policy}")
    if parcels is not None:
        series = np.random.default_rng(0).random((parcels + 1, 40), dtype=np.float32)
        seconds = None if rate is None else rate.seconds
        _refused(lambda: prepare_series(series, seconds, scan, "a series", None), "one parcel too many")
        windows, _ = prepare_series(series[1:], seconds, scan, "a series", None)
        wrong = [w.tensor.shape for w in windows if not scan.accepts(w.tensor.shape)]
        if wrong:
            raise Failure(f"a series is prepared to {wrong[0]}, not {scan.describe()}")
        done.append(f"{parcels} parcels, no others")
    return "; ".join(done)


def _refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except NeuroFlamingoError:
        return
    raise Failure(f"{what} is not refused")


STORED = (2.0, 3.0, 3.0, 5.0, 11.0, 2.0, 3.0, 3.0, 5.0, 3.0)
"""Test vector: mean 4, standard deviation 2.529822; after the mean is subtracted, its quartiles are -1, -1 and 0.5."""
_BY_SPREAD = (-0.790569, -0.395285, -0.395285, 0.395285, 2.766993, -0.790569, -0.395285, -0.395285, 0.395285, -0.395285)
VECTORS: dict[str, tuple[float, ...]] = {
    "robust_fixed": (-0.666667, 0, 0, 1.333333, 5.333333, -0.666667, 0, 0, 1.333333, 0),
    "robust_as_published": tuple(value - 4 + 1 / 1.5 for value in STORED),
    "zscore_parcel": _BY_SPREAD,
    "zscore_run": _BY_SPREAD,
    "zscore_nonzero": _BY_SPREAD,
    "zscore_foreground": _BY_SPREAD,
    "clip_negative": STORED,
    "symmetric_int8": tuple(np.rint(np.array(STORED) * 127 / 11) * 11 / 127),
    "unit": tuple((value - 2) / 9 for value in STORED),
}
"""Result of each normalisation of `STORED`, calculated by hand."""


def normalisation(subject: Subject) -> str:
    """Each normalisation that the card names gives the stored result, with the card's constants."""
    card = subject.full_card
    names = [step for step in card.scan.steps if step.name in VECTORS]
    inside = dict(card.network).get("intensity")
    if isinstance(inside, str) and inside in VECTORS:
        names.append(Step.named(inside))
    if not names:
        raise NotApplicable("the card names no normalisation that is kept with the contract")
    for step in names:
        seen = _normalised(step)
        gain = float(dict(step.constants).get("gain", 1.0))
        if not np.allclose(seen, gain * np.array(VECTORS[step.name]), atol=1e-5 * gain):
            raise Failure(f"{step.name} makes {np.round(seen[:4], 4).tolist()} ... of {STORED[:4]} ...")
    return ", ".join(step.name for step in names)


def _normalised(step: Step) -> np.ndarray:
    """Apply one step to `STORED`, as a volume, a run or a parcel series."""
    values = np.array([STORED], np.float32)
    if step.name in NORMALISATIONS:
        gain, offset, _ = NORMALISATIONS[step.name](values.astype(np.float64), step, None)
        return (values * gain + offset)[0]
    if step.name in INTENSITIES:
        volumes = values.reshape(1, 1, 1, -1).copy()
        normalise(volumes, [step.name], "the stored vector")
        return volumes.reshape(-1)
    return scale_intensity(torch.from_numpy(values.reshape(1, 1, 1, 1, -1)), step.name).numpy().reshape(-1)


_CHECK_STEPS = {
    "volume3d": check_spec,
    "volume4d": check_run_spec,
    "parcels": check_series_spec,
    "sequence": check_sequence_spec,
}

CHECKS = (
    Check("preparation.zeros", 8, _given(0.0, "everywhere")),
    Check("preparation.constant", 8, _given(3.0, "everywhere")),
    Check("preparation.nan", 8, _given(float("nan"), "in one place")),
    Check("preparation.infinite", 8, _given(float("inf"), "in one place")),
    Check("preparation.steps", 8, steps),
    Check("preparation.geometry", 8, geometry),
    Check("preparation.time_and_parcels", 8, time_and_parcels),
    Check("preparation.normalisation", 8, normalisation),
)
