"""Runs to the tensors that published encoders of 4D volumes take: equal to plain statements of their preprocessing."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError
from neuroflamingo_preprocessing.formats.nifti.run import Run
from neuroflamingo_preprocessing.functional.prepare_run import check_run_spec, prepare_run
from neuroflamingo_preprocessing.functional.run_quality import assess_run
from neuroflamingo_preprocessing.read import read_run
from neuroflamingo_preprocessing.spec import Axis, RepetitionTime, ScanSpec, Step
from neuroflamingo_preprocessing.structural.resampling import resample
from neuroflamingo_preprocessing.structural.template import load_template

MM = 8.0
SHAPE = (23, 28, 23)
LAS = np.array([[-MM, 0, 0, 88], [0, MM, 0, -124], [0, 0, MM, -70], [0, 0, 0, 1]])
FRAMES = 11


@lru_cache(maxsize=8)
def brain(stored: bytes = LAS.tobytes(), shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A skull-stripped run that changes over time, on any lattice: `[x, y, z, frame]`."""
    template = load_template()
    affine = np.frombuffer(stored).reshape(4, 4)
    still = resample(template.t1 * template.mask, template.affine, shape, affine, MM, 0.0) * 1000
    index = np.moveaxis(np.indices(shape), 0, -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    still = still * (1 + world[..., 0] / 200)  # the right side is brighter
    still[still < 50] = 0
    wave = 1 + 0.02 * np.sin(np.arange(FRAMES))
    return (still[..., None] * wave).astype(np.float32)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = LAS, tr: float = 0.8, code: int = 4) -> Run:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return read_run(path)


def spec(*steps: str, shift: tuple[int, int, int] = (-2, 3, -1), frames: int = 4, order: str = "cxyzt", **how: Any):
    """A card's input: 24 voxels along each axis of the run's own lattice, from voxel `shift` on."""
    names = {"c": ("channel", 1), "x": ("x", 24), "y": ("y", 24), "z": ("z", 24), "t": ("time", frames)}
    return ScanSpec(
        modality="volume4d",
        axes=tuple(Axis(name=names[a][0], size=names[a][1]) for a in order),  # type: ignore[arg-type]
        orientation="LAS",
        spacing_mm=(MM, MM, MM),
        origin_mm=tuple((LAS[:3, :3] @ shift + LAS[:3, 3]).tolist()),
        template="MNI152",
        repetition_time=RepetitionTime(seconds=0.8, tolerance=0.1, policy=how.get("policy", "as_is")),
        steps=tuple(Step.named(name) for name in steps),
    )


