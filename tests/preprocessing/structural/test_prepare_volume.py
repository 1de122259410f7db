"""From a scan to the encoder's tensor: sides, log, coverage, refusals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo_encoders.families.tiny_t1w.cards import CARD
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError
from neuroflamingo_preprocessing.geometry import as_rows
from neuroflamingo_preprocessing.preparation import prepare_many
from neuroflamingo_preprocessing.prepared_input import PreparedInput
from neuroflamingo_preprocessing.read import read_scan
from neuroflamingo_preprocessing.scan import Provenance, Scan
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step
from neuroflamingo_preprocessing.structural.alignment import Alignment
from neuroflamingo_preprocessing.structural.brain_extraction import Brain
from neuroflamingo_preprocessing.structural.contrast import Contrast
from neuroflamingo_preprocessing.structural.prepare_volume import Prepared, prepare_volume, takes_kind
from neuroflamingo_preprocessing.structural.template import load_template
from neuroflamingo_preprocessing.structural.volume_quality import judge_alignment


def mark_of(prepared: Prepared) -> np.ndarray:
    """World position of the middle of what is brighter than the template, in template mm."""
    excess = prepared.tensor[0] - load_template().grid_t1 * load_template().grid_mask
    bright = np.argwhere(excess > 0.5 * excess.max())
    return bright.mean(axis=0) @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]


def test_left_is_left_in_all_orientations(
    stored: tuple, stored_as: Callable[..., Scan], marked_head: Scan, spec_in_place: ScanSpec
) -> None:
    """The head lies in the template already, so registration can be left out and every way be tried."""
    seen = mark_of(prepare_volume(stored_as(marked_head, *stored), spec_in_place))
    np.testing.assert_allclose(seen, [-38, -22, 22], atol=1.5)


@pytest.mark.parametrize(
    ("order", "signs"),
    [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, 1, 1)), ((2, 0, 1), (1, -1, -1)), ((1, 2, 0), (-1, 1, -1))],
)
def test_left_is_left_through_a_file_and_the_alignment(
    order: tuple, signs: tuple, stored_as: Callable[..., Scan], marked_head: Scan, spec: ScanSpec, write_nifti: Callable
) -> None:
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]]
    turn[:3, 3] = (30, -10, 20)
    other = stored_as(Scan(marked_head.voxels, turn @ marked_head.affine), order, signs)
    scan = read_scan(write_nifti(other.voxels, other.affine))
    prepared = prepare_volume(scan, spec)
    np.testing.assert_allclose(mark_of(prepared), [-38, -22, 22], atol=3.0)
    back = np.linalg.inv(prepared.scan_to_template) @ [-38, -22, 22, 1]
    np.testing.assert_allclose(back, turn @ [-38, -22, 22, 1], atol=3.0)


def test_orientation_of_storage_changes_nothing_at_all(
    stored_as: Callable[..., Scan], marked_head: Scan, spec: ScanSpec
) -> None:
    want = prepare_volume(marked_head, spec)
    other = prepare_volume(stored_as(marked_head, (2, 0, 1), (-1, 1, -1)), spec)
    np.testing.assert_allclose(other.tensor, want.tensor, atol=1e-4)


def test_the_healthy_template_comes_out_as_itself(head: Scan, spec: ScanSpec) -> None:
    prepared = prepare_volume(head, spec)
    template = load_template()
    assert prepared.tensor.shape == (1, 56, 64, 56) and prepared.tensor.dtype == np.float32
    assert (prepared.tensor[0][~template.grid_mask] == 0).all()
    off = np.abs(prepared.tensor[0] - template.grid_t1)[template.grid_mask]
    assert np.median(off) < 0.02
    assert prepared.quality.correlation is not None and prepared.quality.correlation > 0.98
    assert prepared.quality.coverage == 1.0
    assert prepared.warnings == ()
    assert set(prepared.timings) == {"alignment", "resampling", "intensity"}


def test_every_change_of_geometry_is_in_the_log(
    stored_as: Callable[..., Scan], head: Scan, spec: ScanSpec, spec_in_place: ScanSpec
) -> None:
    scan = stored_as(head, (1, 0, 2), (1, -1, 1))
    prepared = prepare_volume(scan, spec)
    assert [step.name for step in prepared.geometry] == [
        "reorientation",
        "brain extraction",
        "affine alignment",
        "resampling",
    ]
    first, brain, second, third = prepared.geometry
    assert first.before == as_rows(scan.affine)
    assert first.after == brain.before == brain.after == second.before and second.after == third.before
    assert third.after == as_rows(spec.grid_affine)
    assert [step.interpolation.split(",")[0] for step in prepared.geometry] == ["none", "none", "none", "linear"]
    assert third.as_dict()["shape_after"] == [56, 64, 56]
    assert [step.name for step in prepare_volume(head, spec_in_place).geometry] == ["resampling"]


def test_thick_slices_come_out_like_thin_ones(spec_in_place: ScanSpec) -> None:
    """The filter takes the source's voxel size into account."""
    template = load_template()
    thin = Scan(template.t1, template.affine)
    kept = template.t1[:, :, : 3 * (template.t1.shape[2] // 3)]
    averaged = kept.reshape(*kept.shape[:2], -1, 3).mean(axis=3)
    thick_affine = template.affine @ np.diag([1, 1, 3, 1.0])
    thick_affine[:3, 3] += template.affine[:3, 2]
    fine = spec_in_place.model_copy(update={"steps": spec_in_place.steps[:2]})
    one = prepare_volume(thin, fine).tensor[0][template.grid_mask]
    other = prepare_volume(Scan(averaged, thick_affine), fine).tensor[0][template.grid_mask]
    assert np.abs(one - other).mean() < 0.015
    assert abs(one.std() / other.std() - 1) < 0.02


def test_uncovered_brain_is_told_and_does_not_look_like_a_lesion(head: Scan, spec_in_place: ScanSpec) -> None:
    cut = Scan(head.voxels[:, :, 12:], head.affine @ _shift(z=12))
    prepared = prepare_volume(cut, spec_in_place)
    assert 0.8 < prepared.quality.coverage < 0.98
    assert "outside the field of view" in prepared.warnings[0]
    template = load_template()
    bottom = prepared.tensor[0][..., :6][template.grid_mask[..., :6]]
    np.testing.assert_allclose(bottom, template.grid_t1[..., :6][template.grid_mask[..., :6]], atol=0.2)


def _shift(z: int) -> np.ndarray:
    shift = np.eye(4)
    shift[2, 3] = z
    return shift


def test_half_a_brain_is_refused(head: Scan, spec_in_place: ScanSpec) -> None:
    half = Scan(head.voxels[:, :, 45:], head.affine @ _shift(z=45), provenance=Provenance(file="half.nii"))
    with pytest.raises(ScanError, match=r"half.nii shows only \d+% of the brain"):
        prepare_volume(half, spec_in_place)


def test_coverage_on_another_grid_is_that_of_the_brain_not_of_the_air(head: Scan, spec_in_place: ScanSpec) -> None:
    """A tight field of view covers the whole brain, but not the whole of a large grid."""
    inside = np.argwhere(head.voxels > 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    shift = np.eye(4)
    shift[:3, 3] = low
    tight = Scan(head.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], head.affine @ shift)
    sizes = {"channel": 1, "x": 60, "y": 72, "z": 60}
    axes = tuple(Axis(name=name, size=size) for name, size in sizes.items())  # type: ignore[arg-type]
    large = {"axes": axes, "spacing_mm": (4.0, 4.0, 4.0), "origin_mm": (-120.0, -160.0, -110.0)}
    prepared = prepare_volume(tight, spec_in_place.model_copy(update={**large, "steps": spec_in_place.steps[:2]}))
    assert prepared.tensor.shape == (1, 60, 72, 60)
    assert prepared.quality.coverage > 0.98


@pytest.mark.slow
def test_noise_is_no_head(spec: ScanSpec) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([4.0, 4, 4, 1])
    with pytest.raises(ScanError, match=r"cannot be placed|no brain|wrong size"):
        prepare_volume(Scan(rng.random((50, 50, 50), dtype=np.float32), affine), spec)


def test_another_contrast_by_name_is_told(head: Scan, spec_in_place: ScanSpec) -> None:
    assert "says FLAIR" in prepare_volume(Scan(head.voxels, head.affine, "FLAIR"), spec_in_place).warnings[0]


def test_an_empty_brain_in_a_head_is_a_typed_error(head: Scan, spec_in_place: ScanSpec) -> None:
    hollow = head.voxels.copy()
    hollow[5:-5, 5:-5, 5:-5] = 3.0
    with pytest.raises(ScanError, match="intensities"):
        prepare_volume(Scan(np.full_like(hollow, 3.0), head.affine), spec_in_place)


def test_cards_that_ask_for_the_impossible(head: Scan, spec: ScanSpec) -> None:
    unknown = spec.model_copy(update={"steps": (*spec.steps, Step.named("nyul"))})
    with pytest.raises(ModelError, match="nyul"):
        prepare_volume(head, unknown)
    disordered = spec.model_copy(update={"steps": spec.steps[::-1]})
    with pytest.raises(ModelError, match="unknown or misplaced steps"):
        prepare_volume(head, disordered)
    elsewhere = spec.model_copy(update={"origin_mm": (0.0, 0.0, 0.0)})
    with pytest.raises(ModelError, match="not on the grid of the template"):
        prepare_volume(head, elsewhere)
    with pytest.raises(ModelError, match="cannot be prepared"):
        prepare_volume(head, spec.model_copy(update={"modality": "parcels"}))


def test_many_scans_keep_their_order_and_their_errors(head: Scan, spec_in_place: ScanSpec, tmp_path: Path) -> None:
    def make(scan: Scan) -> Scan:
        return scan

    sources = [head, tmp_path / "gone.nii", functools.partial(make, head)]
    first, second, third = prepare_many(sources, spec_in_place)
    assert isinstance(first, PreparedInput) and isinstance(third, PreparedInput)
    assert isinstance(second, NotFoundError)
    np.testing.assert_array_equal(first.tensor, third.tensor)


@pytest.mark.slow
def test_many_scans_in_worker_processes(head: Scan, spec_in_place: ScanSpec, tmp_path: Path) -> None:
    alone = prepare_volume(head, spec_in_place)
    results = list(prepare_many([head, tmp_path / "gone.nii", head], spec_in_place, processes=2))
    assert isinstance(results[0], PreparedInput) and isinstance(results[2], PreparedInput)
    np.testing.assert_array_equal(results[2].tensor, alone.tensor)
    assert isinstance(results[1], NotFoundError) and results[1].exit_code == 66 and results[1].hint == "check the path"


@pytest.mark.parametrize(
    ("length", "fault", "warning"),
    [
        (0.6, "far smaller than an adult's head", None),  # an infant's head: the reason is its size
        (1.5, "far larger than an adult's head", None),
        (0.72, None, "the brain has 485 ml, an adult's has"),
        (1.28, None, "the brain has 2726 ml, an adult's has"),
        (0.95, None, None),
        (1.1, None, None),
    ],
)
def test_the_size_of_a_head(length: float, fault: str | None, warning: str | None) -> None:
    """Of an adult's, along each axis; an adult's brain is taken to have 1,300 ml."""
    mask = np.ones((130, 100, 100), bool)
    brain = Brain(mask, np.diag([length] * 3 + [1.0]), given=False, limits=(0.0, 1.0))
    alignment = Alignment(np.eye(4), 0.8, 0.8, 0.95, starts=1, turned=False, brain=brain)
    scan, warnings = Scan(np.zeros((4, 4, 4), np.float32), np.eye(4)), list[str]()
    if fault:
        with pytest.raises(ScanError, match=fault) as caught:
            judge_alignment(alignment, Contrast("T1w"), scan, warnings)
        assert "correlation" not in str(caught.value) and " ml" in str(caught.value.seen)
        return
    judge_alignment(alignment, Contrast("T1w"), scan, warnings)
    assert [words[: len(warning or "")] for words in warnings] == ([warning] if warning else [])


@pytest.mark.parametrize(
    ("fit", "overlap", "stretch", "verdict"),
    [
        (0.8, 0.95, 1.1, "taken"),
        (0.4, 0.95, 1.1, "warned"),
        (0.8, 0.85, 1.1, "warned"),
        (0.8, 0.95, 1.4, "warned"),
        (0.4, 0.87, 1.1, "refused"),
        (0.4, 0.95, 1.4, "refused"),
        (0.8, 0.87, 1.4, "refused"),
        (0.2, 0.95, 1.1, "refused"),
        (0.8, 0.75, 1.1, "refused"),
        (0.8, 0.95, 1.7, "refused"),
    ],
)
def test_one_doubt_about_a_pose_is_told_and_two_refuse_it(
    fit: float, overlap: float, stretch: float, verdict: str
) -> None:
    brain = Brain(np.ones((130, 100, 100), bool), np.eye(4), given=False, limits=(0.0, 1.0))
    pose = np.diag([stretch, 1.0, 1.0, 1.0])
    alignment = Alignment(pose, fit, 0.8, overlap, starts=1, turned=False, brain=brain)
    scan, warnings = Scan(np.zeros((4, 4, 4), np.float32), np.eye(4)), list[str]()
    if verdict == "refused":
        with pytest.raises(ScanError, match="cannot be placed"):
            judge_alignment(alignment, Contrast("T1w"), scan, warnings)
    else:
        judge_alignment(alignment, Contrast("T1w"), scan, warnings)
        assert [words[:21] for words in warnings] == (["alignment is doubtful"] if verdict == "warned" else [])


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_a_head_is_no_head(axis: int, head: Scan) -> None:
    """Its other half is zero: the field of view does not tell."""
    voxels = head.voxels.copy()
    np.moveaxis(voxels, axis, 0)[: voxels.shape[axis] // 2] = 0
    with pytest.raises(ScanError, match="cannot be placed"):
        prepare_volume(Scan(voxels, head.affine, "T1w", head.provenance), CARD.scan)


@pytest.mark.parametrize(
    ("channel", "kind", "taken"),
    [
        ("T1w", "T1w", True),
        ("T1w", "T2w", False),
        ("T1w", "contrast agent", False),
        ("T1w, T2w, FLAIR or T1 with contrast", "T2w", True),
        ("T1w, T2w, FLAIR or T1 with contrast", "contrast agent", True),
        ("T1w, T2w, FLAIR or T1 with contrast", "dwi", False),
        ("CT or MR", "CT", True),
        ("CT or MR", "T2w", True),
        ("CT or MR", "mask or segmentation", False),
    ],
)
def test_which_kinds_a_channel_takes(channel: str, kind: str, taken: bool) -> None:
    assert takes_kind(channel, kind) is taken
