"""Anatomy that cases are painted into: tissue maps of a head, and spatial fields along which pathology acts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from neuroflamingo.findings.regions import region_of
from neuroflamingo.findings.vocabulary import FOCAL_REGIONS, LOBES, Side
from neuroflamingo.painting.heads import TEMPLATE, is_file, load_head
from neuroflamingo_preprocessing.files import sha256_of, write_bytes_atomic
from neuroflamingo_preprocessing.structural.template import antialiased

if TYPE_CHECKING:
    from jaxtyping import Float32
    from numpy.typing import NDArray

FIELD_SPACING_MM = 4.0
"""Spacing of the smooth fields (distances, normals, lobes)."""
CACHE = 2
"""Version of what is kept of a head."""
WALL_REACH_MM = 12.0
"""Distance from a ventricle's wall over which its movement fades."""


class Volume:
    """Channels on a regular grid that can be sampled at world points (trilinear, edge values outside).

    The grid is kept as one image, its planes below one another: two samples in two dimensions, for which torch has
    vectorised code, and the line between them take less than half the time of one sample in three.
    """

    def __init__(self, data: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
        self.planes, self.rows, self.columns = data.shape[1:]
        stacked = (len(data), self.planes * self.rows, self.columns)
        self.image = torch.from_numpy(np.ascontiguousarray(data)).reshape(1, *stacked)
        to_voxel = np.linalg.inv(affine)
        self.matrix = torch.tensor(to_voxel[:3, :3], dtype=torch.float32)
        self.offset = torch.tensor(to_voxel[:3, 3:], dtype=torch.float32)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index to world, mm."""
        to_voxel = np.eye(4)
        to_voxel[:3, :3], to_voxel[:3, 3] = self.matrix.numpy(), self.offset.numpy()[:, 0]
        return np.asarray(np.linalg.inv(to_voxel), dtype=np.float64)

    @property
    def data(self) -> NDArray[np.float32]:
        """The channels on their grid."""
        return self.image.reshape(-1, self.planes, self.rows, self.columns).numpy()

    def __call__(
        self, points: Float32[Tensor, "point 3"], channels: slice = slice(None)
    ) -> Float32[Tensor, "channel point"]:
        """Sample the channels at world points (mm)."""
        plane, row, column = torch.addmm(self.offset, self.matrix, points.T)
        plane, row = plane.clamp(0, self.planes - 1), row.clamp(0, self.rows - 1)
        low = plane.floor().clamp(max=self.planes - 2)
        across = column * (2.0 / (self.columns - 1)) - 1.0
        image = self.image[:, channels]

        def within(plane_number: Tensor) -> Float32[Tensor, "channel point"]:
            down = (plane_number * self.rows + row) * (2.0 / (image.shape[2] - 1)) - 1.0
            grid = torch.stack([across, down], dim=-1)[None, None]
            return torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=True)[0, :, 0]

        return torch.lerp(within(low), within(low + 1), plane - low)


@dataclass(frozen=True)
class Anatomy:
    """Tissue maps and fields of one head.

    Attributes:
        name: name of the head.
        fine: T1, grey, white, brain mask, cerebrospinal fluid nearby; at 1 mm (for scans).
        coarse: the same, smoothed as the preparation smooths, at 2 mm (for the model grid).
        fields: at 4 mm: distance to the lateral ventricles (mm, negative inside), direction to them (3), depth below
            the brain surface (mm, negative outside), outward direction (3), then 8 lobe weights (left, right of 4).
        candidates: tissue by focal region and side, for choosing where a lesion sits, `[point, 4]`: MNI mm, and the
            distance to the border of the region and side, mm.
        real: a head from a file: its own texture is kept.
    """

    name: str
    fine: Volume
    coarse: Volume
    fields: Volume
    candidates: dict[tuple[int, str], NDArray[np.float32]]
    real: bool = False

    def ventricles_ml(self, push_mm: float) -> float:
        """Volume of the lateral ventricles when their walls move outwards by so much, ml in template space."""
        to_ventricle, depth = self.fields.image[0, 0], self.fields.image[0, 4]
        moved = push_mm * torch.exp(-to_ventricle.clamp(min=0) / WALL_REACH_MM)
        share = ((moved - to_ventricle) / FIELD_SPACING_MM + 0.5).clamp(0, 1)
        return float(share[depth > 0].sum()) * FIELD_SPACING_MM**3 / 1000.0


def _world(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).T.astype(np.float32)


def _lateral_ventricles(csf: NDArray[np.bool_], points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Connected fluid within the box of the lateral ventricles (own rule in MNI coordinates)."""
    x, y, z = (points[:, i].reshape(csf.shape) for i in range(3))
    box = (np.abs(x) > 1) & (np.abs(x) < 36) & (y > -52) & (y < 38) & (z > -2) & (z < 32)
    labels, count = ndimage.label(csf & box)
    sizes = ndimage.sum_labels(csf & box, labels, np.arange(1, count + 1))
    return np.isin(labels, 1 + np.flatnonzero(sizes > 0.1 * sizes.max()))


def _direction(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0)))
    return gradient / (np.linalg.norm(gradient, axis=0, keepdims=True) + 1e-3)


def _signed_distance(inside: NDArray[np.bool_], spacing: float) -> NDArray[np.float32]:
    """Signed distance to the border in mm, negative inside."""
    out = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    return (out * spacing).astype(np.float32)


