"""The geometry log tells the truth: what it says and where the voxels really went are one and the same mapping.

Scans hold their own voxel indices, mixed by three weights. Linear interpolation and a Gaussian keep a linear function
as it is away from the edges, so each voxel of the result says from which place of the file it came.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from neuroflamingo_preprocessing.functional.prepare_run import prepare_run
from neuroflamingo_preprocessing.geometry import GeometryStep, apply
from neuroflamingo_preprocessing.read import read_run
from neuroflamingo_preprocessing.scan import NativeSpace, Scan
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step
from neuroflamingo_preprocessing.structural import prepare_volume as structural
from neuroflamingo_preprocessing.structural.alignment import Alignment
from neuroflamingo_preprocessing.structural.brain_extraction import Brain
from neuroflamingo_preprocessing.structural.prepare_volume import Prepared, prepare_volume

WEIGHTS = np.array([1.0, 29.0, 31.0 * 29.0])
WITHIN = 0.25  # of the least weight: a quarter of a voxel
ONLY_THE_WORLD = "affine alignment"  # voxels stay, their world changes; in all other entries the world stays


def indices(shape: tuple[int, ...]) -> np.ndarray:
    """Each voxel's own index, mixed: `[x, y, z]`."""
    return (np.moveaxis(np.indices(shape), 0, -1) @ WEIGHTS).astype(np.float32)


def mapping_of(log: list[GeometryStep]) -> tuple[np.ndarray, np.ndarray]:
    """Voxel of the file to voxel of the result, and world of the file to world of the result: products over the log."""
    voxels, world = np.eye(4), np.eye(4)
    for step in log:
        before, after = np.array(step.before), np.array(step.after)
        if step.name == ONLY_THE_WORLD:
            world = after @ np.linalg.inv(before) @ world
        else:
            voxels = np.linalg.inv(after) @ before @ voxels
    return voxels, world


def assert_log_is_true(scan: Scan, prepared: Prepared, margin: np.ndarray) -> None:
    """The entries follow one on the other without a gap, and their product is what happened to the voxels."""
    log, result = prepared.geometry, prepared.tensor[0]
    moved = result.shape != scan.voxels.shape or not np.array_equal(prepared.affine, scan.affine)
    assert log or not moved, "the grid changed and nothing says so"
    shape, affine = scan.voxels.shape, scan.affine
    for step in log:
        np.testing.assert_allclose(step.before, affine, atol=1e-9, err_msg=f"a gap before '{step.name}'")
        assert step.shape_before == shape
        shape, affine = step.shape_after, np.array(step.after)
    np.testing.assert_allclose(affine, prepared.affine, atol=1e-9, err_msg="the result lies elsewhere")
    assert shape == result.shape
    voxels, world = mapping_of(log)
    np.testing.assert_allclose(world, prepared.scan_to_template, atol=1e-9)
    targets = np.argwhere(np.ones(result.shape))
    sources = apply(np.linalg.inv(voxels), targets)
    inside = ((sources >= margin) & (sources <= np.array(scan.voxels.shape) - 1 - margin)).all(axis=1)
    assert inside.any()
    off = np.abs(result[tuple(targets[inside].T)] - sources[inside] @ WEIGHTS)
    assert off.max() < WITHIN, f"voxels come from elsewhere than the log says: {off.max():.2f}"


# --- drawing scans and cards ---------------------------------------------------------------------------------------


def about(low: float, high: float) -> Any:
    return st.floats(low, high, allow_nan=False)


@st.composite
def turns(draw: Any) -> np.ndarray:
    """One of the 48 exact ways, or any rotation, of either handedness."""
    turn = np.eye(3)[list(draw(st.permutations(range(3))))] * draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    if draw(st.booleans()):
        turn = Rotation.from_rotvec(draw(st.tuples(*[about(-1.8, 1.8)] * 3))).as_matrix() @ turn
    return turn


@st.composite
def poses(draw: Any) -> np.ndarray:
    """What an alignment may find: turned, shifted, stretched, a little sheared, never mirrored."""
    pose = np.eye(4)
    stretch = np.diag(draw(st.tuples(*[about(0.85, 1.2)] * 3)))
    stretch[0, 1] = draw(about(-0.1, 0.1))
    pose[:3, :3] = Rotation.from_rotvec(draw(st.tuples(*[about(-0.6, 0.6)] * 3))).as_matrix() @ stretch
    pose[:3, 3] = draw(st.tuples(*[about(-60, 60)] * 3))
    return pose


@st.composite
def cases(draw: Any) -> tuple[Scan, ScanSpec, np.ndarray | None, np.ndarray]:
    """A scan, a card whose grid lies about its middle, the pose (None: no alignment), and the margin in voxels."""
    spacing = np.array(draw(st.tuples(*[st.sampled_from([0.6, 1.5, 2.0, 2.5, 3.7])] * 3)))
    fwhm = draw(st.sampled_from([0.0, 0.0, 2.0, 3.5]))
    margin = np.ceil(3 * fwhm / 2.355 / spacing / 0.8) + 3  # the filter's reach, in a head that the pose may shrink
    shape = tuple(int(n) for n in 2 * margin + draw(st.tuples(*[st.integers(6, 10)] * 3)))
    affine = np.eye(4)
    affine[:3, :3] = draw(turns()) @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*[about(-80, 80)] * 3))
    pose = draw(st.none() | poses())
    scan = Scan(indices(shape), affine)
    middle = apply((np.eye(4) if pose is None else pose) @ affine, (np.array([shape]) - 1) / 2)[0]
    return scan, draw(cards(middle, fwhm, pose is not None)), pose, margin


