"""Native -> model -> native: a map on the encoder's grid lies where it should on the scan as it was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from neuroflamingo_preprocessing import to_native
from neuroflamingo_preprocessing.errors import OutputError, UsageError
from neuroflamingo_preprocessing.functional.parcellation import nearest
from neuroflamingo_preprocessing.geometry import apply, corners
from neuroflamingo_preprocessing.read import read_scan
from neuroflamingo_preprocessing.scan import NativeSpace, Scan
from neuroflamingo_preprocessing.spec import ScanSpec
from neuroflamingo_preprocessing.structural.native_space import native_to_grid, save_native
from neuroflamingo_preprocessing.structural.prepare_volume import Prepared, prepare_volume
from neuroflamingo_preprocessing.structural.resampling import resample
from neuroflamingo_preprocessing.structural.template import load_template
from neuroflamingo_preprocessing.structural.volume_quality import Quality

SIZES = [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0), (1.6, 2.2, 2.8), (2.5, 2.5, 2.5), (2.0, 2.0, 3.5)]


def pose(case: int) -> tuple[NativeSpace, np.ndarray]:
    """A way to store a head, and the affine that takes it to the template: orders, flips, obliques, other sizes."""
    rng = np.random.default_rng(case)
    order, signs = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
    size = np.array(SIZES[case % len(SIZES)])
    turn = np.eye(3) if case % 4 == 0 else Rotation.from_rotvec(rng.uniform(-0.4, 0.4, 3)).as_matrix()
    axes = np.zeros((3, 3))
    axes[order, range(3)] = signs
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(size)
    extent = np.array([190.0, 230.0, 200.0])[order]
    shape = np.ceil(1.15 * extent / size).astype(int)
    affine[:3, 3] = rng.uniform(-15, 15, 3) - affine[:3, :3] @ (shape - 1) / 2
    to_template = np.eye(4)
    to_template[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix() @ np.diag(
        rng.uniform(0.9, 1.1, 3)
    )
    to_template[:3, :3] = to_template[:3, :3] @ np.linalg.inv(turn)
    to_template[:3, 3] = [0, -18, 8]
    x, y, z = map(int, shape)
    return NativeSpace((x, y, z), affine), to_template


def prepared_for(spec: ScanSpec, native: NativeSpace, scan_to_template: np.ndarray) -> Prepared:
    tensor = np.zeros((1, *spec.grid_shape), np.float32)
    return Prepared(tensor, spec.grid_affine, [], scan_to_template, Quality(None, 1.0), (), {}, native)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@pytest.mark.parametrize("case", range(20))
def test_there_and_back(spec: ScanSpec, case: int, tmp_path: Path) -> None:
    """The template's brain, drawn on the scan's own voxels, to the grid of 3 mm and back."""
    native, to_template = pose(case)
    prepared = prepared_for(spec, native, to_template)
    template = load_template()
    there = np.linalg.inv(template.affine) @ to_template @ native.affine
    brain = nearest((template.mask > 0.5).astype(np.int32), np.eye(4), native.shape, there) > 0
    assert brain.sum() * abs(np.linalg.det(native.affine[:3, :3])) > 1.2e6  # mm3: a brain
    share = resample(brain.astype(np.float32), to_template @ native.affine, spec.grid_shape, spec.grid_affine, 0.0, 0.0)
    assert dice(to_native(prepared, share) > 0.5, brain) >= 0.98
    saved = nib.load(save_native(tmp_path / "mask.nii.gz", prepared, share > 0.5))  # type: ignore[attr-defined]
    mask = np.asarray(saved.dataobj)  # type: ignore[attr-defined]
    assert mask.dtype == np.uint8 and mask.shape == native.shape
    assert dice(mask > 0, brain) >= 0.98
    place: Any = saved.affine  # type: ignore[attr-defined]
    off = apply(place, corners(native.shape)) - apply(native.affine, corners(native.shape))
    assert np.linalg.norm(off, axis=1).max() <= 0.1
    world = apply(to_template @ native.affine, corners(native.shape))
    grid = apply(spec.grid_affine @ native_to_grid(prepared), corners(native.shape))
    assert np.linalg.norm(world - grid, axis=1).max() <= 1e-6


@pytest.mark.parametrize("orientation", ["SAL"])
def test_a_marked_side_comes_back_to_its_side(head: Scan, spec: ScanSpec, orientation: str, tmp_path: Path) -> None:
    """The whole way through files, with the alignment found: a ball in the left hemisphere."""
    turn = nib.orientations.ornt_transform(  # type: ignore[attr-defined]
        nib.orientations.axcodes2ornt("RAS"),  # type: ignore[attr-defined]
        nib.orientations.axcodes2ornt(orientation),  # type: ignore[attr-defined]
    )
    image = nib.Nifti1Image(head.voxels, head.affine).as_reoriented(turn)  # type: ignore[attr-defined]
    image.set_sform(image.affine, 1)
    image.to_filename(tmp_path / "a_T1w.nii.gz")
    scan = read_scan(tmp_path / "a_T1w.nii.gz")
    prepared = prepare_volume(scan, spec)
    index = np.moveaxis(np.indices(spec.grid_shape), 0, -1).reshape(-1, 3)
    ball = np.linalg.norm(apply(prepared.affine, index) - [-38, -22, 22], axis=1).reshape(spec.grid_shape) < 15
    file = save_native(tmp_path / "ball.nii.gz", prepared, ball)
    saved = nib.load(file)  # type: ignore[attr-defined]
    assert np.allclose(saved.affine, image.affine, atol=1e-4)  # type: ignore[attr-defined]
    assert saved.shape == image.shape and nib.aff2axcodes(saved.affine) == tuple(orientation)  # type: ignore[attr-defined]
    centre = apply(saved.affine, np.argwhere(np.asarray(saved.dataobj)).astype(float)).mean(axis=0)  # type: ignore[attr-defined]
    assert np.linalg.norm(centre - [-38, -22, 22]) < 2


def test_types_and_values(spec: ScanSpec) -> None:
    native, to_template = pose(1)
    prepared = prepared_for(spec, native, to_template)
    ramp = np.indices(spec.grid_shape)[0].astype(np.float32)
    out = to_native(prepared, ramp)
    middle = tuple(n // 2 for n in native.shape)
    assert out.dtype == np.float32 and out[middle] == pytest.approx(
        apply(native_to_grid(prepared), np.array([middle]))[0, 0]
    )
    labels = to_native(prepared, (ramp // 7).astype(np.int16))
    assert labels.dtype == np.int16 and set(np.unique(labels)) <= set(range(9))
    assert to_native(prepared, ramp, interpolation="nearest")[middle] == round(float(out[middle]))
    assert to_native(prepared, ramp, fill=-5.0)[0, 0, 0] == -5


def test_what_is_refused(spec: ScanSpec, tmp_path: Path) -> None:
    prepared = prepared_for(spec, *pose(0))
    good = np.zeros(spec.grid_shape, bool)
    for bad in (good[1:], good[None], good.astype("U1"), good.astype(complex)):
        with pytest.raises(UsageError, match="encoder's grid"):
            to_native(prepared, bad)
    with pytest.raises(UsageError, match="not a name for a NIfTI file"):
        save_native(tmp_path / "a.mgz", prepared, good)
    save_native(tmp_path / "a.nii", prepared, good)
    with pytest.raises(OutputError, match="exists"):
        save_native(tmp_path / "a.nii", prepared, good)
    save_native(tmp_path / "a.nii", prepared, good, overwrite=True)


def test_the_header_names_the_scans_world_and_nothing_else(spec: ScanSpec, tmp_path: Path) -> None:
    native, to_template = pose(2)
    sheared = native.affine.copy()
    sheared[0, 1] += 0.02
    for affine, qform in ((native.affine, 4), (sheared, 0)):
        prepared = prepared_for(spec, NativeSpace(native.shape, affine, 4), to_template)
        path = save_native(tmp_path / "a.nii", prepared, np.ones(spec.grid_shape, np.float32), overwrite=True)
        header: Any = nib.load(path).header  # type: ignore[attr-defined]
        assert int(header["sform_code"]) == 4 and int(header["qform_code"]) == qform
        assert bytes(header["descrip"]).strip(b"\0") == b"" and header.get_xyzt_units()[0] == "mm"
        assert qform == 0 or not read_scan(path).provenance.warnings
