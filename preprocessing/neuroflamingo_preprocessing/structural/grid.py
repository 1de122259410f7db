"""The grid that a volume is resampled to: the encoder's own in space, or one made of the scan's field of view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import Affine
    from neuroflamingo_preprocessing.spec import ScanSpec, Step

IN_SPACE = ("affine_alignment", "gaussian_antialias", "linear_resampling")
"""Steps onto a grid that lies somewhere: `spacing_mm` and `origin_mm` of the spec say where."""
BY_FIELD = ("resize", "crop")
"""Steps onto a grid made of the scan's own field of view, of which the spec says the numbers of voxels only."""


@dataclass(frozen=True)
class Grid:
    """A grid in the world of the aligned scan.

    Attributes:
        shape, affine: voxels in the order x, y, z, and their place, RAS mm.
        reason: for the geometry log.
        nearest_outside: the field's outermost voxels go on outside of it, where other grids have the fill value.
    """

    shape: tuple[int, int, int]
    affine: Affine
    reason: str = "to the encoder's grid"
    nearest_outside: bool = False


def grid_of(spec: ScanSpec, voxels: NDArray[np.float32], affine: Affine) -> Grid:
    """The grid that a spec asks for.

    `resize` stretches the whole field of view to the numbers of voxels, whatever its size in mm (as MONAI's `Resize`
    and torch's `interpolate` without `align_corners` do). `crop` takes so many of the scan's own voxels around the
    middle of what is not 0; nothing is interpolated.

    Args:
        spec: `card.scan` of the encoder, see `check_grid`.
        voxels: of the scan in canonical orientation, `[x, y, z]`.
        affine: their place in the world that the grid is to lie in.
    """
    field, wanted = np.array(voxels.shape), np.array(spec.grid_shape)
    to_voxel = np.eye(4)
    if spec.step("resize"):
        to_voxel[:3, :3] = np.diag(field / wanted)
        to_voxel[:3, 3] = (field / wanted - 1) / 2
        reason = "the whole field of view, stretched to the encoder's numbers of voxels"
        return Grid(spec.grid_shape, affine @ to_voxel, reason, nearest_outside=True)
    if spec.step("crop"):
        to_voxel[:3, 3] = _middle(voxels) - wanted // 2
        return Grid(spec.grid_shape, affine @ to_voxel, "the scan's own voxels around the middle of what is not 0")
    return Grid(spec.grid_shape, spec.grid_affine)


def _middle(voxels: NDArray[np.float32]) -> NDArray[np.int64]:
    """Middle of the box around what is not 0, in voxels."""
    seen = voxels != 0
    spans = [np.flatnonzero(seen.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    ends = [(span[0], span[-1] + 1) if len(span) else (0, n) for span, n in zip(spans, voxels.shape, strict=True)]
    return np.array([(first + stop) // 2 for first, stop in ends])


def check_grid(spec: ScanSpec) -> None:
    """Check that a spec says one grid.

    Raises:
        ModelError: `resize` or `crop` beside other steps of geometry or a place in space, or with constants that are
            not the sizes of the axes (exit 65).
    """
    chosen = [step for step in spec.steps if step.name in BY_FIELD]
    if not chosen:
        return
    others = [step.name for step in spec.steps if step.name in IN_SPACE] + [step.name for step in chosen[1:]]
    if others or spec.spacing_mm is not None:
        raise ModelError(
            f"this encoder asks for {chosen[0].name}, and for a grid that lies somewhere",
            expected=f"{' or '.join(BY_FIELD)} alone, or {', '.join(IN_SPACE)} with spacing_mm and origin_mm",
            seen=", ".join(others) or f"spacing_mm {spec.spacing_mm}",
            hint="correct the encoder's card",
            exit_code=65,
        )
    sizes = dict(zip("xyz", spec.grid_shape, strict=True))
    if declared_sizes(chosen[0]) != sizes:
        raise ModelError(
            f"the constants of the step {chosen[0].name} are not the sizes of the encoder's axes",
            expected=f"side=N, or x, y and z: {sizes}",
            seen=str(dict(chosen[0].constants)),
            hint="correct the step in the encoder's card",
            exit_code=65,
        )


def declared_sizes(step: Step) -> dict[str, int | float | str | bool]:
    """Sizes by axis that the constants of `resize` or `crop` say."""
    said = dict(step.constants)
    return dict.fromkeys("xyz", said["side"]) if set(said) == {"side"} else said
