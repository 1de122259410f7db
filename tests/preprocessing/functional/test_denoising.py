"""Denoising: what nilearn does and nothing else, the mean kept, frames counted right, too little refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nilearn.signal import clean

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.formats.nifti.run import Run
from neuroflamingo_preprocessing.functional.confounds import RIGID
from neuroflamingo_preprocessing.functional.denoised_run import denoise_run
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.functional.denoising_plan import DenoisingPlan, plan_denoising
from neuroflamingo_preprocessing.functional.parcel_series import prepare_series
from neuroflamingo_preprocessing.read import read_run
from neuroflamingo_preprocessing.spec import Axis, RepetitionTime, ScanSpec, Step

FRAMES, SECONDS = 80, 2.0
RNG = np.random.default_rng(5)
MOTION = np.cumsum(RNG.normal(0, [0.05] * 3 + [0.0005] * 3, (FRAMES, 6)), axis=0)
MOTION[40:] += [1.0, 0, 0, 0, 0, 0]  # one jump of 1 mm at frame 40
MOTION[60:] += [0, 0.9, 0, 0, 0, 0]
FAKE = Path("sub-01_task-rest_desc-preproc_bold.nii.gz")


def write_table(folder: Path, more: dict[str, Any] | None = None, name: str = "sub-01_task-rest") -> Path:
    columns = dict(zip(RIGID, MOTION.T, strict=True)) | (more or {})
    lines = ["\t".join(columns)] + [
        "\t".join(map(repr, map(float, row))) for row in zip(*columns.values(), strict=True)
    ]
    path = folder / f"{name}_desc-confounds_timeseries.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def plan(wanted: Denoising, path: Path = FAKE, frames: int = FRAMES, seconds: float | None = SECONDS) -> DenoisingPlan:
    return plan_denoising(wanted, path, "the run", frames, seconds)


SIGNALS = (1000 + RNG.normal(0, 10, (7, FRAMES)) + 30 * MOTION[:, 0] + np.arange(FRAMES)).astype(np.float32)
HOWS: list[dict[str, Any]] = [
    {"detrend": True},
    {"high_pass": 0.01},
    {"low_pass": 0.1},
    {"high_pass": 0.01, "low_pass": 0.1, "detrend": True},
    {"strategy": ("6p",)},
    {"strategy": ("6p",), "detrend": True, "high_pass": 0.008},
    {"strategy": ("6p",), "scrub_fd": 0.6},
    {"strategy": ("6p",), "scrub_fd": 0.6, "high_pass": 0.01, "low_pass": 0.15},
    {"strategy": ("none",), "scrub_fd": 0.6, "low_pass": 0.1},
]


@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(how))
def test_equal_to_nilearn_but_for_the_mean(tmp_path: Path, how: dict[str, Any]) -> None:
    table = write_table(tmp_path)
    wanted = Denoising(confounds=table if "strategy" in how else None, drop_first=3, **how)
    found = plan(wanted)
    ours = found.clean(SIGNALS[:, 3:])
    moved = np.abs(np.diff(MOTION, axis=0)) @ ([1] * 3 + [50] * 3)
    kept = np.flatnonzero(moved[2:] <= how.get("scrub_fd", np.inf))
    assert np.array_equal(found.kept, kept) and (len(kept) == FRAMES - 3 - 2 * ("scrub_fd" in how))
    theirs = clean(
        SIGNALS[:, 3:].T.astype(np.float64),
        detrend=how.get("detrend", False),
        standardize=None,
        sample_mask=kept if "scrub_fd" in how else None,
        confounds=MOTION[3:] if how.get("strategy") == ("6p",) else None,
        high_pass=how.get("high_pass"),
        low_pass=how.get("low_pass"),
        t_r=SECONDS,
    ).T
    level = SIGNALS[:, 3:][:, kept].mean(axis=1, dtype=np.float64, keepdims=True)
    np.testing.assert_allclose(ours, theirs - theirs.mean(axis=1, keepdims=True) + level, rtol=1e-6)
    np.testing.assert_allclose(ours.mean(axis=1, dtype=np.float64), level[:, 0], rtol=1e-6)
    if how.get("strategy") == ("6p",) and "high_pass" not in how:
        assert abs(np.corrcoef(ours[0], MOTION[3:][kept, 0])[0, 1]) < 0.05


def save(path: Path, frames: int = FRAMES) -> Run:
    voxels = RNG.normal(500, 20, (9, 8, 12, frames)).astype(np.float32)
    voxels[:3] = 0  # background
    affine = np.diag([20.0, 20, 15, 1])
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 4)
    image.header.set_zooms((20, 20, 15, SECONDS))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return read_run(path)


@pytest.mark.parametrize("frames", [None, 7])
def test_a_run_is_cleaned_voxel_by_voxel(tmp_path: Path, frames: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small blocks of voxels, whatever the blocks of frames; background stays 0, what is left out is gone."""
    monkeypatch.setattr("neuroflamingo_preprocessing.functional.denoised_run.CHUNK_BYTES", 8 * FRAMES * 50)
    run = save(tmp_path / "sub-01_task-rest_bold.nii.gz")
    found = plan(Denoising(confounds=write_table(tmp_path), strategy=("6p",), scrub_fd=0.6, drop_first=2), run.path)
    cleaned = denoise_run(run, found)
    blocks = list(cleaned.blocks(frames))
    assert [first for first, _ in blocks] == list(np.cumsum([0] + [b.shape[-1] for _, b in blocks[:-1]]))
    whole = np.concatenate([block for _, block in blocks], axis=-1)
    image: Any = nib.load(run.path)
    stored = np.asarray(image.dataobj)[..., 2:]
    assert whole.shape[-1] == cleaned.frames == FRAMES - 4 and not whole[:3].any()
    np.testing.assert_allclose(whole.reshape(-1, FRAMES - 4), found.clean(stored.reshape(-1, FRAMES - 2)), rtol=1e-5)
    assert cleaned.times is not None and np.diff(cleaned.times).max() == 2 * SECONDS
    only = denoise_run(run, plan(Denoising(frames=(5, 30)), run.path))
    assert only.times is None and only.frames == 25
    np.testing.assert_array_equal(np.concatenate([b for _, b in only.blocks(frames)], axis=-1), stored[..., 3:28])


