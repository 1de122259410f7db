"""Outlines of real lesions: read from masks by their largest piece, split by name, painted near their own place."""

from __future__ import annotations

import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from neuroflamingo.findings.changes import ChangeKind
from neuroflamingo.findings.vocabulary import FindingClass, Side
from neuroflamingo.painting.anatomy import load_anatomy
from neuroflamingo.painting.case import Case
from neuroflamingo.painting.cases import draw_blueprint
from neuroflamingo.painting.follow_up import draw_follow_up
from neuroflamingo.painting.lesions import territories
from neuroflamingo.painting.outlines import load_outlines
from neuroflamingo.painting.rendering import render_on_model_grid
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.structural.template import grid_affine

AFFINE = np.array([[1.0, 0, 0, -60], [0, 1, 0, -60], [0, 0, 1, -20], [0, 0, 0, 1]])


def banana(centre: tuple[float, float, float] = (-38.0, -12.0, 24.0)) -> np.ndarray:
    """A bent lesion of some 12 ml, no ellipsoid, on a grid of 120 x 120 x 80 mm; a speck lies beside it."""
    x, y, z = (axis + start for axis, start in zip(np.indices((120, 120, 80)), AFFINE[:3, 3], strict=True))
    bent = x - centre[0] - 0.02 * (y - centre[1]) ** 2
    mask = (bent / 8) ** 2 + ((y - centre[1]) / 22) ** 2 + ((z - centre[2]) / 16) ** 2 < 1
    mask[5, 5, 5] = True
    return mask.astype(np.uint8)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), AFFINE).to_filename(folder / "empty.nii.gz")
    nib.Nifti1Image(np.ones((120, 120, 80), np.uint8), AFFINE).to_filename(folder / "whole.nii.gz")
    for number in range(12):
        nib.Nifti1Image(banana(), AFFINE).to_filename(folder / f"stroke-{number:02d}.nii.gz")
    return folder


def test_largest_piece_volume_and_place(masks: Path) -> None:
    outlines = load_outlines(masks)
    mask = banana()
    volume_ml = (mask.sum() - 1) / 1000
    assert all(one.name.startswith("stroke") for one in outlines), "empty and impossible masks are left out"
    for one in outlines:
        assert abs(4 / 3 * np.pi * one.radius_mm**3 / 1000 - volume_ml) < 0.01
        np.testing.assert_allclose(one.centre, AFFINE[:3, 3] + np.argwhere(mask)[1:].mean(0), atol=0.1)
        rng = np.random.default_rng(0)
        index = rng.integers(2, (118, 118, 78), (4000, 3))
        own = (index + AFFINE[:3, 3] - one.centre) / one.radius_mm
        near = np.linalg.norm(own, axis=1) < one.extent
        inside = one.distance(torch.tensor(own[near], dtype=torch.float32))[0].numpy() < 0
        assert (inside == mask[tuple(index[near].T)]).mean() > 0.97


def test_a_fifth_is_held_out_and_both_parts_are_the_whole(masks: Path, tmp_path: Path) -> None:
    archive = tmp_path / "masks.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(masks, arcname="masks")
    parts = [{one.name for one in load_outlines(archive, part, tmp_path)} for part in ("training", "held out")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 12 and parts[1]
    assert len(list(tmp_path.glob("*.npz"))) == 1, "kept"
    again, first = load_outlines(archive, "training", tmp_path), load_outlines(masks)
    assert {one.name for one in again} == parts[0] == {one.name for one in first}
    points = torch.randn(50, 3)
    torch.testing.assert_close(again[0].distance(points), first[0].distance(points), atol=5e-3, rtol=5e-3)


@pytest.mark.slow
def test_infarcts_have_these_outlines_near_their_place_on_either_side(masks: Path) -> None:
    head, outlines = load_anatomy(), load_outlines(masks)
    sides, drawn = set(), 0
    for seed in range(60):
        blueprint = draw_blueprint(seed, head, crowded=True, outlines=outlines)
        for lesion, finding in zip(blueprint.lesions, blueprint.lesion_findings, strict=True):
            drawn += finding.kind is FindingClass.INFARCT
            if lesion.outline is None:
                continue
            assert finding.kind is FindingClass.INFARCT
            place = np.abs(lesion.outline.centre) - np.abs(lesion.centre)
            assert np.linalg.norm(place) < 25
            assert finding.side is (Side.LEFT if lesion.centre[0] < 0 else Side.RIGHT)
            sides.add(finding.side)
            painted = render_on_model_grid(blueprint, head)
            index = np.argwhere(painted.lesions[0] > 0.5)
            world = index @ grid_affine()[:3, :3].T + grid_affine()[:3, 3]
            assert np.linalg.norm(world - lesion.centre, axis=1).min() < 12
    outlined = sum(
        lesion.outline is not None
        for seed in range(60)
        for lesion in draw_blueprint(seed, head, crowded=True, outlines=outlines).lesions
    )
    assert sides == {Side.LEFT, Side.RIGHT} and 0.25 * drawn < outlined < 0.75 * drawn


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no"):
        load_outlines(tmp_path / "none.tar")
    with pytest.raises(NotFoundError, match="no lesion masks"):
        load_outlines(tmp_path)
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ScanError, match=r"broken\.nii\.gz cannot be read"):
        load_outlines(tmp_path)


