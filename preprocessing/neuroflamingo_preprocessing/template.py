"""The template brain that scans are aligned to: nilearn's ICBM152 2009a symmetric T1, grey and white matter maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID_SHAPE = (56, 64, 56)
GRID_SPACING_MM = 3.0
GRID_ORIGIN_MM = (-82.5, -112.5, -76.5)
ANTIALIAS_FWHM_MM = 3.0


def grid_affine() -> NDArray[np.float64]:
    """The affine of the 3 mm grid that 3D encoders of this project see: voxel index to MNI152 RAS millimetres."""
    affine = np.diag([GRID_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = GRID_ORIGIN_MM
    return affine


@dataclass(frozen=True)
class Template:
    """The ICBM152 2009a symmetric template (values 0 to 1), at 1 mm and on the model grid.

    Attributes:
        t1, grey, white, mask: float32 arrays at 1 mm, `[197, 233, 189]`.
        affine: their voxel-to-world affine (RAS, mm).
        grid_t1, grid_grey, grid_white: the same, smoothed by a Gaussian of 3 mm FWHM, on the model grid `[56, 64, 56]`.
        grid_mask: bool, the brain on the model grid.

    Source: Fonov et al. 2011, through nilearn (BSD-3).
    """

    t1: NDArray[np.float32]
    grey: NDArray[np.float32]
    white: NDArray[np.float32]
    mask: NDArray[np.float32]
    affine: NDArray[np.float64]
    grid_t1: NDArray[np.float32]
    grid_grey: NDArray[np.float32]
    grid_white: NDArray[np.float32]
    grid_mask: NDArray[np.bool_]


def resample_to_grid(volume: NDArray[Any], affine: NDArray[np.float64], order: int = 1) -> NDArray[np.float32]:
    """A smooth volume of axis-aligned template space on the model grid, without any further filter."""
    from scipy.ndimage import affine_transform

    to_voxel = np.linalg.inv(affine) @ grid_affine()
    return affine_transform(
        volume, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=GRID_SHAPE, order=order, output=np.float32
    )


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Load the template once (0.6 s; no network: nilearn ships it)."""
    from nilearn import datasets
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    image: Any = datasets.load_mni152_template(resolution=1)
    affine = np.asarray(image.affine, dtype=np.float64)
    loaders = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask)
    t1 = np.asarray(image.dataobj, dtype=np.float32)
    grey, white, mask = (np.asarray(load(resolution=1).dataobj, dtype=np.float32) for load in loaders)
    mask = binary_fill_holes(mask > 0.5).astype(np.float32)
    sigma = ANTIALIAS_FWHM_MM / 2.355
    on_grid = [resample_to_grid(gaussian_filter(a, sigma), affine) for a in (t1, grey, white, mask)]
    return Template(t1, grey, white, mask, affine, *on_grid[:3], grid_mask=on_grid[3] > 0.5)
