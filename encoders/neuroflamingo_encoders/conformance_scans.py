"""Group 8: unusual scans give finite tokens or a clear error, and the card's preparation does what it declares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from neuroflamingo_encoders.conformance_subject import Check, Failed, NotApplicable, Subject
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.scan import Scan

SPREAD_MM = 12.0
"""Width of the ball that is put into test scans."""


def _given(value: float, where: str) -> Callable[[Subject], str]:
    """A check that an input with this value gives finite tokens or a typed error."""

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
            raise Failed(f"no clear error, but {type(error).__name__}: {error}") from error
        if not bool(tokens.isfinite().all()):
            raise Failed(f"{int((~tokens.isfinite()).sum())} numbers of the tokens are NaN or infinite")
        return "finite tokens"

    check.__doc__ = f"{value} {where} gives finite tokens or a clear error."
    return check


def steps(subject: Subject) -> str:
    """The declared steps are ones that preparing knows, and fitted ones carry their statistics."""
    scan = subject.full_card.scan
    unfitted = [step.name for step in scan.steps if step.scope == "training_set" and not step.constants]
    if unfitted:
        raise Failed(f"'{unfitted[0]}' has statistics of a training set, but none among its constants")
    if scan.modality == "tokens":
        raise NotApplicable("ready tokens need no preparation")
    if scan.modality != "volume3d" or len(scan.channels) != 1 or scan.spacing_mm is None or not scan.steps:
        raise NotApplicable(f"{scan.describe()} is not prepared from files yet: it comes as a ready tensor")
    from neuroflamingo_preprocessing.preparing import check_spec

    try:
        check_spec(scan)
    except NeuroFlamingoError as refusal:
        raise Failed(" ".join(str(refusal).split())) from refusal
    return ", ".join(step.name for step in scan.steps) or "no step"


def geometry(subject: Subject) -> str:
    """A ball at a known place, stored in three orientations and spacings, arrives at that place of the card's grid."""
    from neuroflamingo_preprocessing.preparing import prepare

    steps(subject)
    scan = subject.full_card.scan
    if scan.spacing_mm is None:
        raise NotApplicable("the card declares no grid in space")
    geometric = tuple(s for s in scan.steps if s.name in ("gaussian_antialias", "linear_resampling"))
    bare = scan.model_copy(update={"steps": geometric})
    shape, affine = np.array(bare.grid_shape), bare.grid_affine
    place = affine[:3, :3] @ (shape * (0.35, 0.6, 0.55)) + affine[:3, 3]
    worst = 0.0
    for stretch, flips in ((1.0, (1, 1, 1)), (1.5, (-1, -1, 1)), (0.8, (1, -1, -1))):
        stored = _stored_ball(place, shape, affine, stretch, flips)
        volume = prepare(stored, bare).tensor[0].astype(float)
        weight = volume.clip(volume.max() / 4) - volume.max() / 4
        seen = [float((weight * index).sum() / weight.sum()) for index in np.indices(volume.shape)]
        far = float(np.linalg.norm(affine[:3, :3] @ seen + affine[:3, 3] - place))
        worst = max(worst, far)
        if far > max(bare.spacing_mm or ()):
            raise Failed(f"a ball arrives {far:.1f} mm from its place when stored with axes {flips} and x {stretch}")
    return f"arrives within {worst:.2f} mm"


def _stored_ball(
    place: np.ndarray, shape: np.ndarray, affine: np.ndarray, stretch: float, flips: tuple[int, ...]
) -> Scan:
    """A scan that covers the grid, with a Gaussian ball at `place` (mm), in other spacing and axis directions."""
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


def time_and_parcels(subject: Subject) -> str:
    """Another repetition time or parcellation than the card's is refused or resampled as declared."""
    scan = subject.full_card.scan
    if scan.repetition_time is None and scan.parcellation is None:
        raise NotApplicable("the card declares neither a repetition time nor a parcellation")
    raise NotApplicable("runs and parcel series are not prepared from files yet: they come as ready tensors")


CHECKS = (
    Check("preparation.zeros", 8, _given(0.0, "everywhere")),
    Check("preparation.constant", 8, _given(3.0, "everywhere")),
    Check("preparation.nan", 8, _given(float("nan"), "in one place")),
    Check("preparation.infinite", 8, _given(float("inf"), "in one place")),
    Check("preparation.steps", 8, steps),
    Check("preparation.geometry", 8, geometry),
    Check("preparation.time_and_parcels", 8, time_and_parcels),
)
