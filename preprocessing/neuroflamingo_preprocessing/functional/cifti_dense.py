"""Parcellation of dense CIFTI series (`.dtseries.nii`) with a dense label file (`.dlabel.nii`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.functional.cifti import axes_and_values, check_cifti_header, seconds_of, unusable
from neuroflamingo_preprocessing.functional.parcel_tables import Table, printable
from neuroflamingo_preprocessing.functional.parcellation import ParcelMeans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.spec import Parcellation

ENDING = ".dlabel.nii"
MOST_EMPTY = 0.1
"""A series that lacks more than this share of the parcels does not fit the parcellation."""


@dataclass(frozen=True)
class DenseAtlas:
    """Parcellation of grayordinates (cortical vertices and subcortical voxels); label 0 is no parcel.

    Attributes:
        labels: (structure, vertex) or (structure, i, j, k) to label.
        values: the labels that occur, ascending: the row order of a parcel series.
        names: names of the labels, in that order.
        name, sha256: name and hash of the file.
    """

    labels: dict[tuple[Any, ...], int]
    values: NDArray[np.int32]
    names: tuple[str, ...]
    name: str
    sha256: str


def is_dense_atlas(path: str | Path) -> bool:
    """True for the file name of a dense label file."""
    return Path(path).name.lower().endswith(ENDING)


def read_dense_atlas(
    path: str | Path, parcellation: Parcellation | None = None, parcels: int | None = None
) -> DenseAtlas:
    """Read a `.dlabel.nii` file with one map; arguments as in `read_atlas`.

    Raises:
        NotFoundError: no such file.
        ScanError: another kind of file, another number of parcels, or not the file that the card names.
    """
    from nibabel.cifti2.cifti2_axes import BrainModelAxis, LabelAxis

    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", expected="a .dlabel.nii file", hint="check the path")
    raw = path.read_bytes()
    check_cifti_header(raw, path.name)
    axes, table = axes_and_values(raw, path.name)
    if [type(axis) for axis in axes] != [LabelAxis, BrainModelAxis] or len(axes[0]) != 1:
        raise unusable(path.name, "axes " + ", ".join(f"{type(a).__name__} of {len(a)}" for a in axes))
    labels = np.rint(table[0]).astype(np.int32)
    values = np.unique(labels[labels > 0])
    digest = hashlib.sha256(raw).hexdigest()
    wanted = None if parcellation is None else parcellation.sha256
    if (parcels is not None and len(values) != parcels) or wanted not in (None, digest):
        raise ScanError(
            f"{path.name} is not the parcellation that the encoder takes",
            expected=f"{parcels} parcels" + (f", SHA-256 {wanted}" if wanted else ""),
            seen=f"{len(values)} parcels, SHA-256 {digest}",
            hint="use the atlas file that the encoder's card names",
        )
    label_names = axes[0].label[0]
    names = printable(
        [str(label_names[int(value)][0]) if int(value) in label_names else str(value) for value in values]
    )
    points = dict(zip(_points(axes[1]), labels.tolist(), strict=True))
    return DenseAtlas(points, values.astype(np.int32), names, path.name, digest)


def _points(axis: Any) -> list[tuple[Any, ...]]:
    """Grayordinates of an axis: structure and vertex, or structure and voxel."""
    surface = axis.surface_mask
    return [
        (name, int(vertex)) if on_surface else (name, *map(int, voxel))
        for name, vertex, voxel, on_surface in zip(axis.name, axis.vertex, axis.voxel, surface, strict=True)
    ]


def parcellated(raw: bytes, name: str, atlas: DenseAtlas) -> Table:
    """Mean of a dense series over each parcel, `[parcel, frame]`; 0 for a parcel without grayordinates.

    Raises:
        ScanError: not a dense series, or one that lacks more than a tenth of the parcels.
    """
    from nibabel.cifti2.cifti2_axes import BrainModelAxis, SeriesAxis

    check_cifti_header(raw, name)
    axes, values = axes_and_values(raw, name)
    if [type(axis) for axis in axes] != [SeriesAxis, BrainModelAxis]:
        raise unusable(name, "axes " + ", ".join(type(axis).__name__ for axis in axes))
    seconds = seconds_of(axes[0], name)
    labels = np.array([atlas.labels.get(point, 0) for point in _points(axes[1])], np.int32)
    means = ParcelMeans(labels[:, None, None], atlas.values)
    empty = int((means.voxels == 0).sum())
    if empty > MOST_EMPTY * len(atlas.values):
        raise ScanError(
            f"{name} does not hold the grayordinates of {atlas.name}",
            expected=f"grayordinates of at least {1 - MOST_EMPTY:.0%} of its {len(atlas.values)} parcels",
            seen=f"{empty} parcels without any",
            hint="use a label file for the same surface mesh (fsLR 32k, 164k, ...)",
        )
    series = means(np.asfortranarray(values.T.astype(np.float32))[:, None, None, :])
    return Table(series, seconds, kind="CIFTI dense series, parcellated", rows="parcels", names=atlas.names)
