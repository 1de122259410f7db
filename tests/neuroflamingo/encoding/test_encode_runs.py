"""fMRI from files to tokens: runs and parcel series through `encode`, with all that says how they came to be."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo.encoding.encoder_choice import EncoderChoice
from neuroflamingo.encoding.token_file import encode
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.tokens.files import read_tokens
from neuroflamingo_preprocessing.errors import ScanError, UsageError
from neuroflamingo_preprocessing.functional.parcel_series import RobustScaling
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.structural.template import load_template

LAS = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -126], [0, 0, 6, -72], [0, 0, 0, 1]])
SHAPE = (31, 37, 31)


def save(path: Path, values: np.ndarray, tr: float | None = None) -> Path:
    image = nib.Nifti1Image(values, LAS)
    image.set_sform(LAS, 4)
    image.set_qform(LAS, 4)
    if tr is not None:
        image.header.set_zooms((6.0, 6.0, 6.0, tr))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    from neuroflamingo_preprocessing.structural.resampling import resample

    template = load_template()
    return 1000 * resample(template.t1 * template.mask, template.affine, SHAPE, LAS, 6.0, 0.0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brain: np.ndarray) -> Path:
    """A folder with a run of 45 frames and an atlas of 30 parcels."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(1, 0.02, (*SHAPE, 45))
    save(tmp_path / "sub-01_task-rest_bold.nii.gz", (brain[..., None] * noise).astype(np.float32), 0.8)
    x, y, z = np.indices(SHAPE)
    labels = (1 + ((x // 4) * 49 + (y // 5) * 7 + z // 4) % 30) * (brain > 200)
    save(tmp_path / "atlas.nii.gz", labels.astype(np.int16))
    return tmp_path


RUN = "sub-01_task-rest_bold.nii.gz"


@pytest.mark.slow
def test_a_run_gives_its_windows(place: Path, capsys) -> None:
    assert main(["encode", RUN, "--encoder", "swift", "--init", "random", "-o", "swift.zarr", "-q"]) == 0
    found = read_tokens("swift.zarr", card=encoder_card("swift"))
    assert [scan.metadata["window"] for scan in found.scans] == [{"first_frame": n, "frames": 20} for n in (0, 20)]
    first, second = found.scans
    assert first.tokens.shape == (160, 288) and np.isfinite(first.tokens).all()
    assert not np.allclose(first.tokens, second.tokens)
    metadata = first.metadata
    assert metadata["repetition_time_s"] == 0.8 and metadata["quality"]["coverage"] > 0.95
    assert metadata["geometry"][0]["interpolation"] == "linear" and "5 frames do not fill" in metadata["warnings"][-1]
    assert metadata["input"]["header"]["repetition time"] == "0.8 s, from the header"
    assert str(place) not in json.dumps(dict(metadata))


@pytest.mark.slow
def test_no_resampling_means_none(place: Path, capsys) -> None:
    common = ["encode", RUN, "--init", "random", "-o", "a.npz", "-q", "--no-resample"]
    assert main([*common, "--encoder", "swift"]) == 2
    assert "resampled in space" in capsys.readouterr().err
    assert main(["encode", RUN, "--encoder", "tiny-t1w-cnn", "-o", "a.npz", "-q", "--no-resample"]) == 2
    assert "would have to be resampled" in capsys.readouterr().err


@pytest.mark.slow
def test_parcels_of_a_run(place: Path, capsys) -> None:
    common = ["encode", "--encoder", "fc-baseline", "--option", "parcels=30", "-q"]
    assert main([*common, RUN, "--atlas", "atlas.nii.gz", "-o", "fc.npz"]) == 0
    (scan,) = read_tokens("fc.npz").scans
    assert scan.tokens.shape == (30, 30)
    atlas = scan.metadata["atlas"]
    assert atlas["file"] == "atlas.nii.gz" and len(atlas["sha256"]) == 64 and scan.metadata["geometry"] == []
    run = nib.load(RUN).get_fdata()
    labels = np.asarray(nib.load("atlas.nii.gz").dataobj)
    series = np.stack([run[labels == n].mean(0) for n in range(1, 31)])
    wanted = np.corrcoef(series)
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(np.tanh(scan.tokens), wanted, atol=1e-4)
    np.savetxt("series.tsv", series.T, delimiter="\t")
    assert main([*common, "series.tsv", "--raw", "-o", "raw.npz"]) == 0
    np.testing.assert_allclose(read_tokens("raw.npz").scans[0].tokens, scan.tokens, atol=1e-3)
    capsys.readouterr()
    assert main([*common, RUN, "--atlas", "gone.nii.gz", "-o", "a.npz"]) == 66
    assert main(["encode", RUN, "--encoder", "fc-baseline", "--atlas", "atlas.nii.gz", "-o", "a.npz", "-q"]) == 65
    assert "expected: 424" in capsys.readouterr().err
    assert main(["encode", RUN, "--encoder", "swift", "--init", "random", "--raw", "-o", "a.npz", "-q"]) == 2


def test_brainlm_from_series_as_measured(place: Path) -> None:
    """Repetition time, scaling with the card's gain, windows of 200 frames."""
    rng = np.random.default_rng(0)
    series = (9000 + rng.normal(0, 100, (424, 230))).astype(np.float32)
    np.save("raw.npy", series)
    card = encoder_card("brainlm-13m")
    how = Preparation.of(card.scan, raw=True, repetition_time=0.735)
    (only,) = prepare(Path("raw.npy"), card.scan, how).windows
    centred = series - series.mean(1, keepdims=True, dtype=np.float64)
    low, middle, high = np.percentile(centred, (25, 50, 75), axis=1, keepdims=True)
    np.testing.assert_allclose(only.tensor, (7 * (centred - middle) / (high - low))[:, :200], rtol=1e-3, atol=2e-3)
    assert only.metadata["window"] == {"first_frame": 0, "frames": 200}
    plain = encoder_card("brainlm-vitmae-111m", normalisation="zscore_parcel", gain=2.0)
    (other,) = prepare(Path("raw.npy"), plain.scan, how).windows
    np.testing.assert_allclose(
        other.tensor, (2 * centred / centred.std(1, keepdims=True))[:, :200], rtol=1e-3, atol=2e-3
    )
    windows = prepare(Path("raw.npy"), card.scan, Preparation.of(card.scan, raw=True, repetition_time=1.47)).windows
    assert [w.metadata["window"]["first_frame"] for w in windows] == [0, 200]
    assert "resampled in time" in windows[0].metadata["warnings"][0]
    fixed = Preparation.of(card.scan, raw=True, repetition_time=1.47, may_resample=False)
    with pytest.raises(UsageError, match="resampled in time"):
        prepare(Path("raw.npy"), card.scan, fixed)
    RobustScaling.fit([series]).save("scaling.json")
    how = Preparation.of(card.scan, raw=True, repetition_time=0.735, scaling="scaling.json")
    (scaled,) = prepare(Path("raw.npy"), card.scan, how).windows
    np.testing.assert_allclose(scaled.tensor, only.tensor, atol=2e-3)
    assert scaled.metadata["scaling"] == {"runs": 1, "frames": 230} and "scaling" not in only.metadata
    np.save("few.npy", series[:100])
    with pytest.raises(ScanError, match=r"does not have the shape"):
        prepare(Path("few.npy"), card.scan, Preparation.of(card.scan, raw=True, repetition_time=0.735))


@pytest.mark.slow
def test_several_runs_of_which_one_fails(place: Path, brain: np.ndarray) -> None:
    save(place / "short.nii.gz", np.repeat(brain[..., None], 3, axis=-1).astype(np.float32), 0.8)
    done = encode([RUN, "short.nii.gz"], "a.zarr", EncoderChoice("swift", init="random"), device="cpu")
    assert done.scans == 2 and [name for name, _ in done.failures] == ["short.nii.gz"]
    assert "at least 20 frames" in str(done.failures[0][1])
