"""Matching to the template: scanner out, lesions in."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from neuroflamingo_preprocessing.structural.intensity import match_to_template
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, grid_affine, load_template

TEMPLATE = load_template()
AXES = np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID_SHAPE), indexing="ij")


def test_gain_bias_and_contrast_of_the_scanner_are_removed() -> None:
    x, y, z = AXES
    contrast = 0.2 + 0.5 * TEMPLATE.grid_t1 + 0.3 * TEMPLATE.grid_white
    scan = 700 * np.exp(0.25 * x - 0.2 * y * z + 0.15 * z**2) * contrast
    error = np.abs(match_to_template(scan.astype(np.float32)) - TEMPLATE.grid_t1)[TEMPLATE.grid_mask]
    assert error.mean() < 0.02 and np.quantile(error, 0.99) < 0.08


def test_a_lesion_stays_in_the_residual() -> None:
    index = np.indices(GRID_SHAPE).reshape(3, -1).T @ grid_affine()[:3, :3].T + grid_affine()[:3, 3]
    inside = (np.linalg.norm(index - [-30, 10, 25], axis=1) < 15).reshape(GRID_SHAPE) & TEMPLATE.grid_mask
    scan = 100 * TEMPLATE.grid_t1.copy()
    scan[inside] -= 30
    residual = match_to_template(scan) - TEMPLATE.grid_t1
    assert residual[inside].mean() < -0.22
    assert np.abs(residual[TEMPLATE.grid_mask & ~inside]).mean() < 0.02


def test_nothing_outside_the_brain_and_units_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    scan = TEMPLATE.grid_t1 * 10 + rng.normal(0, 0.3, GRID_SHAPE).astype(np.float32)
    one, two = match_to_template(scan), match_to_template(scan * np.float32(1234))
    assert (one[~TEMPLATE.grid_mask] == 0).all()
    assert np.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_a_volume_without_a_brain_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="constant or not finite"):
        match_to_template(np.full(GRID_SHAPE, value, dtype=np.float32))


def test_template_is_symmetric_and_lies_where_the_grid_says() -> None:
    assert np.allclose(TEMPLATE.grid_t1, TEMPLATE.grid_t1[::-1], atol=1e-5)
    centre = np.round(np.linalg.inv(grid_affine()) @ [0, -20, -4, 1]).astype(int)[:3]
    assert TEMPLATE.grid_mask[tuple(centre)]


def test_the_number_of_threads_does_not_show() -> None:
    head = load_template().grid_t1 + np.random.default_rng(0).normal(0, 0.02, GRID_SHAPE).astype(np.float32)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(match_to_template(head))
    np.testing.assert_array_equal(*found)
