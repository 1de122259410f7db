"""Blur, ghosts and stripes are seen in any damaged head and in no sound one; what cannot be judged is not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from neuroflamingo_preprocessing.structural.artefacts import Artefacts, judge_artefacts, measure_artefacts
from neuroflamingo_preprocessing.structural.template import load_template
from tests.preprocessing.structural.damages import blurred, moved, striped


@cache
def head(spacing: float = 1.5, noise: float = 0.02, skull: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The template's brain in air, on voxels of any size, with noise as magnitude images have it."""
    template, rng = load_template(), np.random.default_rng(0)
    brain = np.pad(template.t1 * template.mask, 20)
    if skull:
        inside = np.pad(template.mask, 20) > 0.5
        brain = brain + 0.5 * (
            ndimage.binary_dilation(inside, iterations=9) & ~ndimage.binary_dilation(inside, iterations=5)
        )
    brain = ndimage.zoom(brain, 1 / spacing, order=1)
    parts = rng.normal(0, noise, (2, *brain.shape))
    return np.hypot(brain + parts[0], parts[1]).astype(np.float32) * 1000, np.diag([spacing] * 3 + [1.0])


def words(voxels: np.ndarray, affine: Any) -> str:
    warnings: list[str] = []
    judge_artefacts(measure_artefacts(voxels, affine), warnings)
    return "; ".join(warnings)


@pytest.mark.parametrize("spacing", [pytest.param(1.0, marks=pytest.mark.slow), 2.0])
@pytest.mark.parametrize("skull", [True, False])
@pytest.mark.parametrize("noise", [0.005, 0.04])
def test_sound_heads_and_damaged_ones(spacing: float, skull: bool, noise: float) -> None:
    voxels, affine = head(spacing, noise, skull)
    assert words(voxels, affine) == ""
    for axis in range(3):
        assert "ghosts beside the head" in words(moved(voxels, axis), affine)
    assert "blurred" in words(blurred(voxels, 2.0), affine)
    assert "blurred" in words(blurred(voxels, 4.0, axis=1), affine)
    assert "stripes" in words(striped(voxels, 0.3), affine)
    assert "stripes" in words(striped(voxels, 0.05), affine)


def test_the_order_of_axes_does_not_matter() -> None:
    voxels, affine = head()
    plain = measure_artefacts(voxels, affine)
    turned = measure_artefacts(np.asfortranarray(voxels.transpose(2, 0, 1)[:, ::-1]), affine[:, [2, 0, 1, 3]])
    assert turned.smoothness == pytest.approx(plain.smoothness, rel=0.02)
    assert turned.ghosts == pytest.approx(plain.ghosts, abs=0.002)


def test_a_stripe_in_one_thick_slice() -> None:
    voxels, _ = head(1.0)
    thick = ndimage.zoom(voxels, (1, 1, 0.25), order=1)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    assert words(thick, affine) == ""
    thick[:, :, 20] += striped(thick, 0.3)[:, :, 20] - thick[:, :, 20]
    assert "stripes" in words(thick, affine)


@pytest.mark.parametrize("voxels", [np.zeros((20, 20, 20)), np.ones((30, 4, 30)), np.eye(20)[None].repeat(20, axis=0)])
def test_what_is_no_head_is_not_judged(voxels: np.ndarray) -> None:
    found = measure_artefacts(voxels.astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))
    assert found.ghosts is None and isinstance(found, Artefacts)
    assert words(voxels.astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0])) == ""