def test_frames_that_are_not_steady_and_what_is_recorded(tmp_path: Path) -> None:
    first, third = np.eye(FRAMES)[0], np.eye(FRAMES)[2]
    more = {"non_steady_state_outlier00": first, "non_steady_state_outlier01": third, "flat": np.ones(FRAMES)}
    write_table(tmp_path, more)
    run = tmp_path / FAKE.name
    found = plan(Denoising(confounds="auto", strategy=("6p", "flat"), high_pass=0.01), run)
    assert (found.first, found.stop, len(found.kept), found.columns) == (3, FRAMES, FRAMES - 3, RIGID)
    assert "first 3 frames are left out" in found.warnings[0] and "1 confounds are constant" in found.warnings[1]
    about = found.record
    assert about["frames"] == {"stored": 80, "first": 3, "after_last": 80, "left": 77, "not_steady": 3}
    assert about["confounds"]["columns"] == list(RIGID) and about["software"].startswith("nilearn ")
    assert about["high_pass_hz"] == 0.01 and str(tmp_path) not in repr(about)
    assert plan(Denoising(confounds="auto", strategy=("6p",), drop_first=10), run).first == 10
    quiet = plan(Denoising(), run)
    assert quiet.record == {} and quiet.displacement is not None and len(quiet.displacement) == FRAMES
    (tmp_path / "sub-01_task-rest_desc-confounds_timeseries.tsv").write_text("x\n1\n")
    assert "no framewise displacement" in plan(Denoising(), run).warnings[0]


