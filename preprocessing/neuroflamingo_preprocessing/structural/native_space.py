"""Native space: resample maps from an encoder's grid to the scan's own voxels, and save them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from isal import igzip

from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.files import write_bytes_atomic

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import Affine
    from neuroflamingo_preprocessing.structural.prepare_volume import Prepared

Interpolation = Literal["nearest", "linear"]
QFORM_SHEAR = 1e-4
"""A qform holds a rotation and voxel sizes: an affine with more shear than this is written as an sform alone."""


def native_to_grid(prepared: Prepared) -> Affine:
    """Affine from voxel indices of the scan as stored to indices of the encoder's grid, `[4, 4]`."""
    return np.linalg.inv(prepared.affine) @ prepared.scan_to_template @ prepared.native.affine


def to_native(
    prepared: Prepared,
    values: Shaped[np.ndarray, "x y z"],
    *,
    interpolation: Interpolation | None = None,
    fill: float = 0.0,
) -> Shaped[np.ndarray, "x y z"]:
    """Resample a map (attention, a mask, labels) from the encoder's grid to the voxels of the scan as stored.

    One interpolation: nearest neighbour for masks and integers, which keep their type, linear for other numbers, as
    float32.

    Args:
        prepared: result of `prepare`, on the grid of the map.
        values: one value for each voxel of the grid, `prepared.tensor.shape[1:]`.
        interpolation: overrides the choice by type. A mask resampled linearly as float32 and cut at 0.5 has a smoother
            edge.
        fill: value of voxels outside the grid.

    Returns:
        The map, with the shape, orientation and position of the scan's file.

    Raises:
        UsageError: a map of another shape, or not of numbers.
    """
    from scipy.ndimage import affine_transform

    values = np.asarray(values)
    grid = prepared.tensor.shape[1:]
    if values.shape != grid or values.dtype.kind not in "biuf":
        raise UsageError(
            "the map does not lie on the encoder's grid",
            expected=f"numbers of shape {list(grid)}",
            seen=f"{values.dtype} of shape {list(values.shape)}",
            hint="give one value for each voxel of the prepared tensor, without its channel axis",
        )
    method = interpolation or ("linear" if values.dtype.kind == "f" else "nearest")
    dtype = values.dtype if method == "nearest" else np.dtype(np.float32)
    source = values.astype(np.uint8) if dtype.kind == "b" else values.astype(dtype, copy=False)
    matrix = native_to_grid(prepared)
    offset: Any = matrix[:3, 3]
    out = np.empty(prepared.native.shape, source.dtype)
    order = 0 if method == "nearest" else 1
    affine_transform(
        source,
        matrix[:3, :3],
        offset,
        output_shape=out.shape,
        output=out,
        order=order,
        mode="grid-constant" if order else "constant",
        cval=fill,
        prefilter=False,
    )
    return out.astype(dtype, copy=False)


def save_native(
    path: str | Path,
    prepared: Prepared,
    values: Shaped[np.ndarray, "x y z"],
    *,
    interpolation: Interpolation | None = None,
    overwrite: bool = False,
) -> Path:
    """Resample a map with `to_native` and save it as NIfTI with the scan's affine, to overlay it in any viewer.

    The header holds the type, sizes and affine, and nothing of the scan's own header.

    Args:
        path: ends in `.nii` or `.nii.gz`.

    Raises:
        UsageError: another ending; see `to_native`.
        OutputError: the file exists (without `overwrite`) or cannot be written.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path.name} is not a name for a NIfTI file", expected="the extension .nii or .nii.gz")
    raw = nifti_bytes(
        to_native(prepared, values, interpolation=interpolation), prepared.native.affine, prepared.native.code
    )
    if path.name.lower().endswith(".gz"):
        raw = igzip.compress(raw, compresslevel=2, mtime=0)
    return write_bytes_atomic(path, raw, overwrite=overwrite)


def nifti_bytes(values: NDArray[Any], affine: Affine, code: int) -> bytes:
    """Bytes of a NIfTI-1 file; the affine is written as sform and, where a qform can hold it, as qform.

    Args:
        values: `[x, y, z]`.
        affine: voxel index to world, RAS mm.
        code: NIfTI code of the world space: 1 scanner, 4 MNI152, ...
    """
    from nibabel.nifti1 import Nifti1Image

    stored = values.astype(np.uint8) if values.dtype.kind == "b" else values
    stored = stored.astype(np.int32 if stored.dtype.itemsize > 4 and stored.dtype.kind in "iu" else stored.dtype)
    image = Nifti1Image(stored, affine, dtype=stored.dtype)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(directions.T @ directions - np.eye(3)).max() > QFORM_SHEAR
    image.set_sform(affine, code)
    image.set_qform(affine, 0 if sheared else code)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()
