"""Random values on a coarse lattice, their interpolation to voxels (one axis after the other), and rotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float32
    from numpy.typing import NDArray


def hats(places: Float32[Tensor, " place"], nodes: int) -> Float32[Tensor, "place node"]:
    """Linear interpolation weights of the nodes 0, 1, ... at positions along a line."""
    return (1.0 - (places[:, None] - torch.arange(nodes)).abs()).clamp(min=0.0)


def grow(
    fields: Float32[Tensor, "field i j k"], *along: Float32[Tensor, "voxel node"]
) -> Float32[Tensor, "field x y z"]:
    """Interpolate fields from nodes to voxels, by the weights along each of the three axes (see `hats`)."""
    to_x, to_y, to_z = along
    return to_y @ (torch.einsum("xi,fijk->fxjk", to_x, fields) @ to_z.T)


def draw_lattice(rng: np.random.Generator, channels: int, spacing_mm: float, scale: float) -> NDArray[np.float32]:
    """Draw normal values at nodes so far apart over the template, `[channel, x, y, z]`."""
    shape = (channels, *(int(np.ceil(n / spacing_mm)) + 1 for n in (196, 232, 188)))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def lattice_affine(spacing_mm: float) -> NDArray[np.float64]:
    """Node index of such a lattice to MNI mm."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = (-98, -134, -72)
    return affine


def rotation(angles_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix from angles about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(angles_deg)), np.sin(np.deg2rad(angles_deg))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
