"""A patient among healthy heads is named; healthy ones are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuroflamingo.painting.anatomy import Anatomy, Volume, load_anatomy
from neuroflamingo.painting.outliers import HeadsSeen


def person(number: int, lesion_mm: float = 0.0) -> Anatomy:
    """The template with smooth differences in signal, and perhaps a dark place in the right frontal lobe."""
    from scipy.ndimage import gaussian_filter

    head = load_anatomy()
    rng = np.random.default_rng(number)
    data = head.coarse.data.copy()
    data[0] *= 1 + 8 * gaussian_filter(rng.normal(0, 0.1, data.shape[1:]), 4)
    index = np.indices(data.shape[1:]).reshape(3, -1)
    world = (head.coarse.affine[:3, :3] @ index + head.coarse.affine[:3, 3:]).reshape(3, *data.shape[1:])
    distance = np.linalg.norm(world - np.array([32.0, 30.0, 22.0])[:, None, None, None], axis=0)
    data[0][distance < lesion_mm] = 0.3
    return replace(
        head, name=f"sub-{number:02d}", coarse=Volume(data.astype(np.float32), head.coarse.affine), real=True
    )


@pytest.mark.slow
def test_a_patient_among_healthy_heads_is_named() -> None:
    seen = HeadsSeen()
    for number in range(7):
        seen.add(person(number, 17.0 if number == 4 else 0.0))
    (sentence,) = seen.unlike_the_others()
    assert sentence.startswith("sub-04: ") and "right frontal lobe" in sentence and "look at it" in sentence


@pytest.mark.slow
def test_healthy_heads_and_too_few_are_not() -> None:
    seen = HeadsSeen()
    for number in range(5):
        seen.add(person(number, 17.0 if number == 4 else 0.0))
    assert seen.unlike_the_others() == [], "of five heads none can be called unusual"
    seen = HeadsSeen()
    for number in range(7):
        seen.add(person(number))
        seen.add(person(number))
    assert seen.unlike_the_others() == []


def test_a_volume_gives_its_data_and_place_back() -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0.3, -4], [0, 0.1, 3.0, 2], [0, 0, 0, 1]])
    data = rng.standard_normal((3, 5, 6, 7)).astype(np.float32)
    volume = Volume(data, affine)
    assert np.array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
