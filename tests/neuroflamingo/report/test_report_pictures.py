"""Left stays left on every picture, whatever the grid; overlays lie where the attention was."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from neuroflamingo.report.evidence import locate
from neuroflamingo.report.pictures import PLANES, canvas_of, picture_of_attention, picture_of_slices
from neuroflamingo.report.records import Picture


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(float)


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]


@pytest.fixture
def ball(world_points: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A faint brain with a bright ball: patient's left, back, top."""
    values = np.where((world_points**2).sum(-1) < 65.0**2, 1.0, 0.0)
    values[np.linalg.norm(world_points - (-35, -30, 25), axis=-1) < 14] = 10.0
    return values.astype(np.float32), grid


@pytest.mark.parametrize("flip", [(), (0,), (1, 2), (0, 1, 2)])
def test_patients_left_is_on_the_right_and_the_back_is_down_or_right(ball, flip: tuple[int, ...]) -> None:
    values, affine = ball
    for axis in flip:  # the same head stored with another direction of an axis
        values = np.flip(values, axis)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
        affine[:3, axis] *= -1
    canvas = canvas_of(np.ascontiguousarray(values), affine)
    for plane in PLANES:
        tiles = [picture for picture in picture_of_slices(canvas, 0) if picture.plane == plane]
        through = {"axial": 25.0, "coronal": -30.0, "sagittal": -35.0}[plane]
        nearest = min(tiles, key=lambda picture: abs(picture.position_mm - through))
        bright = pixels(nearest).min(-1)[30:-24] > 225
        row, column = centre_of(bright)
        assert column > 0.55, f"{plane}: left (axial, coronal) or back (sagittal) belongs on the right"
        assert (row > 0.5) if plane == "axial" else (row < 0.5), plane


def test_every_picture_is_marked_and_described(head: np.ndarray, grid: np.ndarray) -> None:
    tiles = picture_of_slices(canvas_of(head, grid), 0)
    assert len(tiles) == 18
    for tile in tiles:
        corner = pixels(tile)[:24, :24]
        assert corner.max() > 200, "the letter in the upper left corner"
        assert tile.plane in tile.alt.lower() and "mm" in tile.alt
        assert tile.media_type == "image/webp" and tile.data[8:12] == b"WEBP"


def test_overlay_is_coloured_at_the_peak_only(head, grid, token_positions, token_weights, peak) -> None:
    evidence = locate(token_weights, token_positions, 0, ())
    assert evidence is not None
    pictures = picture_of_attention(canvas_of(head, grid), token_weights, token_positions, evidence, "s1")
    assert [picture.plane for picture in pictures] == list(PLANES)
    for picture in pictures:
        image = pixels(picture)[14:-14, 14:-14]
        coloured = image[..., 0] - image[..., 2] > 70
        assert 0.005 < coloured.mean() < 0.25
        _, column = centre_of(coloured)
        across = 1 if picture.plane == "sagittal" else 0
        low = grid[across, 3]
        expected = 1 - (evidence.peak_mm[across] - low) / (3.0 * head.shape[across])
        assert column == pytest.approx(expected, abs=0.06)


def test_even_attention_leaves_the_picture_grey(head, grid, token_positions) -> None:
    even = np.full(len(token_positions), 1 / len(token_positions))
    evidence = locate(even, token_positions, 0, ())
    assert evidence is not None
    for picture in picture_of_attention(canvas_of(head, grid), even, token_positions, evidence, "s1"):
        image = pixels(picture)[14:-14, 14:-14]
        assert (image[..., 0] - image[..., 2] > 40).mean() < 0.002


def test_an_empty_volume_is_black_not_an_error(grid: np.ndarray) -> None:
    assert canvas_of(np.zeros((56, 64, 56), np.float32), grid).grey.max() == 0
