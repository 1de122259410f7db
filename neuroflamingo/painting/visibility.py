"""How visible a painted lesion is: its signal change against noise and texture, and its volume."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.painting.anatomy import Anatomy, Volume
from neuroflamingo.painting.lattice import lattice_affine
from neuroflamingo.painting.lesions import Lesion, measure
from neuroflamingo.painting.rendering import paint, slow_fields

if TYPE_CHECKING:
    from neuroflamingo.painting.cases import Blueprint

TEXTURE = 0.05
"""Standard deviation of normal tissue about its mean, in units of the painted signal; it adds to a scan's noise."""
LEAST_CONTRAST_TO_NOISE, LEAST_ML = 1.5, 0.2
"""Below either, no reader is expected to see a lesion."""
SAMPLES = 24


@dataclass(frozen=True)
class Visibility:
    """Visibility of one lesion.

    Attributes:
        contrast_to_noise: mean signal change within it, divided by the spread of noise and of normal texture.
        volume_ml: in the patient's head.
    """

    contrast_to_noise: float
    volume_ml: float

    @property
    def visible(self) -> bool:
        """Whether a reader could see it."""
        return self.contrast_to_noise >= LEAST_CONTRAST_TO_NOISE and self.volume_ml >= LEAST_ML


def visibility(blueprint: Blueprint, anatomy: Anatomy) -> tuple[Visibility, ...]:
    """Visibility of each lesion of a case, in the order of `Blueprint.lesions`."""
    still = replace(blueprint, warp=Volume(np.zeros((3, 2, 2, 2), np.float32), lattice_affine(200.0)))
    spread = float(np.hypot(blueprint.scanner.noise, TEXTURE))
    return tuple(_visibility(number, lesion, still, anatomy, spread) for number, lesion in enumerate(still.lesions))


def _visibility(number: int, lesion: Lesion, blueprint: Blueprint, anatomy: Anatomy, spread: float) -> Visibility:
    _, points = measure(lesion, anatomy, blueprint.to_head[:3, :3], SAMPLES)
    cell_mm = 3.0 * lesion.radius_mm / (SAMPLES - 1)
    volume_ml = len(points) * cell_mm**3 * float(np.linalg.det(blueprint.to_head[:3, :3])) / 1000.0
    if not len(points):
        return Visibility(0.0, 0.0)
    others = tuple(one for at, one in enumerate(blueprint.lesions) if at != number)
    signals = [
        paint(one, anatomy, slow_fields(one, anatomy, points), fine=False)[0]
        for one in (blueprint, replace(blueprint, lesions=others))
    ]
    return Visibility(float((signals[0] - signals[1]).abs().mean()) / spread, volume_ml)
