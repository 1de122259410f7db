"""Back to the scan's own voxels: maps on an encoder's grid, resampled to where the scan was stored, and written."""

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
"""A qform is a rotation and voxel sizes: an affine with more shear than this is written as an sform alone."""


def native_to_grid(prepared: Prepared) -> Affine:
    """Voxel index of the scan as stored to index of the encoder's grid, `[4, 4]`."""
    return np.linalg.inv(prepared.affine) @ prepared.scan_to_template @ prepared.native.affine


def to_native(
    prepared: Prepared,
    values: Shaped[np.ndarray, "x y z"],
    *,
    interpolation: Interpolation | None = None,
    fill: float = 0.0,
) -> Shaped[np.ndarray, "x y z"]:
    """A map on the encoder's grid (attention, a mask, labels) at each voxel of the scan as it was stored.

    One interpolation straight from the grid: masks and whole numbers by the nearest voxel, keeping their type, other
    numbers linearly as float32.

    Args:
        prepared: as `prepare` gave it, with the map's grid.
        values: one value a voxel of the grid, `prepared.tensor.shape[1:]`.
        interpolation: another one than the type of the values asks for. A mask taken linearly as float32 and cut at
            0.5 has a smoother edge.
        fill: for voxels outside the grid.

    Returns:
        The shape, the orientation and the place of the scan's file.

    Raises:
        UsageError: a map of another shape, or of no numbers.
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
    how = interpolation or ("linear" if values.dtype.kind == "f" else "nearest")
    dtype = values.dtype if how == "nearest" else np.dtype(np.float32)
    source = values.astype(np.uint8) if dtype.kind == "b" else values.astype(dtype, copy=False)
    matrix = native_to_grid(prepared)
    offset: Any = matrix[:3, 3]
    out = np.empty(prepared.native.shape, source.dtype)
    order = 0 if how == "nearest" else 1
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
    """`to_native`, written as a NIfTI file with the scan's own affine, so that it lies over the scan in any viewer.

    Nothing but the numbers and their place is in the header.

    Args:
        path: ends in `.nii` or `.nii.gz`.

    Raises:
        UsageError: another ending; see `to_native`.
        OutputError: the file exists (without `overwrite`) or cannot be written.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path.name} is no name for a NIfTI file", expected="an ending .nii or .nii.gz")
    raw = nifti_bytes(
        to_native(prepared, values, interpolation=interpolation), prepared.native.affine, prepared.native.code
    )
    if path.name.lower().endswith(".gz"):
        raw = igzip.compress(raw, compresslevel=2, mtime=0)
    return write_bytes_atomic(path, raw, overwrite=overwrite)


def nifti_bytes(values: NDArray[Any], affine: Affine, code: int) -> bytes:
    """A NIfTI-1 file; the affine is its sform and, where a qform can hold it, its qform too.

    Args:
        code: NIfTI's name of the world: 1 scanner, 4 MNI152, ...
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
