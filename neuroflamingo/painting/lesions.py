"""Focal lesions as irregular level sets in anatomical (MNI) coordinates, so that they follow the anatomy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float32
    from numpy.typing import NDArray

    from neuroflamingo.findings.vocabulary import FindingClass
    from neuroflamingo.painting.anatomy import Anatomy, Volume

BORDER_LATTICE = 7
TERRITORIES = ("anterior cerebral artery", "middle cerebral artery", "posterior cerebral artery")
TERRITORY_EDGE_MM = 6.0
"""Distance beyond its territory's border at which an infarct has ended."""


def territories(points: Float32[Tensor, "point 3"]) -> Float32[Tensor, "territory point"]:
    """How deep points of the cerebrum lie in each artery's territory: mm, roughly; negative outside (own rule).

    Anterior: a band along the midline down to the callosum, to the parieto-occipital sulcus. Posterior: behind a plane
    through that sulcus, and the underside of the temporal lobe. Middle: the rest.
    """
    x, y, z = points[:, 0].abs(), points[:, 1], points[:, 2]
    anterior = torch.minimum(torch.minimum(20.0 - x, y + 52.0), z + 0.4 * y + 4.0)
    behind = -60.0 - y - 0.25 * (z - 10.0).clamp(min=0)
    below = torch.minimum(torch.minimum(-12.0 - z - 0.2 * (y + 20.0), -6.0 - y), 48.0 - x)
    posterior = torch.maximum(behind, below)
    return torch.stack([anterior, -torch.maximum(anterior, posterior), torch.minimum(posterior, -anterior)])


@dataclass(frozen=True)
class Outline:
    """Outline of a real lesion.

    Attributes:
        name: of its file.
        centre: MNI mm.
        radius_mm: of a ball of the same volume.
        extent: largest distance of the outline from the centre, in radii.
        distance: signed distance to the outline, negative inside; both in radii.
    """

    name: str
    centre: NDArray[np.float32]
    radius_mm: float
    extent: float
    distance: Volume


@dataclass(frozen=True)
class Lesion:
    """One focal lesion.

    Attributes:
        kind: infarct, mass or hematoma.
        centre: MNI mm.
        shape: `[3, 3]`, takes an offset from the centre (mm) to the lesion's own frame, where its border is near 1;
            for a wedge the first own axis points at the cortex.
        wedge: a cortical wedge rather than a rounded body.
        border: random lattice that makes the outline irregular, `[1, 1, 7, 7, 7]`.
        roughness: irregularity of the outline, as a fraction of the radius.
        edge: softness of the border (own units).
        contrast: share of the tissue-to-fluid signal difference; 0.1 is barely visible.
        push: displacement of surrounding tissue, as a fraction of the radius (0 for infarcts).
        core: radius of a mass's necrosis, or of a hematoma's darker middle (own units; 0: none).
        wall: signal of a mass around its necrosis: fall towards fluid, as a share of `contrast`; below 0 it is bright,
            as after contrast agent.
        halo: width of edema, or of gliosis around an infarct, in white matter (own units; 0: none).
        territory: artery to whose territory an infarct is confined, by its place in `TERRITORIES`; None: to none.
        outline: a real lesion's, instead of a drawn one.
    """

    kind: FindingClass
    centre: NDArray[np.float32]
    shape: NDArray[np.float32]
    wedge: bool
    border: Tensor
    roughness: float
    edge: float
    contrast: float
    push: float
    core: float = 0.0
    wall: float = 0.8
    halo: float = 0.0
    territory: int | None = None
    outline: Outline | None = None

    @property
    def radius_mm(self) -> float:
        """Largest distance of the smooth border from the centre, mm."""
        extent = 1.0 if self.outline is None else self.outline.extent
        return extent / float(np.linalg.svd(self.shape, compute_uv=False).min())

    @property
    def reach_mm(self) -> float:
        """Distance from the centre beyond which nothing changes, in mm."""
        return self.radius_mm * max(2.6 if self.push else 1.8, 1.6 + self.halo)

    def own_frame(self, points: Float32[Tensor, "point 3"]) -> Float32[Tensor, "point 3"]:
        """Points (mm) in the lesion's frame, where its smooth border has radius 1."""
        return (points - torch.from_numpy(self.centre)) @ torch.from_numpy(self.shape).T

    def level(self, own: Float32[Tensor, "point 3"]) -> Float32[Tensor, " point"]:
        """Level function, below 1 inside and above 1 outside."""
        grid = (own / 2.0)[None, None, None]
        noise = torch.nn.functional.grid_sample(self.border, grid, padding_mode="border", align_corners=True)
        if self.outline is not None:
            radius = 1.0 + self.outline.distance(own)[0]
        elif self.wedge:
            along, across = own[:, 0], own[:, 1:].norm(dim=1)
            width = 0.3 + 0.7 * (along.clamp(-1, 1) + 1.0) / 2.0
            radius = torch.maximum(along.abs(), across / width)
        else:
            radius = own.norm(dim=1)
        if self.territory is not None:
            points = own @ torch.from_numpy(np.linalg.inv(self.shape)).T + torch.from_numpy(self.centre)
            radius = radius + (territories(points)[self.territory] / -TERRITORY_EDGE_MM).clamp(min=0)
        return radius + self.roughness * noise[0, 0, 0, 0]

    def inside(self, level: Float32[Tensor, " point"]) -> Float32[Tensor, " point"]:
        """Lesion fraction at each point, 0 to 1."""
        return torch.sigmoid((1.0 - level) / self.edge)

    def source(self, points: Float32[Tensor, "point 3"]) -> Float32[Tensor, "point 3"]:
        """Position of the tissue at each point before the lesion displaced it (backward map)."""
        own = self.own_frame(points)
        share = self.push * torch.exp(-own.square().sum(1, keepdim=True) / (2.0 * 1.2**2))
        return points - share * (points - torch.from_numpy(self.centre))


def measure(
    lesion: Lesion, anatomy: Anatomy, to_head: NDArray[np.float64], samples: int = 28
) -> tuple[float, Float32[Tensor, "point 3"]]:
    """Longest diameter in mm in the patient's head, and the lesion's points in MNI space.

    Args:
        to_head: `[3, 3]` linear part of the MNI-to-head affine, which gives sizes in the patient's space.
    """
    half = lesion.radius_mm * 1.5
    axis = torch.linspace(-half, half, samples)
    offsets = torch.cartesian_prod(axis, axis, axis)
    points = offsets + torch.from_numpy(lesion.centre)
    points = points[lesion.level(lesion.own_frame(points)) < 1.0]
    grey, white, mask = anatomy.coarse(points, slice(1, 4))
    kept = points[mask > 0.5 if lesion.push else (grey + white) > 0.35]
    if len(kept) < 4:
        return 0.0, kept
    head = (kept.numpy() - lesion.centre) @ to_head.T
    extents = head @ _DIRECTIONS.T
    voxel = 2.0 * half / (samples - 1)
    return float((extents.max(0) - extents.min(0)).max() + 0.5 * voxel), kept


def _fibonacci(count: int) -> NDArray[np.float64]:
    """Evenly distributed directions on the half sphere."""
    k = np.arange(count) + 0.5
    z = k / count
    phi = np.pi * (1 + 5**0.5) * k
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1)


_DIRECTIONS = _fibonacci(96)
