"""Grids made of a scan's own field of view: `resize` and `crop`; axes in any order; several channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.geometry import apply
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step
from neuroflamingo_preprocessing.stores.build import prepare_into_store
from neuroflamingo_preprocessing.structural.native_space import to_native
from neuroflamingo_preprocessing.structural.prepare_volume import prepare_volume

RNG = np.random.default_rng(0)
PLACE = np.diag([2.0, 3.0, 4.0, 1.0])
PLACE[:3, 3] = [-40, -60, -50]
WIDE = PLACE @ np.diag([2.0, 2.0, 2.0, 1.0])
THERE = np.array([[3, 5, 7]])


def spec_of(*steps: Step, sizes: dict[str, int], channels: tuple[str, ...] = ("T1w",), **more: Any) -> ScanSpec:
    axes = (Axis(name="channel", size=len(channels)), *(Axis(name=name, size=n) for name, n in sizes.items()))  # type: ignore[arg-type]
    return ScanSpec(modality="volume3d", axes=axes, channels=channels, steps=steps, **more)


def saved(path: Path, voxels: np.ndarray, affine: np.ndarray = PLACE) -> Path:
    image = nib.Nifti1Image(voxels.astype(np.float32), affine)  # type: ignore[attr-defined]
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


@pytest.mark.parametrize("sizes", [(16, 16, 16), (60, 50, 45), (24, 50, 20)])
def test_resize_is_the_interpolation_that_published_loaders_do(sizes: tuple[int, int, int]) -> None:
    voxels = RNG.random((40, 36, 28), np.float32)
    spec = spec_of(
        Step.named("resize", **dict(zip("xyz", sizes, strict=True))), sizes=dict(zip("xyz", sizes, strict=True))
    )
    found = prepare_volume(Scan(voxels, PLACE), spec)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(voxels)[None, None], sizes, mode="trilinear")
    np.testing.assert_allclose(found.tensor[0], wanted[0, 0].numpy(), atol=2e-5)
    (step,) = found.geometry
    assert step.name == "resize" and step.shape_before == (40, 36, 28) and step.shape_after == sizes
    ends = [
        apply(a, np.array([[-0.5] * 3, np.array(n) - 0.5])) for a, n in ((PLACE, voxels.shape), (found.affine, sizes))
    ]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-9)  # the same field of view
    assert found.quality.coverage == 1.0 and found.template is None


def test_a_crop_copies_the_scans_own_voxels_around_the_middle_and_says_what_it_leaves_out() -> None:
    voxels = np.zeros((60, 50, 40), np.float32)
    voxels[10:50, 12:44, 6:30] = RNG.random((40, 32, 24)) + 1
    spec = spec_of(Step.named("crop", side=32), sizes=dict.fromkeys("xyz", 32))
    found = prepare_volume(Scan(voxels, PLACE), spec)
    np.testing.assert_array_equal(found.tensor[0], voxels[14:46, 12:44, 2:34])
    assert found.geometry[0].interpolation == "none" and found.quality.coverage == pytest.approx(0.8)
    assert any("20% of what is not 0 lies outside" in warning for warning in found.warnings)
    tight = prepare_volume(
        Scan(voxels[:20, :20, :20], PLACE), spec_of(Step.named("crop", side=32), sizes=dict.fromkeys("xyz", 32))
    )
    assert tight.quality.coverage == 1.0 and tight.tensor[0].sum() == pytest.approx(
        voxels[:20, :20, :20].sum(), rel=1e-5
    )


def test_axes_come_in_the_order_of_the_card_and_keep_their_place() -> None:
    voxels = RNG.random((40, 36, 28), np.float32)
    flipped = PLACE @ np.diag([1.0, -1.0, 1.0, 1.0])
    found = prepare_volume(
        Scan(voxels, flipped), spec_of(Step.named("resize", z=14, y=18, x=20), sizes={"z": 14, "y": 18, "x": 20})
    )
    straight = prepare_volume(
        Scan(voxels, flipped), spec_of(Step.named("resize", x=20, y=18, z=14), sizes={"x": 20, "y": 18, "z": 14})
    )
    np.testing.assert_array_equal(found.tensor[0], straight.tensor[0].transpose(2, 1, 0))
    np.testing.assert_allclose(
        apply(found.affine, np.array([[3, 5, 7]])), apply(straight.affine, np.array([[7, 5, 3]]))
    )
    np.testing.assert_allclose(to_native(found, found.tensor[0]), to_native(straight, straight.tensor[0]), atol=1e-6)


def test_an_encoder_on_a_grid_in_space_gets_the_axes_of_its_card(tmp_path: Path) -> None:
    spec = encoder_card("neuro-simclr-resnet18").scan
    voxels = np.zeros((96, 116, 92), np.float32)
    voxels[20:76, 20:96, 20:72] = 100
    place = np.diag([2.0, 2.0, 2.0, 1.0])
    place[:3, 3] = [-96, -132, -78]
    found = prepare(saved(tmp_path / "sub-01_T1w.nii", voxels, place), spec)
    assert spec.accepts(found.tensor.shape), found.tensor.shape


def test_channels_are_files_beside_each_other_and_go_to_one_grid(tmp_path: Path) -> None:
    spec = spec_of(Step.named("crop", side=32), sizes=dict.fromkeys("xyz", 32), channels=("T1w", "T2w"))
    voxels = RNG.random((2, 32, 32, 32), np.float32) + 1
    first = saved(tmp_path / "sub-01_T1w.nii.gz", voxels[0], WIDE)
    with pytest.raises(NotFoundError, match=r"no sub-01_T2w\.nii\.gz beside sub-01_T1w"):
        prepare(first, spec)
    turned = WIDE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[:3, 3] = apply(WIDE, np.array([[31, 0, 0]]))[0]
    second = saved(tmp_path / "sub-01_T2w.nii.gz", voxels[1][::-1], turned)
    found = prepare(first, spec)
    np.testing.assert_allclose(found.tensor, voxels, rtol=1e-6)
    assert found.provenance.header["channel T2w"].startswith("sub-01_T2w.nii.gz, SHA-256 ")
    assert [one.path.name for one in find_inputs(tmp_path, spec)] == ["sub-01_T1w.nii.gz"]
    away = WIDE.copy()
    away[0, 3] += 40
    saved(second, voxels[1], away)
    with pytest.raises(ScanError, match=r"sub-01_T2w\.nii\.gz does not lie where sub-01_T1w"):
        prepare(first, spec)
    with pytest.raises(UsageError, match="cannot be found by its name"):
        prepare(saved(tmp_path / "head.nii", voxels[0], WIDE), spec)
    with pytest.raises(ScanError, match="one volume"):
        prepare(Scan(voxels[0], WIDE), spec)


def test_a_store_notices_a_change_of_a_further_channel(tmp_path: Path) -> None:
    card = encoder_card("brainsegfounder")
    (tmp_path / "in").mkdir()
    for channel in card.scan.channels:
        saved(tmp_path / "in" / f"sub-01_{channel}.nii", RNG.random((96, 96, 96), np.float32) + 1)
    counts = []
    for _ in range(2):
        done = prepare_into_store(tmp_path / "in", tmp_path / "store", card, Preparation())
        counts.append((done.scans, done.done, done.present, done.failed))
    saved(tmp_path / "in" / "sub-01_T2w.nii", RNG.random((96, 96, 96), np.float32) + 1)
    done = prepare_into_store(tmp_path / "in", tmp_path / "store", card, Preparation())
    counts.append((done.scans, done.done, done.present, done.failed))
    assert counts == [(1, 1, 0, 0), (1, 0, 1, 0), (1, 1, 0, 0)], json.dumps(done.failures)


@pytest.mark.parametrize(
    ("steps", "more", "words"),
    [
        ([Step.named("resize", side=95)], {}, "not the sizes of the encoder's axes"),
        ([Step.named("resize")], {}, "not the sizes of the encoder's axes"),
        ([Step.named("crop", x=96, y=96, z=64)], {}, "not the sizes of the encoder's axes"),
        ([Step.named("affine_alignment"), Step.named("resize", side=96)], {}, "asks for resize, and for a grid"),
        ([Step.named("resize", side=96), Step.named("crop", side=96)], {}, "asks for resize, and for a grid"),
        (
            [Step.named("resize", side=96)],
            {"spacing_mm": (1.0, 1.0, 1.0), "origin_mm": (0.0, 0.0, 0.0)},
            "asks for resize, and for a grid",
        ),
        ([Step.named("resise", side=96)], {}, "unknown or misplaced steps: resise"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(steps: list[Step], more: dict[str, Any], words: str) -> None:
    spec = spec_of(*steps, sizes=dict.fromkeys("xyz", 96), **more)
    with pytest.raises(ModelError, match=words):
        prepare_volume(Scan(np.ones((96, 96, 96), np.float32), PLACE), spec)


def test_a_contrast_is_one_of_those_that_the_channel_names() -> None:
    resize = Step.named("resize", side=8)
    for channel, odd in (("T1w, T2w, FLAIR or T1 with contrast", 0), ("CT or MR", 0), ("T1w", 1)):
        spec = spec_of(resize, sizes=dict.fromkeys("xyz", 8), channels=(channel,))
        warnings = prepare_volume(Scan(np.ones((8, 8, 8), np.float32), PLACE, "FLAIR"), spec).warnings
        assert sum("name says FLAIR" in warning for warning in warnings) == odd


def test_a_grid_outside_the_brain_is_the_cards_fault() -> None:
    away: dict[str, Any] = {"spacing_mm": (2.0, 2.0, 2.0), "origin_mm": (200.0, 0.0, 0.0), "template": "MNI152"}
    spec = spec_of(Step.named("linear_resampling"), sizes=dict.fromkeys("xyz", 16), **away)
    with pytest.raises(ModelError, match="does not lie in the brain"):
        prepare_volume(Scan(np.ones((40, 40, 40), np.float32), PLACE), spec)


def test_other_sizes_keep_the_field_of_view() -> None:
    for name in ("vit3d", "swift", "m3d-clip", "neuro-simclr-resnet18"):
        spec = encoder_card(name).scan
        small = spec.with_sizes({axis: size // 4 for axis, size in zip("xyz", spec.grid_shape, strict=True)})
        if spec.spacing_mm is None:
            assert dict(small.steps[0].constants) == dict(zip("xyz", small.grid_shape, strict=True))
            continue
        ends = [apply(s.grid_affine, np.array([[-0.5] * 3, np.array(s.grid_shape) - 0.5])) for s in (spec, small)]
        whole = np.array(spec.grid_shape) % 4 == 0
        np.testing.assert_allclose(ends[0][:, whole], ends[1][:, whole], atol=1e-9)
