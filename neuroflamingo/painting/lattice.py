"""Linear interpolation from a coarse lattice to voxels, as matrix products along one axis after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float32


def hats(places: Float32[Tensor, " place"], nodes: int) -> Float32[Tensor, "place node"]:
    """Linear interpolation weights of the nodes 0, 1, ... at positions along a line."""
    return (1.0 - (places[:, None] - torch.arange(nodes)).abs()).clamp(min=0.0)


def grow(
    fields: Float32[Tensor, "field i j k"], *along: Float32[Tensor, "voxel node"]
) -> Float32[Tensor, "field x y z"]:
    """Interpolate fields from nodes to voxels, by the weights along each of the three axes (see `hats`)."""
    to_x, to_y, to_z = along
    return to_y @ (torch.einsum("xi,fijk->fxjk", to_x, fields) @ to_z.T)
