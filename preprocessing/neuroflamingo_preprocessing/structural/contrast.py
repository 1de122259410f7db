"""`find_contrast`: what kind of image an aligned head is, by the signal of fluid and deep grey matter against white."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from neuroflamingo_preprocessing.geometry import apply
from neuroflamingo_preprocessing.structural.resampling import nearest_values
from neuroflamingo_preprocessing.structural.template import GRID_SPACING_MM, grid_affine, load_template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import Affine
    from neuroflamingo_preprocessing.scan import Scan

Kind = Literal["T1w", "T2w", "FLAIR", "PDw", "CT", "unknown"]

DEEP_MM = 25.0  # below the surface of the brain: grey matter there is nuclei, fluid there is ventricles
WHITE_FROM, GREY_FROM, TISSUE_BELOW = 0.9, 0.75, 0.25  # shares of tissue in the template that make a zone
GREY_IS_WHITE = 0.945  # deep grey matter relative to white: T1w lies below, all others above
FLUID_BRIGHT, FLUID_DARK = 1.2, 0.85
ENHANCED, ENHANCED_SHARE = 1.6, 0.005  # signal relative to white matter, and share of the brain that lies above
DARKEST = 0.005  # quantile of the brain's signal that is nothing, where signal can be below 0
AIR_HU, BRAIN_HU, BONE_HU = -500.0, (0.0, 90.0), 700.0  # Hounsfield units
FEWEST = 30  # voxels of a zone in view


@dataclass(frozen=True)
class Contrast:
    """Signal of an aligned head in zones of the template, and what it says of the image.

    Attributes:
        kind: `T1w`, `T2w`, `FLAIR`, `PDw`, `CT` or `unknown`.
        fluid: median signal of the ventricles, white matter being 1; None if not in view.
        deep_grey: median signal of thalamus and basal ganglia, white matter being 1; None if not in view.
        bright_share: share of the brain above 1.6 times white matter.
        enhanced: true for a T1-weighted head with more of that than tissue has: vessels with contrast agent.
    """

    kind: Kind
    fluid: float | None = None
    deep_grey: float | None = None
    bright_share: float = 0.0
    enhanced: bool = False


def find_contrast(scan: Scan, scan_to_template: Affine) -> Contrast:
    """Tell the kind of an image from its tissues.

    White matter is brighter than grey in T1-weighted heads alone; fluid is brightest in T2-weighted ones and darkest in
    FLAIR. The voxels nearest to the template's zones are read at the scan's own resolution, deep inside the brain,
    where neither the bias field nor a few mm of misplacement matter much.

    Args:
        scan: in any units and orientation.
        scan_to_template: scan world mm to template world mm.
    """
    affine = scan_to_template @ scan.affine
    white, grey, fluid, brain = (nearest_values(scan.voxels, affine, zone) for zone in _zones())
    if min(len(white), len(grey), len(fluid)) < FEWEST:
        return Contrast("unknown")
    of_white = float(np.median(white))
    if scan.voxels.min() < AIR_HU and BRAIN_HU[0] < of_white < BRAIN_HU[1] and scan.voxels.max() > BONE_HU:
        return Contrast("CT")
    nothing = min(0.0, float(np.quantile(brain, DARKEST)))
    if of_white <= nothing:
        return Contrast("unknown")
    of_fluid, of_grey = (float((np.median(part) - nothing) / (of_white - nothing)) for part in (fluid, grey))
    bright = float(((brain - nothing) / (of_white - nothing) > ENHANCED).mean())
    kind = _kind(of_fluid, of_grey)
    return Contrast(kind, of_fluid, of_grey, bright, enhanced=kind == "T1w" and bright > ENHANCED_SHARE)


def _kind(fluid: float, grey: float) -> Kind:
    if fluid > FLUID_BRIGHT:
        return "T2w"
    if grey < GREY_IS_WHITE:
        return "T1w" if fluid < FLUID_DARK else "unknown"
    return "FLAIR" if fluid < FLUID_DARK else "PDw"


@lru_cache(maxsize=1)
def _zones() -> tuple[NDArray[np.float64], ...]:
    """Template points (mm) of white matter, deep grey matter, ventricles, and the whole brain, each `[point, 3]`."""
    from scipy.ndimage import distance_transform_edt

    template = load_template()
    brain, grey, white = template.grid_mask, template.grid_grey, template.grid_white
    deep = np.asarray(distance_transform_edt(brain)) * GRID_SPACING_MM > DEEP_MM
    zones = (white > WHITE_FROM, (grey > GREY_FROM) & deep, (grey + white < TISSUE_BELOW) & brain & deep, brain)
    return tuple(apply(grid_affine(), np.argwhere(zone)) for zone in zones)
