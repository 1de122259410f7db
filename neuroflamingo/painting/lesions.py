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
    from neuroflamingo.painting.anatomy import Anatomy

BORDER_LATTICE = 7


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

    @property
    def reach_mm(self) -> float:
        """Distance from the centre beyond which nothing changes, in mm."""
        largest = 1.0 / np.linalg.svd(self.shape, compute_uv=False).min()
        return float(largest * (2.6 if self.push else 1.8))

    def own_frame(self, points: Float32[Tensor, "point 3"]) -> Float32[Tensor, "point 3"]:
        """Points (mm) in the lesion's frame, where its smooth border has radius 1."""
        return (points - torch.from_numpy(self.centre)) @ torch.from_numpy(self.shape).T

    def level(self, own: Float32[Tensor, "point 3"]) -> Float32[Tensor, " point"]:
        """Level function, below 1 inside and above 1 outside."""
        grid = (own / 2.0)[None, None, None]
        noise = torch.nn.functional.grid_sample(self.border, grid, padding_mode="border", align_corners=True)
        if self.wedge:
            along, across = own[:, 0], own[:, 1:].norm(dim=1)
            width = 0.3 + 0.7 * (along.clamp(-1, 1) + 1.0) / 2.0
            radius = torch.maximum(along.abs(), across / width)
        else:
            radius = own.norm(dim=1)
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
    half = lesion.reach_mm / (2.6 if lesion.push else 1.8) * 1.5
    axis = torch.linspace(-half, half, samples)
    offsets = torch.cartesian_prod(axis, axis, axis)
    points = offsets + torch.from_numpy(lesion.centre)
    maps = anatomy.coarse(points)
    tissue = maps[3] > 0.5 if lesion.push else (maps[1] + maps[2]) > 0.35
    kept = points[(lesion.level(lesion.own_frame(points)) < 1.0) & tissue]
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
