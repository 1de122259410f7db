"""Figures of quality: what is planted is found, and nothing in a good run."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo_preprocessing.formats.nifti.run import Run
from neuroflamingo_preprocessing.functional.run_quality import (
    Dvars,
    FrameWatch,
    assess_run,
    assess_series,
    orientation_warning,
    spikes,
)
from neuroflamingo_preprocessing.read import read_run
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.structural.template import GRID_SHAPE, grid_affine, load_template
from neuroflamingo_preprocessing.structural.volume_quality import SNR_WARN, white_matter_snr

SHAPE, FRAMES = (12, 14, 11), 30


def voxels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (1000 + rng.normal(0, 10, (*SHAPE, FRAMES))).astype(np.float32)


def save(path: Path, values: np.ndarray) -> Run:
    affine = np.diag([16.0, 14, 16, 1])
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 4)
    image.to_filename(path)
    return read_run(path, 2.0)


def test_a_good_run(tmp_path: Path) -> None:
    quality, words = assess_run(save(tmp_path / "run.nii", voxels()))
    assert words == [] and (quality.spikes, quality.empty, quality.repeated) == (0, 0, 0)
    assert quality.tsnr == pytest.approx(100, rel=0.05)
    assert quality.dvars == pytest.approx(100 * np.sqrt(2) * 10 / 1000, rel=0.02)  # the difference of two noises
    assert "fd_mean" not in quality.as_dict()


def test_planted_faults(tmp_path: Path) -> None:
    values = voxels()
    values[..., 4] = 0
    values[..., 9] = values[..., 8]
    values[..., 20:] *= 1.1  # the level jumps once
    values[3, 3, 3] = np.nan
    for name in ("run.nii", "run.nii.gz"):
        quality, words = assess_run(save(tmp_path / name, values))
        assert (quality.empty, quality.repeated) == (1, 1) and quality.spikes >= 1
        said = "\n".join(words)
        assert f"{FRAMES} voxels are not numbers" in said
        assert "1 of 30 frames hold one value" in said and "first is number 4" in said
        assert "repeat the frame before, the first is number 9" in said and "change suddenly" in said


def test_dvars_by_hand_and_spikes() -> None:
    dvars = Dvars()
    for frame in ([100.0, 100], [103, 96], [103, 96]):
        dvars.add(np.array(frame, np.float32))
    np.testing.assert_allclose(dvars.percent(), [100 * np.sqrt(12.5) / (299 / 3), 0])
    steady = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.1]
    assert spikes(steady).tolist() == [] and spikes([*steady, 5.0]).tolist() == [9] and spikes([1, 9]).tolist() == []
    assert not len(Dvars().percent())


def test_parcels_are_looked_at_too(tmp_path: Path) -> None:
    run = save(tmp_path / "run.nii", voxels())
    series = voxels().reshape(-1, FRAMES)[:40]
    watch = FrameWatch()
    quality, words = assess_series(series, watch, run)
    assert quality.tsnr == pytest.approx(100, rel=0.1) and quality.coverage is None and words == []


def test_motion_is_told(tmp_path: Path) -> None:
    from dataclasses import replace

    run = save(tmp_path / "run.nii", voxels())
    still, moving = np.full(FRAMES, 0.1), np.full(FRAMES, 0.1)
    moving[::3] = 0.9
    assert assess_run(replace(run, displacement=still))[1] == []
    quality, (words,) = assess_run(replace(run, displacement=moving))
    assert quality.fd_moved == pytest.approx(1 / 3) and quality.fd_max == 0.9 and "33% of the frames" in words
    still[5] = 6.0
    assert "at most 6 mm" in assess_run(replace(run, displacement=still))[1][0]


@pytest.mark.slow
def test_a_head_that_lies_turned_is_seen() -> None:
    """Flips along y or z and quarter turns are; a swap of left and right cannot be, in a symmetric template."""
    brain = load_template().grid_mask
    assert brain.shape == GRID_SHAPE and orientation_warning(brain, grid_affine()) is None
    for x, y, z in product((1, -1), repeat=3):
        words = orientation_warning(brain[::x, ::y, ::z], grid_affine())
        assert (words is None) == (y == z == 1)
        assert words is None or (
            ("front-back reversed" in words) == (y < 0) and ("up-down reversed" in words) == (z < 0)
        )
    quarter = np.zeros_like(brain)
    quarter[:, 4:60] = brain.transpose(0, 2, 1)[:, :, :56]
    assert "up-down as front-back" in (orientation_warning(quarter, grid_affine()) or "")


@pytest.mark.slow
def test_noise_of_a_scan() -> None:
    template, rng = load_template(), np.random.default_rng(0)
    found = [
        white_matter_snr(
            Scan((template.t1 + rng.normal(0, s, template.t1.shape)).astype(np.float32), template.affine), np.eye(4)
        )
        for s in (0.0, 0.05, 0.3)
    ]
    assert found[0] > 20 > found[1] > SNR_WARN > found[2]  # type: ignore[operator]
    far = np.eye(4)
    far[0, 3] = 500.0
    assert white_matter_snr(Scan(template.t1, template.affine), far) is None
