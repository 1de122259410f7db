"""The scan as it came, with the template's brain drawn into it: the reader's check that the alignment is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.report.pictures import Canvas
from neuroflamingo_preprocessing.geometry import apply, corners, to_canonical
from neuroflamingo_preprocessing.structural.template import load_template

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo_preprocessing.scan import Scan
    from neuroflamingo_preprocessing.structural.prepare_volume import Prepared

_SPACING_MM = 2.0
_MARGIN_MM = 22.0


def native_view(
    scan: Scan, prepared: Prepared
) -> tuple[Canvas, Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"] | None]:
    """Scan on an axis-aligned 2 mm grid of its own world space around the brain, and two masks there.

    The template's brain, and the brain that was found in the scan (None if none was looked for).

    Nothing is aligned here: a tilted head stays tilted. Only the display is resampled.
    """
    template = load_template()
    template_to_scan = np.linalg.inv(prepared.scan_to_template)
    brain = np.argwhere(template.mask > 0.5)
    box = np.stack([brain.min(0), brain.max(0)])
    extent = np.diff(box, axis=0)[0] + 1
    ends = apply(template_to_scan @ template.affine, corners(tuple(extent)) + box[0])
    low, high = ends.min(0) - _MARGIN_MM, ends.max(0) + _MARGIN_MM
    grid = np.diag([_SPACING_MM, _SPACING_MM, _SPACING_MM, 1.0])
    grid[:3, 3] = low
    x, y, z = (int(count) for count in np.ceil((high - low) / _SPACING_MM))
    voxels, affine = to_canonical(scan.voxels, scan.affine)
    shown = _sample(voxels, np.linalg.inv(affine) @ grid, (x, y, z))
    outline = _sample(template.mask, np.linalg.inv(template.affine) @ prepared.scan_to_template @ grid, (x, y, z))
    own = prepared.brain
    if own is not None:
        to_own = np.linalg.inv(prepared.affine) @ prepared.scan_to_template @ grid
        own = _sample(own.astype(np.float32), to_own, (x, y, z))
    return Canvas(_window(shown, outline > 0.5), grid), outline, own


def _sample(volume: np.ndarray, to_voxel: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    from scipy import ndimage

    return ndimage.affine_transform(
        volume, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=shape, order=1, output=np.float32
    )


def _window(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Grey values 0 to 1, windowed by the brain rather than by scalp or artefacts."""
    inside = values[brain & (values != 0)]
    if not inside.size:
        return np.zeros_like(values)
    low, high = min(0.0, float(np.percentile(inside, 1))), float(np.percentile(inside, 99))
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 0.92
