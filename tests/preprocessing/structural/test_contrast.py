"""What an image is, held against what an encoder takes: by the tissues, whatever the file is called."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuroflamingo.painting.case import paint_case
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import block_mean
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import ScanSpec
from neuroflamingo_preprocessing.structural.contrast import find_contrast
from neuroflamingo_preprocessing.structural.prepare_volume import prepare_volume
from neuroflamingo_preprocessing.structural.template import load_template

SIGNALS = {  # fluid, grey matter, white matter, as textbooks have them
    "T1w": (0.25, 0.65, 0.9),
    "T2w": (1.0, 0.5, 0.38),
    "FLAIR": (0.15, 0.95, 0.75),
    "PDw": (0.9, 1.0, 0.8),
}


def image(kind: str, noise: float = 0.03, seed: int = 0) -> Scan:
    """The template's tissue maps with the signals of a kind of image, at 2 mm."""
    template = load_template()
    fluid, grey, white = SIGNALS[kind]
    signal = template.mask * (fluid + template.grey * (grey - fluid) + template.white * (white - fluid))
    voxels, affine = block_mean(signal.astype(np.float32), template.affine, (2, 2, 2))
    rng = np.random.default_rng(seed)
    noisy = np.hypot(voxels + rng.normal(0, noise, voxels.shape), rng.normal(0, noise, voxels.shape))
    return Scan((noisy * 800).astype(np.float32), affine)


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("noise", [0.01, 0.08])
def test_kinds_by_their_tissues(kind: str, noise: float) -> None:
    contrast = find_contrast(image(kind, noise), np.eye(4))
    assert contrast.kind == kind and not contrast.enhanced


def test_light_and_dark_exchanged(head: Scan) -> None:
    turned = np.where(head.voxels > 0, head.voxels.max() + 10 - head.voxels, 0)
    assert find_contrast(Scan(turned, head.affine), np.eye(4)).kind == "T2w"


def test_a_standardised_head_is_still_t1_weighted(head: Scan) -> None:
    inside = head.voxels > 0
    values = (head.voxels - head.voxels[inside].mean()) / head.voxels[inside].std()
    assert find_contrast(Scan(values.astype(np.float32), head.affine), np.eye(4)).kind == "T1w"


def test_computed_tomography() -> None:
    scan = image("T1w", noise=0.01)
    units = np.where(scan.voxels > 100, 30 + scan.voxels / 200, -1000.0)
    units[:3] = 1200.0
    assert find_contrast(Scan(units.astype(np.float32), scan.affine), np.eye(4)).kind == "CT"


def test_contrast_agent_is_said(head: Scan, spec: ScanSpec) -> None:
    rng = np.random.default_rng(0)
    bright = np.where((rng.random(head.voxels.shape) < 0.02) & (head.voxels > 0), 250, head.voxels).astype(np.float32)
    assert find_contrast(Scan(bright, head.affine), np.eye(4)).enhanced
    assert any("contrast agent" in words for words in prepare_volume(Scan(bright, head.affine), spec).warnings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SIGNALS if kind != "T1w"])
def test_another_kind_is_refused_whatever_the_file_is_called(kind: str, spec: ScanSpec) -> None:
    scan = replace(image(kind), modality="T1w")
    with pytest.raises(ScanError, match="does not look T1-weighted"):
        prepare_volume(scan, spec)
    forced = prepare_volume(scan, spec, force=True)
    assert forced.quality.contrast is not None and forced.quality.contrast.kind == kind
    assert len(forced.forced) == 1 and forced.forced[0].startswith("Forced: ")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4_000_100, 4_000_106))
def test_painted_heads_are_t1_weighted_with_nothing_to_force(seed: int, spec: ScanSpec) -> None:
    prepared = prepare_volume(paint_case(seed).scan(), spec, force=True)
    assert prepared.quality.contrast is not None and prepared.quality.contrast.kind == "T1w" and not prepared.forced


@pytest.mark.parametrize("every", [0, 1000])
def test_a_voxel_a_million_times_too_bright_changes_hardly_anything(every: int, head: Scan, spec: ScanSpec) -> None:
    wrong = np.array(head.voxels)
    places = (
        np.flatnonzero(wrong > 0)[::every] if every else np.array([np.ravel_multi_index((40, 60, 50), wrong.shape)])
    )
    wrong.ravel()[places] = 1e6 * wrong.max()
    change = prepare_volume(Scan(wrong, head.affine), spec).tensor - prepare_volume(head, spec).tensor
    assert np.abs(change).max() < 0.1 and np.abs(change).mean() < 0.01
