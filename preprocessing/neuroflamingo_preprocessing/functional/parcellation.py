"""`parcel_series`: the mean of a run over each label of an atlas, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError, UsageError
from neuroflamingo_preprocessing.geometry import Affine, GeometryStep, as_rows
from neuroflamingo_preprocessing.read import read_scan

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.formats.nifti.run import Run
    from neuroflamingo_preprocessing.functional.run_quality import FrameWatch
    from neuroflamingo_preprocessing.spec import Parcellation

SAME_PLACE_MM = 1e-3
MOST_EMPTY = 0.1
"""Largest share of parcels without data: a run that lacks more does not cover the atlas."""


@dataclass(frozen=True)
class Atlas:
    """Label image: 0 is background, every other whole number is a parcel.

    Attributes:
        labels: `[x, y, z]` as stored.
        affine: voxel index to world, RAS mm.
        values: the labels that occur, ascending: the row order of a parcel series.
        name, sha256: name and hash of the file.
    """

    labels: NDArray[np.int32]
    affine: Float64[np.ndarray, "4 4"]
    values: NDArray[np.int32]
    name: str
    sha256: str | None


def read_atlas(path: str | Path, parcellation: Parcellation | None = None, parcels: int | None = None) -> Atlas:
    """Read a label image (one 3D volume of whole numbers).

    Args:
        path: a `.nii` or `.nii.gz` file.
        parcellation: the one that the encoder's card names; its hash is compared where the card has it.
        parcels: expected number of parcels.

    Raises:
        NotFoundError, ScanError: see `read_scan`; values that are not labels; another number of parcels, or not the
            file that the card names (exit 65).
    """
    scan = read_scan(path)
    name = scan.provenance.file or "the atlas"
    labels = np.rint(scan.voxels)
    if np.abs(labels - scan.voxels).max() > 1e-3 or labels.min() < 0 or labels.max() >= 2**24:
        raise ScanError(
            f"{name} is not a label image",
            expected="whole numbers, 0 or above",
            seen=f"values from {scan.voxels.min():g} to {scan.voxels.max():g}",
            hint="give the atlas's label file, not its template or its probability maps",
        )
    labels = labels.astype(np.int32)
    values = np.flatnonzero(np.bincount(labels.ravel(order="K"))).astype(np.int32)
    values = values[values > 0]
    if parcels is not None and len(values) != parcels:
        missing = sorted(set(range(1, parcels + 1)) - set(values.tolist()))
        raise ScanError(
            f"{name} does not have the encoder's number of parcels",
            expected=f"{parcels} of {parcellation.identifier}" if parcellation else f"{parcels}",
            seen=f"{len(values)}" + (f"; {_listed(missing)} missing" if 0 < len(missing) < 20 else ""),
            hint="use the atlas file that the encoder's card names",
        )
    if parcellation and parcellation.sha256 not in (None, scan.provenance.sha256):
        raise ScanError(
            f"{name} is not the file that the encoder was trained with",
            expected=f"{parcellation.identifier}, SHA-256 {parcellation.sha256}",
            seen=f"SHA-256 {scan.provenance.sha256}",
            hint="use the atlas file that the encoder's card names",
        )
    return Atlas(labels, scan.affine, values, name, scan.provenance.sha256)


def _listed(labels: list[int]) -> str:
    return f"label{'s' * (len(labels) > 1)} {', '.join(map(str, labels))}"


class ParcelMeans:
    """Parcel means of blocks on the lattice of the labels: one gather and one sorted reduction a frame.

    Sums are in double precision. NaN voxels are left out; a parcel without voxels has mean 0, as published encoders
    expect it.

    Args:
        labels: `[x, y, z]`, 0 where there is no parcel.
        values: labels of the rows, ascending.
    """

    def __init__(self, labels: NDArray[np.int32], values: NDArray[np.int32]) -> None:
        flat = labels.ravel(order="F")
        inside = np.flatnonzero(np.isin(flat, values))
        self._order = inside[np.argsort(flat[inside], kind="stable")]
        sorted_labels = flat[self._order]
        starts, ends = np.searchsorted(sorted_labels, values), np.searchsorted(sorted_labels, values, side="right")
        self.voxels = ends - starts
        self._filled = self.voxels > 0
        self._starts = starts[self._filled]

    def __call__(self, block: Float32[np.ndarray, "x y z frame"]) -> Float32[np.ndarray, "parcel frame"]:
        """Parcel means of each frame of a block."""
        frames = block.reshape(-1, block.shape[-1], order="F")
        means = np.zeros((len(self.voxels), frames.shape[1]))
        if not self._filled.any():
            return means.astype(np.float32)
        for index in range(frames.shape[1]):
            values = frames[:, index][self._order]
            count: Any = self.voxels[self._filled]
            lost = np.isnan(values)
            if lost.any():
                count = np.maximum(count - self._sums(lost), 1)
                values = np.where(lost, 0, values)
            means[self._filled, index] = self._sums(values) / count
        return means.astype(np.float32)

    def _sums(self, values: NDArray[Any]) -> NDArray[np.float64]:
        return np.add.reduceat(values, self._starts, dtype=np.float64)


def parcel_series(
    run: Run, atlas: Atlas, *, may_resample: bool = True, watch: FrameWatch | None = None
) -> tuple[Float32[np.ndarray, "parcel frame"], list[GeometryStep], list[str]]:
    """Extract the parcel means of every frame; also gives the geometry log and warnings.

    Labels on another lattice are resampled to the run's by nearest neighbour; the run itself is never interpolated.

    Args:
        run, atlas: as read.
        may_resample: False refuses labels on another lattice.
        watch: sees the run's blocks as they are stored.

    Returns:
        float32 `[parcel, frame]`, changes of geometry, warnings.

    Raises:
        ScanError: the run does not cover the atlas, or its file is damaged (exit 65).
        UsageError: the lattices differ and `may_resample` is false.
    """
    labels, log = _on_lattice_of(run, atlas, may_resample)
    means = ParcelMeans(labels, atlas.values)
    series = np.empty((len(atlas.values), run.frames), np.float32)
    for first, block in run.blocks(watch=watch):
        series[:, first : first + block.shape[-1]] = means(block)
    empty = atlas.values[(means.voxels == 0) | ~series.any(axis=1)]
    if len(empty) > MOST_EMPTY * len(atlas.values):
        raise ScanError(
            f"{run.name} does not cover the parcels of {atlas.name}",
            expected=f"a run in the atlas's space, with data in at least {1 - MOST_EMPTY:.0%} of its parcels",
            seen=f"{len(empty)} of {len(atlas.values)} parcels without data",
            hint="register the run to the atlas's space first (fMRIPrep: --output-spaces MNI152NLin6Asym:res-2)",
        )
    named = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
    warnings = [f"{len(empty)} parcels have no data and are 0: {named}"] if len(empty) else []
    return series, [*run.geometry, *log], warnings


def _on_lattice_of(run: Run, atlas: Atlas, may_resample: bool) -> tuple[NDArray[np.int32], list[GeometryStep]]:
    """Labels at each of the run's voxels, and the geometry log."""
    if atlas.labels.shape == run.shape and np.abs(atlas.affine - run.affine).max() < SAME_PLACE_MM:
        return atlas.labels, []
    if not may_resample:
        raise UsageError(
            f"{run.name} and {atlas.name} lie on different lattices, and --no-resample forbids resampling",
            expected=f"{run.shape} voxels of {np.round(run.affine[:3], 2).tolist()}",
            seen=f"{atlas.labels.shape} voxels of {np.round(atlas.affine[:3], 2).tolist()}",
            hint="leave out --no-resample: labels are then resampled to the run by nearest neighbour",
        )
    step = GeometryStep(
        name="labels to the run",
        before=as_rows(atlas.affine),
        after=as_rows(run.affine),
        interpolation="nearest",
        reason=f"{atlas.name} lies on another lattice than the run",
        shape_before=atlas.labels.shape,
        shape_after=run.shape,
    )
    return nearest(atlas.labels, atlas.affine, run.shape, run.affine), [step]


def nearest(
    labels: NDArray[np.int32], affine: Affine, shape: tuple[int, int, int], target: Affine
) -> NDArray[np.int32]:
    """Resample labels to another grid by nearest neighbour, 0 outside.

    Args:
        labels, affine: `[x, y, z]`, and voxel index to world mm.
        shape, target: shape and affine of the new grid.
    """
    from scipy.ndimage import affine_transform

    to_voxel = np.linalg.inv(affine) @ target
    offset: Any = to_voxel[:3, 3]
    return affine_transform(labels, to_voxel[:3, :3], offset, output_shape=shape, order=0, cval=0, prefilter=False)
