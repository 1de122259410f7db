"""Pictures of slices in radiological convention (patient's left on the right), labelled on every picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo.report.evidence import FULL_COLOUR, attention_map
from neuroflamingo.report.records import Evidence, Picture, PictureKind, Plane
from neuroflamingo_preprocessing.geometry import to_canonical

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image, ImageDraw

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
_ACROSS_UP = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
_LETTER = {"axial": "z", "coronal": "y", "sagittal": "x"}
_BLUE = np.array([70.0, 170.0, 255.0])
_COOL, _HOT = np.array([205.0, 60.0, 25.0]), np.array([255.0, 196.0, 64.0])
_TILES_PER_PLANE = 6
_TILE_PIXELS_PER_MM = 4 / 3
_LOOK_PIXELS_PER_MM = 5 / 3
_EXAMPLE_PIXELS_PER_MM = 1.0


@dataclass(frozen=True)
class Canvas:
    """A volume ready to be drawn: grey values 0 to 1 on an axis-aligned RAS grid."""

    grey: Float[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]

    def world(self, axis: int, index: float) -> float:
        """Position in mm of a slice."""
        return float(self.affine[axis, axis] * index + self.affine[axis, 3])

    def index(self, axis: int, position_mm: float) -> int:
        """The slice nearest to a position in mm, kept inside the volume."""
        index = round((position_mm - self.affine[axis, 3]) / self.affine[axis, axis])
        return int(np.clip(index, 0, self.grey.shape[axis] - 1))


def canvas_of(values: Float[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> Canvas:
    """Window a prepared volume for display: the 1st to 99.5th percentile of what is not exactly 0; 0 stays black.

    A grid whose axes are flipped or swapped is turned to RAS first, so that the marks on the pictures are true.
    """
    values, affine = to_canonical(values, affine)
    inside = np.isfinite(values) & (values != 0)
    if not inside.any():
        return Canvas(np.zeros(values.shape), affine)
    low, high = np.percentile(values[inside], (1.0, 99.5))
    grey = 0.05 + 0.87 * np.clip((values - low) / max(high - low, 1e-6), 0, 1) ** 1.2
    return Canvas(np.where(inside, grey, 0.0), affine)


def picture_of_slices(
    canvas: Canvas, scan: int, kind: PictureKind = "seen", extent: Float[np.ndarray, "x y z"] | None = None
) -> tuple[Picture, ...]:
    """Slices of the scan as seen by the encoder: six in each plane, spread over the brain, or over another `extent`."""
    pictures = []
    for plane in PLANES:
        axis = _AXIS[plane]
        for index in _spread(canvas.grey if extent is None else extent, axis):
            image = _draw(canvas, plane, index, _TILE_PIXELS_PER_MM)
            position = canvas.world(axis, index)
            alt = f"{plane.capitalize()} slice at {_LETTER[plane]} = {position:+.0f} mm of the prepared scan"
            pictures.append(_encode(image, kind, plane, scan, position, alt))
    return tuple(pictures)


def picture_of_example(canvas: Canvas, number: int) -> tuple[Picture, ...]:
    """Three small planes through the middle of an example's scan; `scan` is the example's number, from 0."""
    pictures = []
    for plane in PLANES:
        axis = _AXIS[plane]
        occupied = np.flatnonzero((canvas.grey > 0).any(axis=tuple(other for other in range(3) if other != axis)))
        index = int(np.median(occupied)) if len(occupied) else canvas.grey.shape[axis] // 2
        image = _draw(canvas, plane, index, _EXAMPLE_PIXELS_PER_MM)
        alt = f"{plane.capitalize()} slice of the scan of example {number + 1}"
        pictures.append(_encode(image, "example", plane, number, canvas.world(axis, index), alt))
    return tuple(pictures)


def picture_of_attention(
    canvas: Canvas,
    weights: Float[np.ndarray, " token"],
    positions: Float[np.ndarray, "token 3"],
    evidence: Evidence,
    statement: str,
) -> tuple[Picture, ...]:
    """Three planes through the attention's peak, with the smooth attention map as an overlay."""
    placed = np.isfinite(positions).all(1)
    weights, positions = weights[placed], positions[placed]
    pictures = []
    for plane in PLANES:
        axis = _AXIS[plane]
        index = canvas.index(axis, evidence.peak_mm[axis])
        heat = _heat(canvas, plane, index, weights, positions)
        image = _draw(canvas, plane, index, _LOOK_PIXELS_PER_MM, heat=heat, cross=evidence.peak_mm)
        position = canvas.world(axis, index)
        alt = (
            f"{plane.capitalize()} slice at {_LETTER[plane]} = {position:+.0f} mm with the attention map; "
            f"peak in the {evidence.peak_side} {evidence.peak_region}"
        )
        pictures.append(_encode(image, "look", plane, evidence.scan, position, alt, statement))
    return tuple(pictures)


