"""`resample`: anti-aliasing filter and one interpolation onto the encoder's grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.geometry import Affine, apply, block_mean, corners

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Shaped
    from numpy.typing import NDArray

FINE_MM = 0.75  # voxels smaller than this are averaged in blocks first: nothing of them survives the filter
FWHM_PER_SIGMA = 2.355
REFERENCE_MM = 1.0  # voxel size of the template, whose blur by its own voxels the encoder was trained with


def resample(
    voxels: Float32[np.ndarray, "x y z"],
    affine: Affine,
    grid_shape: tuple[int, int, int],
    grid_affine: Affine,
    fwhm_mm: float,
    fill: float,
    *,
    nearest_outside: bool = False,
) -> NDArray[np.float32]:
    """Resample voxels to another grid: a Gaussian, then one linear interpolation.

    The Gaussian brings the total blur to `fwhm_mm`: blur by the source's own voxels is subtracted, so that a 3 mm scan
    and a 1 mm scan of one head come out alike.

    Args:
        voxels: `[x, y, z]` in any orientation.
        affine: voxel index to the world of the grid, mm.
        grid_shape, grid_affine: the target grid.
        fwhm_mm: total blur in the world of the grid, 0 for none.
        fill: value outside the field of view.
        nearest_outside: the outermost voxels go on outside of it instead.
    """
    from scipy.ndimage import affine_transform, gaussian_filter

    voxels, affine = _crop(voxels, affine, grid_shape, grid_affine, margin_mm=2 * fwhm_mm)
    if fwhm_mm:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        x, y, z = (max(1, int(REFERENCE_MM / s)) if s < FINE_MM else 1 for s in spacing)
        voxels, affine = block_mean(voxels, affine, (x, y, z))
        sigma = _sigma(np.linalg.norm(affine[:3, :3], axis=0), fwhm_mm)
        voxels = np.asarray(gaussian_filter(voxels, sigma, truncate=3.0, output=np.float32), dtype=np.float32)
    to_voxel = np.linalg.inv(affine) @ grid_affine
    offset: Any = to_voxel[:3, 3]
    out = np.empty(grid_shape, dtype=np.float32)
    outside = "nearest" if nearest_outside else "constant"
    affine_transform(
        voxels, to_voxel[:3, :3], offset, output_shape=grid_shape, output=out, order=1, mode=outside, cval=fill
    )
    return out


def nearest_values(
    voxels: Shaped[np.ndarray, "x y z"], affine: Affine, points: Float64[np.ndarray, "point 3"]
) -> NDArray[np.float64]:
    """Values of the voxels nearest to points (mm), of those inside the field of view."""
    index = np.rint(apply(np.linalg.inv(affine), points)).astype(int)
    seen = index[((index >= 0) & (index < voxels.shape)).all(axis=1)]
    return voxels[tuple(seen.T)].astype(np.float64)


def covered_voxels(
    shape: tuple[int, ...], affine: Affine, grid_shape: tuple[int, int, int], grid_affine: Affine
) -> NDArray[np.bool_]:
    """Mask of the grid's voxels whose centre lies inside the source's field of view, `[x, y, z]`."""
    to_voxel = np.linalg.inv(affine) @ grid_affine
    inside = np.ones(grid_shape, dtype=bool)
    i, j, k = (np.arange(n, dtype=np.float32) for n in grid_shape)
    for axis, n in enumerate(shape):
        row = to_voxel[axis]
        place = row[0] * i[:, None, None] + row[1] * j[None, :, None] + row[2] * k + row[3]
        inside &= (place >= -0.5) & (place <= n - 0.5)
    return inside


def _sigma(spacing: NDArray[np.float64], fwhm_mm: float) -> NDArray[np.float64]:
    """Width of the Gaussian along each source axis, in voxels.

    A voxel of size s averages over a box (variance s^2 / 12) and is interpolated linearly (s^2 / 6 on average).
    """
    wanted = (fwhm_mm / FWHM_PER_SIGMA) ** 2 + (REFERENCE_MM**2 - spacing**2) / 4
    return np.sqrt(np.maximum(wanted, 0.0)) / spacing


def _crop(
    voxels: NDArray[np.float32],
    affine: Affine,
    grid_shape: tuple[int, int, int],
    grid_affine: Affine,
    margin_mm: float,
) -> tuple[NDArray[np.float32], Affine]:
    """Crop the source to the part that the grid needs: filtering the neck costs as much as filtering the brain."""
    places = apply(np.linalg.inv(affine) @ grid_affine, corners(grid_shape))
    margin = margin_mm / np.linalg.norm(affine[:3, :3], axis=0) + 2
    low = np.clip(np.floor(places.min(axis=0) - margin), 0, np.asarray(voxels.shape) - 1).astype(int)
    high = np.clip(np.ceil(places.max(axis=0) + margin) + 1, low + 1, voxels.shape).astype(int)
    shift = np.eye(4)
    shift[:3, 3] = low
    return voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], affine @ shift