@st.composite
def cards(draw: Any, middle: np.ndarray, fwhm: float, aligned: bool) -> ScanSpec:
    sizes = {"channel": 1, **dict(zip("xyz", draw(st.tuples(*[st.integers(3, 9)] * 3)), strict=True))}
    orientation = draw(st.sampled_from(["RAS", "LAS"]))
    spacing = draw(st.tuples(*[st.sampled_from([0.7, 1.0, 2.0, 3.0])] * 3))
    steps = np.array(spacing) * (-1 if orientation == "LAS" else 1, 1, 1)
    origin = middle - steps * np.floor((np.array([sizes[axis] for axis in "xyz"]) - 1) / 2)
    axes: Any = tuple(Axis(name=name, size=size) for name, size in sizes.items())  # type: ignore[arg-type]
    return ScanSpec(
        modality="volume3d",
        axes=axes,
        channels=("T1w",),
        orientation=orientation,
        spacing_mm=spacing,
        origin_mm=tuple(origin.tolist()),
        steps=(
            *([Step.named("affine_alignment", degrees_of_freedom=12)] if aligned else []),
            *([Step.named("gaussian_antialias", fwhm_mm=fwhm)] if fwhm else []),
            Step.named("linear_resampling"),
        ),
        fill=draw(st.sampled_from([0.0, -1.0])),
    )


def prepared_with(scan: Scan, spec: ScanSpec, pose: np.ndarray | None) -> Prepared:
    """The search for the pose is replaced by a drawn one: whatever it finds must be logged."""
    brain = Brain(np.ones((100, 100, 100), bool), np.eye(4), given=True, limits=(-np.inf, np.inf))
    found = Alignment(np.eye(4) if pose is None else pose, 0.9, 0.9, 0.9, starts=1, turned=False, brain=brain)
    with patch.object(structural, "align", lambda voxels, affine: found):
        return prepare_volume(scan, spec, force=True)  # drawn voxels are no T1-weighted head


# --- the properties ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_the_product_of_the_log_is_what_happened_to_the_voxels(case: Any) -> None:
    scan, spec, pose, margin = case
    prepared = prepared_with(scan, spec, pose)
    assert_log_is_true(scan, prepared, margin)
    names = [step.name for step in prepared.geometry]
    assert (ONLY_THE_WORLD in names) == (pose is not None)
    assert names[-1] == "resampling" and "linear" in prepared.geometry[-1].interpolation


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_an_entry_that_is_left_out_or_wrong_does_not_pass(case: Any) -> None:
    """The check itself: any entry that changed something cannot be dropped, nor its matrix be another."""
    scan, spec, pose, margin = case
    prepared = prepared_with(scan, spec, pose)
    for number, step in enumerate(prepared.geometry):
        rest = [*prepared.geometry[:number], *prepared.geometry[number + 1 :]]
        wrong = np.array(step.after) @ np.diag([-1.0, 1, 1, 1])
        lied = replace(step, after=tuple(map(tuple, wrong.tolist())))
        changed = step.before != step.after or step.shape_before != step.shape_after
        for log in [rest] * changed + [[*prepared.geometry[:number], lied, *prepared.geometry[number + 1 :]]]:
            with pytest.raises(AssertionError):
                assert_log_is_true(scan, replace(prepared, geometry=log), margin)


RUN_GRID = ScanSpec(
    modality="volume4d",
    axes=tuple(
        Axis(name=name, size=size)  # type: ignore[arg-type]
        for name, size in {"channel": 1, "x": 24, "y": 28, "z": 24, "time": 2}.items()
    ),
    orientation="LAS",
    spacing_mm=(8.0, 8.0, 8.0),
    origin_mm=(92.0, -124.0, -72.0),
    template="MNI152",
    steps=(Step.named("to_grid"),),
)


@st.composite
def lattices(draw: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """On the grid's own lattice, turned and cut; or anywhere near it."""
    spacing = np.full(3, 8.0)
    turn = np.eye(3)[list(draw(st.permutations(range(3))))] * draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    shift = np.array(draw(st.tuples(*[st.integers(-1, 1)] * 3))) * 8.0
    if draw(st.booleans()):
        spacing = np.array(draw(st.tuples(*[about(6.5, 8.5)] * 3)))
        turn = Rotation.from_rotvec(draw(st.tuples(*[about(-0.3, 0.3)] * 3))).as_matrix() @ turn
    shape = (28, 28, 28)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = np.array([-4.0, -12.0, 16.0]) + shift - affine[:3, :3] @ (np.array(shape) // 2)
    return affine, shape


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(lattices())
def test_the_log_of_a_run_is_what_happened_to_its_voxels(tmp_path_factory: Any, lattice: Any) -> None:
    affine, shape = lattice
    path: Path = tmp_path_factory.getbasetemp() / "run.nii"
    volumes = np.stack([indices(shape) + 20_000, indices(shape) + 20_001], axis=-1)
    image = nib.Nifti1Image(volumes, affine)  # type: ignore[attr-defined]
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 4)
    image.to_filename(path)
    run = read_run(path)
    done = prepare_run(run, RUN_GRID)
    np.testing.assert_allclose(done.affine, RUN_GRID.grid_affine)
    for frame in range(2):
        result = done.volumes[..., frame] - np.float32(20_000 + frame)
        there = Scan(indices(shape), run.affine)
        native = NativeSpace(run.shape, run.affine)
        as_volume = Prepared(result[None], done.affine, done.geometry, np.eye(4), done.quality, (), {}, native)  # type: ignore[arg-type]
        assert_log_is_true(there, as_volume, np.ones(3))
    exact = np.allclose(np.abs(affine[:3, :3]).sum(axis=0), 8)
    assert [step.interpolation for step in done.geometry] == ["none" if exact else "linear"]
