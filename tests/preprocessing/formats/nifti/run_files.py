"""Small runs as NIfTI files, with any repetition time and unit in the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

AFFINE = np.array([[-10.0, 0, 0, 70], [0, 10, 0, -90], [0, 0, 10, -60], [0, 0, 0, 1]])
SHAPE = (14, 18, 12)


def write(path: Path, frames: int = 7, tr: float = 2.0, unit: str = "sec", dtype: Any = np.int16, **how: Any) -> Path:
    voxels = np.random.default_rng(0).integers(-500, 3000, (*SHAPE, frames)).astype(dtype)
    image = nib.Nifti1Image(how.get("voxels", voxels), AFFINE)
    image.set_sform(AFFINE, 4)
    image.set_qform(AFFINE, 4)
    image.header["pixdim"][4] = tr
    image.header["xyzt_units"] = 2 + {"none": 0, "sec": 8, "msec": 16, "usec": 24, "hz": 32}[unit]
    if "slope" in how:
        image.header.set_slope_inter(*how["slope"])
    image.to_filename(path)
    return path