def test_the_share_lost_is_told_and_too_little_is_refused(tmp_path: Path) -> None:
    moving = np.zeros(FRAMES)
    moving[::4] = 2.0
    table = write_table(tmp_path, {"framewise_displacement": moving})
    lines = [line.split("\t")[-1] for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines) + "\n")
    found = plan(Denoising(confounds=table, scrub_fd=0.5))
    assert found.record["frames"]["scrubbed"] == 20 and found.record["frames"]["scrubbed_share"] == 0.25
    assert "20 of 80 frames (25%) moved by more than 0.5 mm" in found.warnings[0] and "much" in found.warnings[0]
    moving[::2] = moving[1::4] = 2.0
    table.write_text("framewise_displacement\n" + "\n".join(map(str, moving)) + "\n")
    with pytest.raises(ScanError, match="too little of the run is left") as caught:
        plan(Denoising(confounds=table, scrub_fd=0.5))
    assert "20 of 80" in str(caught.value)


def test_gaps_are_seen_when_the_repetition_time_changes(tmp_path: Path) -> None:
    """A line over time stays a line where frames in between were left out."""
    found = plan(Denoising(confounds=write_table(tmp_path), scrub_fd=0.6))
    line = np.arange(FRAMES, dtype=np.float32)[None].repeat(3, axis=0) * SECONDS
    spec = ScanSpec(
        modality="parcels",
        axes=(Axis(name="parcel", size=3), Axis(name="time", minimum=3)),
        repetition_time=RepetitionTime(seconds=1.5, policy="resample"),
        steps=(Step.named("parcel_mean"),),
    )
    windows, _ = prepare_series(found.clean(line), SECONDS, spec, "the run", times=found.times)
    (window,) = windows
    np.testing.assert_allclose(window.tensor[0], np.arange(window.tensor.shape[1]) * 1.5, atol=1e-3)
    assert window.tensor.shape[1] == int((FRAMES - 1) * SECONDS / 1.5) + 1


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"confounds": "auto"}, "no --confound-strategy"),
    ({"high_pass": 0.0}, "not a frequency"),
    ({"low_pass": float("nan")}, "not a frequency"),
    ({"high_pass": 0.1, "low_pass": 0.1}, "passes nothing"),
    ({"drop_first": -1}, "range of frames is not valid"),
    ({"frames": (5, 5)}, "range of frames is not valid"),
    ({"confounds": "auto", "scrub_fd": 0.0}, "not a distance"),
]


