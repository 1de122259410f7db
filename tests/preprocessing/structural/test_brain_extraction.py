"""The brain mask: heads with and without skull, what is no head, and where the network may come from."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflamingo.painting.case import paint_case
from neuroflamingo_encoders.families.tiny_t1w.cards import CARD
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError
from neuroflamingo_preprocessing.geometry import apply, to_canonical
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import ScanSpec, Step
from neuroflamingo_preprocessing.structural import brain_extraction
from neuroflamingo_preprocessing.structural.brain_extraction import Brain, find_brain
from neuroflamingo_preprocessing.structural.prepare_volume import prepare_volume
from neuroflamingo_preprocessing.structural.template import load_template


def overlap(brain: Brain) -> float:
    """Dice coefficient with the template's brain, of a head in template space."""
    template = load_template()
    index = np.rint(apply(np.linalg.inv(template.affine) @ brain.affine, np.argwhere(brain.mask))).astype(int)
    inside = ((index >= 0) & (index < template.mask.shape)).all(axis=1)
    voxel_mm3 = abs(np.linalg.det(brain.affine[:3, :3]))
    common = (template.mask[tuple(index[inside].T)] > 0.5).sum() * voxel_mm3
    return float(2 * common / (brain.mask.sum() * voxel_mm3 + (template.mask > 0.5).sum()))


def test_a_head_with_skull(head_with_skull: Scan) -> None:
    brain = find_brain(head_with_skull.voxels, head_with_skull.affine)
    assert not brain.given and overlap(brain) > 0.93
    assert 1700 < brain.volume_ml < 2200  # the template is a large head
    assert np.linalg.norm(brain.centre - [0, -20, 5]) < 15


def test_a_brain_that_came_without_skull_keeps_its_mask(head: Scan) -> None:
    brain = find_brain(head.voxels, head.affine)
    assert brain.given and overlap(brain) > 0.95


def test_units_and_signs_do_not_matter(head: Scan) -> None:
    plain = find_brain(head.voxels, head.affine)
    for scaled in (head.voxels * np.float32(1e-4), head.voxels * np.float32(37.0) - np.float32(900.0)):
        again = find_brain(scaled, head.affine)
        assert again.given and (again.mask != plain.mask).mean() < 0.002


@pytest.mark.slow
def test_a_thin_skull_is_not_taken_for_a_part_of_a_given_brain() -> None:
    scan = paint_case(5_100_001).scan()  # the brain fills two thirds of this head
    voxels, affine = to_canonical(np.asarray(scan.voxels, np.float32), scan.affine)
    assert not find_brain(voxels, affine).given


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_heads_in_one_volume_are_seen_and_refused(axis: int, head: Scan, head_with_skull: Scan) -> None:
    for scan in (head, head_with_skull):
        assert find_brain(scan.voxels, scan.affine).second < 0.02
    both = np.concatenate([head.voxels, head.voxels[::-1]], axis=axis)
    assert find_brain(both, head.affine).second > 0.8
    with pytest.raises(ScanError, match="more than one brain") as refused:
        prepare_volume(Scan(both, head.affine, "T1w", head.provenance), CARD.scan)
    assert "one head at a time" in str(refused.value)


def test_bright_borders_of_the_picture_are_no_second_brain(head: Scan) -> None:
    framed = np.pad(head.voxels, 12)
    framed[:5] = framed[-5:] = framed.max()
    found = find_brain(framed, head.affine)
    assert found.mask.any() and found.second == 0.0


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_volume_has_no_brain(value: float) -> None:
    assert not find_brain(np.full((20, 30, 25), value, np.float32), np.eye(4)).mask.any()


def test_limits_hold_all_tissue_and_no_single_wrong_voxel(head: Scan) -> None:
    wrong = np.array(head.voxels)
    wrong.ravel()[::1000] = 1e6 * head.voxels.max()
    low, high = find_brain(wrong, head.affine).limits
    assert low < head.voxels.min() + 1 and head.voxels.max() < high < 3 * head.voxels.max()


def test_what_lies_outside_the_brain_is_filled_by_a_card_that_asks_for_it(
    head_with_skull: Scan, spec: ScanSpec, spec_in_place: ScanSpec
) -> None:
    fill = Step.named("fill_outside_brain")
    asks = spec.model_copy(update={"steps": (*spec.steps[:3], fill, *spec.steps[3:])})
    plain, extracted = prepare_volume(head_with_skull, spec), prepare_volume(head_with_skull, asks)
    assert extracted.brain is not None
    template = load_template()
    rim, inside = template.grid_mask & ~extracted.brain, template.grid_mask & extracted.brain
    off, before = (np.abs(one.tensor[0] - template.grid_t1)[rim].mean() for one in (extracted, plain))
    assert rim.sum() > 100 and off < 0.5 * before  # the template, no longer skull and fluid
    assert np.abs(extracted.tensor[0] - plain.tensor[0])[inside].mean() < 0.05
    with pytest.raises(ModelError, match="misplaced"):
        prepare_volume(head_with_skull, spec_in_place.model_copy(update={"steps": (fill, *spec_in_place.steps)}))


def test_another_network_is_refused(head: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    brain_extraction._network.cache_clear()
    monkeypatch.setattr(brain_extraction, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(NotFoundError, match="another version"):
        find_brain(head.voxels, head.affine)
    monkeypatch.setattr(brain_extraction, "WEIGHTS", "data/models/no_such.pt")
    with pytest.raises(NotFoundError, match=r"deepbet 1\.0\.2"):
        find_brain(head.voxels, head.affine)
