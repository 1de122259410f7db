"""Axes and places: nothing moves when voxels are only stored differently."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from neuroflamingo_preprocessing.geometry import apply, block_mean, corners, orientation_codes, to_canonical
from neuroflamingo_preprocessing.scan import Scan


def _oblique(rng: np.random.Generator, degrees: float) -> np.ndarray:
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ np.diag([1, 2, 3])
    affine[:3, 3] = rng.normal(size=3) * 50
    return affine


def test_every_voxel_keeps_its_place(stored: tuple, stored_as: Callable[..., Scan]) -> None:
    rng = np.random.default_rng(0)
    scan = Scan(rng.random((3, 4, 5), dtype=np.float32), _oblique(rng, 30))
    want, want_affine = to_canonical(scan.voxels, scan.affine)
    other = stored_as(scan, *stored)
    voxels, affine = to_canonical(other.voxels, other.affine)
    np.testing.assert_array_equal(voxels, want)
    np.testing.assert_allclose(affine, want_affine, atol=1e-9)
    assert orientation_codes(affine) == "RAS"


@pytest.mark.parametrize("degrees", [44.0, 45.0, 46.0, 54.7, 89.0])
def test_obliques_near_a_tie_still_get_three_different_axes(degrees: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        affine = _oblique(rng, degrees)
        assert sorted({"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[c] for c in orientation_codes(affine)) == [
            0,
            1,
            2,
        ]
        voxels, after = to_canonical(np.zeros((2, 3, 4)), affine)
        box = sorted(map(tuple, np.round(apply(affine, corners((2, 3, 4))), 6)))
        assert sorted(map(tuple, np.round(apply(after, corners(voxels.shape)), 6))) == box


def test_nearest_axes_are_those_of_the_best_assignment() -> None:
    """Clear ones are found without scipy, exact ties by it; random shears are neither."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(3)
    affines = [_oblique(rng, degrees) for degrees in (*np.linspace(0, 180, 200), *[45.0] * 50)]
    affines += [np.block([[rng.normal(size=(3, 3)), np.zeros((3, 1))], [np.eye(4)[3:]]]) for _ in range(200)]
    half = np.sqrt(0.5)
    affines.append(np.array([[half, -half, 0, 0], [half, half, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    for affine in affines:
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        world, voxel = linear_sum_assignment(-np.abs(directions))
        want = {int(v): "RAS"[w] if directions[w, v] >= 0 else "LPI"[w] for w, v in zip(world, voxel, strict=True)}
        assert orientation_codes(affine) == "".join(want[axis] for axis in range(3))


@pytest.mark.parametrize("factors", [(2, 1, 1), (2, 3, 4)])
def test_block_mean_keeps_places(factors: tuple[int, int, int]) -> None:
    """Voxels that hold their own world position still do so after averaging."""
    affine = _oblique(np.random.default_rng(2), 20)
    index = np.argwhere(np.ones((12, 12, 12)))
    for world_axis in range(3):
        voxels = apply(affine, index)[:, world_axis].reshape(12, 12, 12)
        small, small_affine = block_mean(voxels, affine, factors)
        assert small.shape == tuple(12 // f for f in factors)
        want = apply(small_affine, np.argwhere(np.ones(small.shape)))[:, world_axis]
        np.testing.assert_allclose(small.ravel(), want, atol=1e-3)


def test_block_mean_cuts_what_is_left_over() -> None:
    small, _ = block_mean(np.arange(5, dtype=np.float32).reshape(5, 1, 1), np.eye(4), (2, 1, 1))
    np.testing.assert_array_equal(small.ravel(), [0.5, 2.5])