def picture_of_alignment(
    native: Canvas, outline: Float[np.ndarray, "x y z"], brain: Float[np.ndarray, "x y z"] | None, scan: int
) -> tuple[Picture, ...]:
    """Three planes of the original scan, with the outlines of the aligned template brain and of its own."""
    from scipy import ndimage

    pictures = []
    centre = ndimage.center_of_mass(outline > 0.5) if (outline > 0.5).any() else np.array(outline.shape) / 2
    for plane in PLANES:
        axis = _AXIS[plane]
        index = int(np.clip(round(centre[axis]), 0, native.grey.shape[axis] - 1))
        own = None if brain is None else _plane(brain, plane, index)
        image = _draw(native, plane, index, _TILE_PIXELS_PER_MM, outline=_plane(outline, plane, index), brain=own)
        position = native.world(axis, index)
        alt = f"{plane.capitalize()} slice of the scan as read, with the outlines of its brain and of the template's"
        pictures.append(_encode(image, "alignment", plane, scan, position, alt))
    return tuple(pictures)


def _spread(grey: np.ndarray, axis: int) -> list[int]:
    """Slice numbers spread over the extent of the brain, leaving out its nearly empty ends."""
    others = tuple(other for other in range(3) if other != axis)
    occupied = np.flatnonzero((grey > 0).any(axis=others))
    first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, grey.shape[axis] - 1)
    return [round(first + fraction * (last - first)) for fraction in np.linspace(0.16, 0.86, _TILES_PER_PLANE)]


