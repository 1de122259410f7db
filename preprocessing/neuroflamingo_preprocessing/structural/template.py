"""Template brain: nilearn's ICBM152 2009a symmetric T1, grey and white matter maps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import NotFoundError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRID_SHAPE = (56, 64, 56)
GRID_SPACING_MM = 3.0
GRID_ORIGIN_MM = (-82.5, -112.5, -76.5)
ANTIALIAS_FWHM_MM = 3.0
BRAIN_FROM = 0.2
"""Threshold of the brain in the template's T1 (nilearn's); holes inside are brain as well."""


def grid_affine() -> NDArray[np.float64]:
    """Affine of the 3 mm grid of this project's 3D encoders: voxel index to MNI152 world, RAS mm."""
    affine = np.diag([GRID_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = GRID_ORIGIN_MM
    return affine


@dataclass(frozen=True)
class Template:
    """ICBM152 2009a symmetric template (values 0 to 1), at 1 mm and on the model grid.

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
    """Resample a smooth volume in axis-aligned template space to the model grid, without a further filter."""
    from scipy.ndimage import affine_transform

    to_voxel = np.linalg.inv(affine) @ grid_affine()
    return affine_transform(
        volume, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=GRID_SHAPE, order=order, output=np.float32
    )


def template_file(tissue: str) -> Path:
    """Find the template file that nilearn ships for `t1`, `gm` or `wm`.

    Located without importing nilearn, whose loaders take ten times as long to import as the file takes to read.

    Raises:
        NotFoundError: nilearn is missing, or keeps its template elsewhere.
    """
    spec = find_spec("nilearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
        if path.is_file():
            return path
    raise NotFoundError(
        f"the template's {tissue} map is missing",
        expected="the file that nilearn ships",
        hint="pip install --force-reinstall nilearn",
    )


def antialiased(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smooth a volume at 1 mm as the preparation does before sampling the model grid."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(volume, ANTIALIAS_FWHM_MM / 2.355)


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Load the template, once (about 2 s, without network: nilearn ships it)."""
    import nibabel as nib

    images: list[Any] = [nib.load(template_file(tissue)) for tissue in ("t1", "gm", "wm")]
    affine = np.asarray(images[0].affine, dtype=np.float64)
    t1, grey, white = (_scaled(image) for image in images)
    mask = _brain(t1)
    with ThreadPoolExecutor(2) as pool:  # two smoothed volumes of 35 MB at a time
        on_grid = list(pool.map(lambda volume: resample_to_grid(antialiased(volume), affine), (t1, grey, white, mask)))
    return Template(t1, grey, white, mask, affine, *on_grid[:3], grid_mask=on_grid[3] > 0.5)


def _scaled(image: Any) -> NDArray[np.float32]:
    values = np.asarray(image.dataobj).astype(np.float32)
    values /= values.max()
    return values


def _brain(t1: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mask of the brain and the holes in it: all that is not joined to the outside."""
    from scipy.ndimage import label

    apart, _ = label(np.pad(t1 <= BRAIN_FROM, 1, constant_values=True))
    return (apart != apart[0, 0, 0])[1:-1, 1:-1, 1:-1].astype(np.float32)
