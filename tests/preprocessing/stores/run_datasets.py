"""Small runs and their atlas on disk, and the arguments of `prepare` that make parcel series of them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

LAS = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -126], [0, 0, 6, -72], [0, 0, 0, 1]])
SHAPE = (31, 37, 31)
X, Y, Z = np.indices(SHAPE)
LABELS = (1 + ((X // 4) * 49 + (Y // 5) * 7 + Z // 4) % 30).astype(np.int16)


def save(path: Path, values: np.ndarray, tr: float = 0.8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, LAS)
    image.set_sform(LAS, 4)
    image.set_qform(LAS, 4)
    if values.ndim == 4:
        image.header.set_zooms((6.0, 6.0, 6.0, tr))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


def run(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(500, 1500, (*SHAPE, 12)).astype(np.float32)


COMMON = [
    "prepare",
    "ds",
    "-o",
    "store",
    "--encoder",
    "fc-baseline",
    "--option",
    "parcels=30",
    "--atlas",
    "atlas.nii.gz",
]


def summary(store: str = "store", name: str = "summary.json") -> dict:
    return json.loads((Path(store) / name).read_text())
