"""Healthy heads of one's own to paint into: aligned, freed of their bias field, and divided into tissues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.painting.tissues import Maps, segment
from neuroflamingo_encoders.families.tiny_t1w.cards import CARD
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import to_canonical
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.read import read_scan
from neuroflamingo_preprocessing.structural.alignment import align
from neuroflamingo_preprocessing.structural.contrast import find_contrast
from neuroflamingo_preprocessing.structural.intensity import within
from neuroflamingo_preprocessing.structural.resampling import resample
from neuroflamingo_preprocessing.structural.template import load_template
from neuroflamingo_preprocessing.structural.volume_quality import judge_alignment

if TYPE_CHECKING:
    from numpy.typing import NDArray

BIAS_MM, BIAS_ITERATIONS = 4.0, (40, 40, 30)
"""Resolution at which the bias field is estimated, and steps of each of its levels."""


def find_heads(folder: str | Path) -> tuple[str, ...]:
    """Paths of the T1-weighted scans in a folder or BIDS dataset, sorted.

    Raises:
        NotFoundError: no such folder, or no scans in it (exit 66).
    """
    return tuple(str(one.path) for one in find_inputs(folder, CARD.scan))


def read_head(path: str | Path) -> Maps:
    """T1, grey, white and mask of a healthy head (0 to 1), on the template's 1 mm grid, and its affine.

    The brain is found and aligned as for a report; its bias field is estimated by N4 (SimpleITK). The signal keeps the
    head's own texture, scaled piecewise to the template's tissues; tissue shares are those of a mixture of two tissues.

    Raises:
        NotFoundError, ScanError: the head cannot be read, placed, or is not T1-weighted (exit 66, 65).
    """
    scan = read_scan(path)
    voxels, affine = to_canonical(scan.voxels, scan.affine)
    alignment = align(voxels, affine)
    contrast = find_contrast(scan, alignment.scan_to_template)
    judge_alignment(alignment, contrast, scan, [])
    if contrast.kind != "T1w":
        raise ScanError(
            f"{Path(path).name} cannot be painted into",
            expected="a healthy T1-weighted head",
            seen=f"by its tissues, {contrast.kind}",
            hint="leave it out of the folder",
        )
    template, brain = load_template(), alignment.brain
    grid = template.mask.shape, template.affine
    to_template = alignment.scan_to_template
    signal = resample(within(voxels, *brain.limits), to_template @ affine, *grid, 0.0, 0.0)
    mask = brain.on_grid(to_template, *grid)
    signal = np.where(mask, signal - min(0.0, brain.limits[0]), np.float32(0))
    return segment(np.asarray(signal / bias_field(signal, mask), np.float32), mask, template.affine)


def bias_field(signal: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Multiplicative bias field of a brain at 1 mm, by N4 at 4 mm (Tustison et al. 2010)."""
    import SimpleITK as sitk
    from scipy.ndimage import zoom

    step = round(BIAS_MM)
    every = (slice(None, None, step),) * 3
    image = sitk.GetImageFromArray(np.ascontiguousarray(signal[every]))
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(BIAS_ITERATIONS)
    corrector.SetNumberOfThreads(1)
    corrector.Execute(image, sitk.GetImageFromArray(mask[every].astype(np.uint8)))
    small = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)))
    factors = [n / m for n, m in zip(signal.shape, small.shape, strict=True)]
    return np.clip(zoom(small, factors, order=1), 0.2, 5.0).astype(np.float32)