def _plane(values: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """One slice as rows and columns of a picture: top or front up, patient's left (or the back) on the right."""
    return np.moveaxis(values, _AXIS[plane], 0)[index].T[::-1, ::-1]


def _heat(canvas: Canvas, plane: Plane, index: int, weights: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Attention on one slice in picture rows and columns, as a multiple of the uniform share."""
    grid = np.moveaxis(np.indices(canvas.grey.shape, dtype=np.int32), 0, -1)
    voxels = np.moveaxis(grid, _AXIS[plane], 0)[index]
    points = voxels.reshape(-1, 3) @ canvas.affine[:3, :3].T + canvas.affine[:3, 3]
    values = attention_map(weights, positions, points).reshape(voxels.shape[:2])
    return values.T[::-1, ::-1]


def _draw(
    canvas: Canvas,
    plane: Plane,
    index: int,
    pixels_per_mm: float,
    *,
    heat: np.ndarray | None = None,
    outline: np.ndarray | None = None,
    brain: np.ndarray | None = None,
    cross: Sequence[float] | None = None,
) -> Image.Image:
    from PIL import Image

    grey = _plane(canvas.grey, plane, index)
    across, up = _ACROSS_UP[plane]
    size = (
        round(grey.shape[1] * abs(canvas.affine[across, across]) * pixels_per_mm),
        round(grey.shape[0] * abs(canvas.affine[up, up]) * pixels_per_mm),
    )
    rgb = np.repeat(_resize(grey, size)[..., None], 3, axis=2) * 255
    if heat is not None:
        rgb = _lay_over(rgb, _resize(heat, size))
    if brain is not None:
        rgb = _trace(rgb, _resize(brain.astype(float), size) > 0.5, _BLUE)
    if outline is not None:
        rgb = _trace(rgb, _resize(outline.astype(float), size) > 0.5)
    image = Image.fromarray(np.clip(rgb + 0.5, 0, 255).astype(np.uint8))
    _mark(image, canvas, plane, index, cross, pixels_per_mm)
    return image


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _lay_over(rgb: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Overlay attention above the uniform share, saturating at `FULL_COLOUR` times it, with a contour at half of it."""
    strength = np.clip((heat - 1) / (max(FULL_COLOUR, float(heat.max())) - 1), 0, 1)[..., None]
    colour = _COOL + (_HOT - _COOL) * strength
    alpha = 0.55 * strength**0.8
    rgb = rgb * (1 - alpha) + colour * alpha
    return _trace(rgb, strength[..., 0] > 0.5)


def _trace(rgb: np.ndarray, inside: np.ndarray, colour: np.ndarray = _HOT) -> np.ndarray:
    from scipy import ndimage

    edge = inside & ~ndimage.binary_erosion(inside, border_value=1)
    rgb = rgb.copy()
    rgb[edge] = colour
    return rgb


def _mark(
    image: Image.Image,
    canvas: Canvas,
    plane: Plane,
    index: int,
    cross: Sequence[float] | None,
    pixels_per_mm: float,
) -> None:
    """Side letters, the slice's position, the convention, and ticks at the edges that point at the peak."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(image)
    width, height = image.size
    letters, small = ImageFont.load_default(size=17), ImageFont.load_default(size=12)
    left, right = ("A", "P") if plane == "sagittal" else ("R", "L")
    ink: dict[str, Any] = {"fill": (236, 240, 241), "stroke_width": 2, "stroke_fill": (0, 0, 0)}
    if cross is not None:
        _tick(draw, canvas, plane, cross, pixels_per_mm, (width, height))
    draw.text((6, 5), left, font=letters, anchor="lt", **ink)
    draw.text((width - 6, 5), right, font=letters, anchor="rt", **ink)
    position = canvas.world(_AXIS[plane], index)
    label = f"{_LETTER[plane]} = {round(position) + 0:+d} mm"
    if plane == "sagittal":
        label += "  left" if position < -1.5 else "  right" if position > 1.5 else "  midline"
    else:
        pale: dict[str, Any] = {**ink, "fill": (176, 188, 194)}
        draw.text((width - 6, height - 5), "radiological", font=small, anchor="rs", **pale)
    draw.text((6, height - 5), label, font=small, anchor="ls", **ink)


def _tick(
    draw: ImageDraw.ImageDraw,
    canvas: Canvas,
    plane: Plane,
    peak: Sequence[float],
    pixels_per_mm: float,
    size: tuple[int, int],
) -> None:
    across, up = _ACROSS_UP[plane]
    shape = canvas.grey.shape
    far_across, far_up = (canvas.world(axis, shape[axis] - 0.5) for axis in (across, up))
    column = (far_across - peak[across]) * pixels_per_mm
    row = (far_up - peak[up]) * pixels_per_mm
    colour = tuple(int(value) for value in _HOT)
    for line in ((column, 0, column, 10), (column, size[1] - 10, column, size[1])):
        draw.line(line, fill=colour, width=2)
    for line in ((0, row, 10, row), (size[0] - 10, row, size[0], row)):
        draw.line(line, fill=colour, width=2)


def _encode(
    image: Image.Image,
    kind: PictureKind,
    plane: Plane,
    scan: int,
    position: float,
    alt: str,
    statement: str | None = None,
) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=6)
    return Picture(
        kind=kind,
        plane=plane,
        scan=scan,
        position_mm=round(position, 1),
        media_type="image/webp",
        data=buffer.getvalue(),
        width=image.width,
        height=image.height,
        alt=alt,
        statement=statement,
    )