def build_anatomy(
    name: str,
    t1: NDArray[np.float32],
    grey: NDArray[np.float32],
    white: NDArray[np.float32],
    mask: NDArray[np.float32],
    affine: NDArray[np.float64],
) -> Anatomy:
    """Derive the fields from tissue maps at 1 mm in MNI space (values 0 to 1; about 3 s)."""
    fluid = np.clip(mask - grey - white, 0.0, 1.0)
    near_fluid = ndimage.gaussian_filter(fluid, 2.5)
    maps = np.stack([t1, grey, white, mask, near_fluid])
    step = 2
    coarse_affine = affine @ np.diag([step, step, step, 1.0])
    with ThreadPoolExecutor() as pool:
        coarse = np.stack(list(pool.map(lambda volume: antialiased(volume)[::step, ::step, ::step], maps)))

    factor = int(FIELD_SPACING_MM / step)
    field_affine = affine @ np.diag([FIELD_SPACING_MM] * 3 + [1.0])
    points2 = _world(coarse.shape[1:], coarse_affine)
    ventricles = _lateral_ventricles((coarse[3] > 0.9) & (coarse[1] + coarse[2] < 0.5), points2)
    to_ventricle = _signed_distance(ventricles, step)
    depth = -_signed_distance(ndimage.binary_fill_holes(coarse[3] > 0.5), step)
    regions = region_of(points2).reshape(coarse.shape[1:])
    x = points2[:, 0].reshape(coarse.shape[1:])
    brain = coarse[3] > 0.5
    lobes = [
        ndimage.gaussian_filter(((regions == FOCAL_REGIONS.index(lobe)) & brain & (sign * x > 0)).astype(np.float32), 3)
        for lobe in LOBES
        for sign in (-1, 1)
    ]
    stack = [to_ventricle[None], -_direction(to_ventricle), depth[None], -_direction(depth), np.stack(lobes)]
    every = (slice(None), *(slice(None, None, factor),) * 3)
    fields = np.concatenate(stack).astype(np.float32)[every]
    return Anatomy(
        name,
        Volume(maps.astype(np.float32), affine),
        Volume(coarse.astype(np.float32), coarse_affine),
        Volume(fields, field_affine),
        _candidates(points2, regions, (coarse[1] + coarse[2]) > 0.6, brain),
    )


def _candidates(
    points: NDArray[np.float32], regions: NDArray[Any], tissue: NDArray[np.bool_], brain: NDArray[np.bool_]
) -> dict[tuple[int, str], NDArray[np.float32]]:
    """Tissue points by region and side; a band around the midline has no side, in the brainstem it is the middle."""
    x = points[:, 0].reshape(regions.shape)
    out = {}
    for index in range(len(FOCAL_REGIONS)):
        for side, where in ((Side.LEFT, x < -7), (Side.RIGHT, x > 7), (Side.MIDLINE, np.abs(x) < 3)):
            here = (regions == index) & where & brain
            kept = (here & tissue).reshape(-1)
            out[index, side] = np.column_stack([points[kept], _room(here).reshape(-1)[kept]]).astype(np.float32)
    return out


def _room(here: NDArray[np.bool_], spacing: float = 2.0) -> NDArray[np.float32]:
    """Distance to the border of a part of the volume, mm."""
    out = np.zeros(here.shape, np.float32)
    for box in ndimage.find_objects(here.astype(np.int8)):
        wide = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        out[wide] = ndimage.distance_transform_edt(here[wide]) * spacing
    return out


@lru_cache(maxsize=4)
def load_anatomy(name: str = TEMPLATE) -> Anatomy:
    """Load a head by its name or file (see `neuroflamingo.painting.heads`); its folder is not remembered."""
    anatomy = build_anatomy(Path(name).name, *load_head(name))
    return replace(anatomy, real=is_file(name))


def load_coarse_anatomy(name: str, cache: Path | None = None) -> Anatomy:
    """Load a head for the model grid alone: its maps at 1 mm are left out (`fine` is `coarse`), for 200 MB less.

    Args:
        name: of a head, or its file.
        cache: folder in which what is made of a file is kept, under the hash of the file.
    """
    if not is_file(name):
        anatomy = load_anatomy(name)
        return replace(anatomy, fine=anatomy.coarse)
    kept = None if cache is None else cache / f"{sha256_of(name)[:32]}.{CACHE}.npz"
    if kept is None or not kept.is_file():
        anatomy = replace(build_anatomy(Path(name).name, *load_head(name)), real=True)
        if kept is None:
            return replace(anatomy, fine=anatomy.coarse)
        write_bytes_atomic(kept, _packed(anatomy), overwrite=True)
    with np.load(kept) as parts:
        coarse, fields = (
            Volume(parts[part].astype(np.float32), parts[f"{part}_affine"]) for part in ("coarse", "fields")
        )
        candidates: dict[tuple[int, str], NDArray[np.float32]] = {
            (index, side): parts[f"{index} {side}"].astype(np.float32)
            for index in range(len(FOCAL_REGIONS))
            for side in (Side.LEFT, Side.RIGHT, Side.MIDLINE)
        }
    return Anatomy(Path(name).name, coarse, coarse, fields, candidates, real=True)


def _packed(anatomy: Anatomy) -> bytes:
    """Coarse maps, fields and candidates as npz, in half precision."""
    parts: dict[str, Any] = {f"{index} {side}": points for (index, side), points in anatomy.candidates.items()}
    for name, volume in (("coarse", anatomy.coarse), ("fields", anatomy.fields)):
        parts[name], parts[f"{name}_affine"] = volume.data.astype(np.float16), volume.affine
    stream = BytesIO()
    np.savez(stream, **parts)
    return stream.getvalue()