def cut(voxels: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """By slices and padding: from voxel (-2, 3, -1) on, 24 along each axis."""
    return np.pad(voxels[:22, 3:27], ((2, 0), (0, 0), (1, 0), (0, 0)), constant_values=fill)


def zscored(voxels: np.ndarray) -> np.ndarray:
    """Over all voxels that are not 0, background at the lowest value."""
    seen = voxels[voxels != 0].astype(np.float64)
    out = np.where(voxels != 0, (voxels - seen.mean()) / seen.std(), (seen.min() - seen.mean()) / seen.std())
    return out.astype(np.float32)


def test_statistics_of_the_whole_run_then_cut_and_padded(tmp_path: Path) -> None:
    """As SwiFT's preprocessing has it."""
    run = save(tmp_path / "run.nii.gz", brain())
    prepared = prepare_run(run, spec("zscore_foreground", "to_grid"))
    whole = zscored(brain())
    wanted = cut(whole, float(whole.min()))
    np.testing.assert_allclose(prepared.volumes, wanted, atol=1e-5)
    (step,) = prepared.geometry
    assert step.interpolation == "none" and step.shape_after == (24, 24, 24) and len(prepared) == 2
    assert prepared.warnings == ("the last 3 frames do not fill a window of 4 and are left out",)
    assert prepared.quality.coverage > 0.9 and prepared.quality.tsnr == pytest.approx(
        1 / (0.02 * np.sin(np.arange(11)).std()), rel=0.05
    )
    windows = list(prepared.windows())
    assert [w.first_frame for w in windows] == [0, 4]
    assert np.array_equal(windows[1].tensor[0], prepared.volumes[..., 4:8])


def test_cut_then_statistics_then_signed_bytes(tmp_path: Path) -> None:
    """As NeuroSTORM's has it; negative values count as background."""
    voxels = brain().copy()
    voxels[5, 5, 5] = -300.0
    prepared = prepare_run(
        save(tmp_path / "run.nii", voxels), spec("to_grid", "clip_negative", "zscore_foreground", "symmetric_int8")
    )
    plain = zscored(cut(np.maximum(voxels, 0)))
    scale = np.abs(plain).max() / 127
    assert np.abs(prepared.volumes - plain).max() <= 0.5001 * scale
    levels = prepared.volumes / scale
    assert np.abs(levels - np.rint(levels)).max() < 1e-3 and len(np.unique(np.rint(levels))) > 50


def test_axes_are_those_of_the_card(tmp_path: Path) -> None:
    """As BrainMT's loader turns them: time, channel, y, x, z."""
    prepared = prepare_run(save(tmp_path / "run.nii", brain()), spec("zscore_foreground", "to_grid", order="tcyxz"))
    (first, _) = prepared.windows()
    assert first.tensor.shape == (4, 1, 24, 24, 24) and np.shares_memory(first.tensor, prepared.volumes)
    assert first.tensor[3, 0, 5, 11, 7] == prepared.volumes[11, 5, 7, 3]


def test_every_way_to_store_a_run_gives_the_same_tensor(tmp_path: Path, stored: Any) -> None:
    """48 axis orders and flips: nothing is interpolated, left stays left."""
    order, signs = stored
    voxels, affine = brain()[..., :4], LAS.copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    run = save(tmp_path / "run.nii", np.ascontiguousarray(voxels.transpose((*order, 3))), affine[:, [*order, 3]])
    prepared = prepare_run(run, spec("to_grid"), may_resample=False)
    assert np.array_equal(prepared.volumes, cut(brain()[..., :4]))
    right, left = (half[half > 0].mean() for half in (prepared.volumes[:12], prepared.volumes[14:]))
    assert right > 1.2 * left


def test_other_lattices_are_interpolated_once_and_logged(tmp_path: Path) -> None:
    turn = nib.eulerangles.euler2mat(0.1, 0.05, -0.08)
    oblique = nib.affines.from_matvec(6.0 * turn, (-85, -115, -95))
    voxels = brain(oblique.tobytes(), (32, 38, 34))
    run = save(tmp_path / "run.nii", voxels, oblique)
    prepared = prepare_run(run, spec("to_grid"))
    (step,) = prepared.geometry
    assert step.interpolation == "linear"
    wanted = cut(brain())
    inside = wanted[..., 0] > 100
    errors = np.abs(prepared.volumes[inside] - wanted[inside]) / wanted[inside]
    assert np.median(errors) < 0.06 and np.corrcoef(prepared.volumes[inside][:, 0], wanted[inside][:, 0])[0, 1] > 0.9
    with pytest.raises(UsageError, match="resampled in space"):
        prepare_run(run, spec("to_grid"), may_resample=False)


def test_time(tmp_path: Path) -> None:
    run = save(tmp_path / "run.nii", brain(), tr=2.0)
    prepared = prepare_run(run, spec("to_grid", policy="resample"))
    assert prepared.volumes.shape[-1] == 26
    plain, place = cut(brain()), np.arange(26) * 0.4
    here = (11, 12, 12)
    np.testing.assert_allclose(prepared.volumes[here], np.interp(place, np.arange(11), plain[here]), rtol=1e-5)
    with pytest.raises(UsageError, match="resampled in time"):
        prepare_run(run, spec("to_grid", policy="resample"), may_resample=False)
    with pytest.raises(ScanError, match="does not have the encoder's repetition time"):
        prepare_run(run, spec("to_grid", policy="refuse"))
    assert "trained on 0.8 s" in prepare_run(run, spec("to_grid"), may_resample=False).warnings[0]
    unknown = save(tmp_path / "unknown.nii", brain(), tr=0.0)
    with pytest.raises(UsageError, match=r"not known"):
        prepare_run(unknown, spec("to_grid"))
    with pytest.raises(ScanError, match="too short"):
        prepare_run(save(tmp_path / "short.nii", brain()[..., :3]), spec("to_grid"))


@pytest.mark.slow
def test_runs_that_are_no_runs_in_mni_space(tmp_path: Path) -> None:
    away = LAS.copy()
    away[2, 3] += 110
    with pytest.raises(ScanError, match="is not in MNI space") as caught:
        prepare_run(save(tmp_path / "away.nii", brain(), away), spec("to_grid"))
    assert "fMRIPrep" in str(caught.value)
    with pytest.raises(ScanError, match="is not in MNI space"):
        prepare_run(save(tmp_path / "empty.nii", np.zeros_like(brain())), spec("to_grid"))
    with pytest.raises(ScanError, match="is constant"):
        prepare_run(save(tmp_path / "flat.nii", np.full_like(brain(), 7.0)), spec("to_grid", "zscore_foreground"))
    doubtful = prepare_run(save(tmp_path / "native.nii", brain(), code=1), spec("to_grid"))
    assert "neither the header nor the name" in doubtful.warnings[0]
    named = prepare_run(save(tmp_path / "sub-1_space-MNI152NLin6Asym_bold.nii", brain(), code=1), spec("to_grid"))
    assert not any("neither" in warning for warning in named.warnings)
    holes = brain().copy()
    holes[11, 12, 12, 2] = np.nan
    assert prepare_run(save(tmp_path / "nan.nii", holes), spec("to_grid")).volumes[13, 9, 13, 2] == 0


def test_a_grid_beside_the_brain_is_refused(tmp_path: Path) -> None:
    tiny = build_encoder("swift", tiny=True).card.scan.model_copy(update={"origin_mm": (200.0, 200.0, 200.0)})
    run = save(tmp_path / "run.nii", np.tile(brain(), 3))
    with pytest.raises(ScanError, match=r"run\.nii cannot be prepared: the encoder's grid does not reach") as caught:
        prepare_run(run, tiny)
    error = caught.value
    assert error.exit_code == 65 and error.expected and " mm" in str(error.seen) and "origin_mm" in str(error.hint)


def test_cards_that_cannot_be_followed() -> None:
    for wrong in (spec("zscore_foreground"), spec("to_grid", "detrend"), spec("to_grid", "to_grid")):
        with pytest.raises(ModelError, match="cannot be prepared from a run"):
            check_run_spec(wrong)
    check_run_spec(spec("to_grid"))


@pytest.mark.parametrize("how", ["mean removed", "z-scored", "z-scored, all voxels"])
def test_denoised_runs_have_no_mean_and_lie_in_mni_space_all_the_same(how: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=brain().shape).astype(np.float32)
    voxels = brain() * (1 + 0.01 * noise) if how != "z-scored, all voxels" else brain() + noise
    voxels = voxels - voxels.mean(axis=-1, keepdims=True)
    if how != "mean removed":
        spread = voxels.std(axis=-1, keepdims=True)
        voxels = np.divide(voxels, spread, out=np.zeros_like(voxels), where=spread > 0)
    run = save(tmp_path / "run.nii.gz", voxels)
    prepared = prepare_run(run, spec("to_grid", "zscore_foreground"))
    assert any("the mean of the run was removed" in warning for warning in prepared.warnings)
    assert prepared.quality.coverage > 0.9 and prepared.quality.tsnr is None and prepared.quality.dvars is None
    elsewhere = LAS.copy()
    elsewhere[2, 3] += 90
    if how != "z-scored, all voxels":
        with pytest.raises(ScanError, match="is not in MNI space"):
            prepare_run(save(tmp_path / "moved.nii.gz", voxels, elsewhere), spec("to_grid", "zscore_foreground"))
    quality, odd = assess_run(run)
    assert quality.tsnr is None and any("the mean of the run was removed" in warning for warning in odd)