def test_territories_of_places_that_are_agreed_upon() -> None:
    """Medial frontal: anterior; insula and lateral convexity: middle; occipital pole and fusiform: posterior."""
    places = {
        (5.0, 40.0, 30.0): 0,
        (-6.0, -30.0, 60.0): 0,
        (38.0, 5.0, 0.0): 1,
        (-52.0, -10.0, 30.0): 1,
        (48.0, -50.0, 40.0): 1,
        (50.0, 0.0, -20.0): 1,
        (12.0, -90.0, 0.0): 2,
        (-30.0, -45.0, -18.0): 2,
    }
    depth = territories(torch.tensor(list(places)))
    assert depth.argmax(0).tolist() == list(places.values())
    assert ((depth > 0).sum(0) == 1).all()


def test_visibility_follows_contrast_and_volume() -> None:
    """A faint lesion in a noisy scan is no miss; a clear one is; a finding without a place always counts."""
    from dataclasses import replace

    head = load_anatomy()
    blueprint = draw_blueprint(31, head, crowded=True)
    lesion = blueprint.lesions[0]
    seen = {
        (contrast, noise): Case(
            replace(
                blueprint,
                lesions=(replace(lesion, contrast=contrast), *blueprint.lesions[1:]),
                scanner=replace(blueprint.scanner, noise=noise),
            ),
            head,
        ).visibility[0]
        for contrast in (0.05, 0.9)
        for noise in (0.01, 0.2)
    }
    assert seen[0.9, 0.01].visible and not seen[0.05, 0.2].visible
    assert seen[0.9, 0.01].contrast_to_noise > 3 * seen[0.05, 0.01].contrast_to_noise
    assert seen[0.9, 0.01].contrast_to_noise > 3 * seen[0.9, 0.2].contrast_to_noise
    case = Case(blueprint, head)
    assert len(case.visible) == len(case.findings)
    assert all(ok for ok, number in zip(case.visible, case.lesion_numbers(), strict=True) if number is None)
    assert sorted(n for n in case.lesion_numbers() if n is not None) == list(range(len(blueprint.lesions)))


@pytest.mark.slow
def test_an_infarct_with_an_outline_changes_its_size_in_a_follow_up(masks: Path) -> None:
    head, outlines, grown = load_anatomy(), load_outlines(masks), 0
    for seed in range(60, 110):
        pair = draw_follow_up(seed, head, outlines)
        for change in pair.comparison.changes:
            if (
                change.kind not in (ChangeKind.LARGER, ChangeKind.SMALLER)
                or change.finding.kind is not FindingClass.INFARCT
            ):
                continue
            first, last = (
                scan.lesions[scan.lesion_findings.index(finding)]  # type: ignore[arg-type]
                for scan, finding in ((pair.baseline, change.before), (pair.follow_up, change.after))
            )
            assert first.outline is last.outline and np.array_equal(first.centre, last.centre)
            if first.outline is not None:
                grown += 1
                ratio = last.radius_mm / first.radius_mm  # the tissue within it, which is measured, may shrink less
                assert (ratio > 1.15) if change.kind is ChangeKind.LARGER else (ratio < 0.87)
    assert grown >= 2