@pytest.mark.parametrize(("how", "words"), WRONG)
def test_wishes_that_contradict_each_other(how: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Denoising(**how)


@pytest.mark.parametrize("how", [{"strategy": ("6p",)}, {"scrub_fd": 0.5}])
def test_columns_and_motion_are_of_a_table(how: dict[str, Any]) -> None:
    """Which a manifest may name for each run: refused where it is known that none does."""
    with pytest.raises(UsageError, match="need a confound table"):
        plan(Denoising(**how))
    with pytest.raises(UsageError, match="need a confound table"):
        Denoising(**how).changes(FAKE)


def test_plans_that_cannot_be(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    with pytest.raises(UsageError, match="repetition time of the run is not known"):
        plan(Denoising(high_pass=0.01), seconds=None)
    with pytest.raises(UsageError, match="no signal at these frequencies") as caught:
        plan(Denoising(low_pass=0.25))
    assert "below 0.25 Hz" in str(caught.value)
    for wanted in (Denoising(drop_first=75), Denoising(frames=(0, 81)), Denoising(frames=(0, 5))):
        with pytest.raises(ScanError, match="too few frames"):
            plan(wanted)
    with pytest.raises(ScanError, match="too short for so many confounds") as short:
        plan(Denoising(confounds=table, strategy=("6p",), frames=(0, 16)), frames=FRAMES)
    assert "16 frames" in str(short.value)
    with pytest.raises(ScanError, match="motion of the run is not known"):
        (tmp_path / "x.tsv").write_text("x\n" + "1\n2\n" * 40)
        plan(Denoising(confounds=tmp_path / "x.tsv", scrub_fd=0.5))
    with pytest.raises(NotFoundError, match="no confounds beside"):
        plan(Denoising(confounds="auto", strategy=("6p",)), tmp_path / "sub-09_bold.nii")


def test_what_the_card_says_of_filters() -> None:
    spec = ScanSpec(modality="parcels", axes=(Axis(name="parcel", size=3), Axis(name="time", minimum=3)))
    filtered, not_filtered = plan(Denoising(high_pass=0.01)), plan(Denoising(detrend=True))
    said = {says: filtered.against(spec.model_copy(update={"filtering": says})) for says in (None, "none", "any")}
    assert "does not say" in said[None][0] and "are not filtered" in said["none"][0] and said["any"] == []
    assert not_filtered.against(spec) == []
    named = spec.model_copy(update={"filtering": "none"})
    assert "filtering" not in spec.model_dump() and named.model_dump()["filtering"] == "none"
    assert named.digest != spec.digest and ScanSpec.model_validate(named.model_dump()) == named


def test_a_store_key_knows_the_table_and_each_wish(tmp_path: Path) -> None:
    table, run = write_table(tmp_path), tmp_path / FAKE.name
    wishes = [Denoising(detrend=True), Denoising(high_pass=0.01), Denoising(drop_first=2), Denoising(frames=(0, 50))]
    wishes += [Denoising(confounds="auto", strategy=(name,)) for name in ("6p", "none")]
    wishes.append(Denoising(confounds="auto", strategy=("6p",), scrub_fd=0.5))
    keys = [repr(wish.changes(run)) for wish in wishes]
    assert len(set(keys)) == len(wishes) and str(tmp_path) not in "".join(keys)
    assert Denoising(confounds=table, strategy=("6p",)).changes(run) == wishes[4].changes(run)
    table.write_text(table.read_text() + "\n")
    assert repr(wishes[4].changes(run)) != keys[4] and Denoising().changes(run) == {}


MEMORY = """
import resource, sys, warnings
from pathlib import Path
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.structural.volume_quality import brain_on_grid
import nilearn.signal, torch
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
card = encoder_card(sys.argv[2])
brain_on_grid(card.scan)
before = peak()
denoising = Denoising(detrend=True, high_pass=0.02) if sys.argv[3] == "clean" else None
found = prepare(Path(sys.argv[1]), card.scan, Preparation.of(card.scan, denoising=denoising))
print(sum(one.tensor.size for one in found.windows) * 4 / 2**20, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "how"), [("swift", "plain"), ("swift", "clean"), ("neurostorm", "plain")])
def test_memory_of_a_run_in_blocks(tmp_path: Path, encoder: str, how: str) -> None:
    """At most one and a half times the result and 300 MB, above the libraries; a wave of 100 frames at 2 mm."""
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    from neuroflamingo_preprocessing.structural.resampling import resample
    from neuroflamingo_preprocessing.structural.template import load_template

    template = load_template()
    still = resample(template.t1 * template.mask, template.affine, (91, 109, 91), affine, 2.0, 0.0) * 1000
    voxels = np.empty((91, 109, 91, 100), np.int16, order="F")
    for frame in range(100):
        voxels[..., frame] = still * (1 + 0.03 * np.sin(frame / 3))
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 4)
    image.header.set_zooms((2, 2, 2, 0.8))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / "run_bold.nii")
    del voxels, image
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "run_bold.nii"), encoder, how]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    result, more = map(float, said)
    assert result > 300 and more <= 1.5 * result + 300


def test_nilearn_says_nothing_while_cleaning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(Denoising(confounds=write_table(tmp_path), strategy=("6p",), low_pass=0.2)).clean(SIGNALS)
