"""`check-scan`: plain words and JSON about what a file is, what would be done, what is wrong; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing.check import check_scan
from neuroflamingo_preprocessing.errors import NotFoundError

LAS = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -126], [0, 0, 6, -72], [0, 0, 0, 1]])


def write(path: Path, values: np.ndarray, tr: float = 2.0, codes: tuple[int, int] = (4, 4)) -> Path:
    image = nib.Nifti1Image(values, LAS)
    image.set_sform(LAS, codes[0])
    image.set_qform(LAS, codes[1])
    if values.ndim == 4:
        image.header.set_zooms((6.0, 6.0, 6.0, tr))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


def frames(count: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    still = rng.uniform(500, 1500, (31, 37, 31, 1))
    return (still + rng.normal(0, 10, (31, 37, 31, count))).astype(np.float32)


def test_a_head(head_file: Path, aligned: None, capsys) -> None:
    before = sorted(head_file.parent.iterdir())
    assert main(["check-scan", str(head_file)]) == 0
    text = capsys.readouterr().out
    for words in ("a volume, ", "mm\n", "tiny-t1w-cnn", "1. ", "match to template", "can be used", "correlation"):
        assert words in text
    assert main(["check-scan", str(head_file), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["usable"] and found["fault"] is None and found["file"] == head_file.name
    assert len(found["sha256"]) == 64 and len(found["voxel_mm"]) == 3
    assert str(head_file.parent) not in json.dumps(found) and sorted(head_file.parent.iterdir()) == before


def test_a_run(tmp_path: Path, capsys) -> None:
    values = frames()
    path = write(tmp_path / "bold.nii.gz", values)
    found = check_scan(path)
    assert found.usable and found.kind == "run" and found.encoder is None and found.warnings == []
    assert found.stored == "LAS: right to left, back to front, up" and found.voxel_mm == [6.0, 6.0, 6.0]
    assert found.quality["tSNR"] == pytest.approx(100, rel=0.1)
    values[3, 3, 3, 5] = np.nan
    values[..., 7] = 5.0
    values[..., 10] = values[..., 9]
    odd = check_scan(write(tmp_path / "odd.nii", values)).warnings
    assert odd[0].startswith("1 voxels are not numbers")
    assert "1 of 12 frames hold one value in all voxels, the first is number 7" in odd
    assert "1 of 12 frames repeat the frame before, the first is number 10" in odd
    assert main(["check-scan", str(path), "--encoder", "brainlm-13m"]) == 0
    text = capsys.readouterr().out
    assert "2. robust fixed (gain 7.0)" in text and "resampled in time from 2 s to 0.735 s" in text
    assert main(["check-scan", str(path), "--encoder", "swift"]) == 65
    text = capsys.readouterr().out
    assert "cannot be used" in text and "at least 20 frames" in text


@pytest.mark.slow
def test_what_cannot_be_used(tmp_path: Path, head_file: Path, capsys) -> None:
    silent = write(tmp_path / "silent.nii", frames(3)[..., 0], codes=(0, 0))
    words = tmp_path / "words.nii"
    words.write_text("no scan")
    noise = write(tmp_path / "noise.nii", frames(3)[..., 0])
    lying = write(tmp_path / "lying.nii", frames())
    (tmp_path / "lying.json").write_text('{"RepetitionTime": 1000}')
    assert main(["check-scan", *map(str, (silent, words, noise, lying)), "--json"]) == 65
    found = json.loads(capsys.readouterr().out)
    said = [one["fault"]["what"] for one in found]
    assert [one["usable"] for one in found] == [False] * 4 and [one["kind"] for one in found][:2] == ["volume", None]
    for saw, wanted in zip(
        said, ("left and right", "not a NIfTI", "cannot be placed", "impossible repetition time"), strict=True
    ):
        assert wanted in saw
    assert all(one["fault"]["try"] for one in found)
    assert check_scan(lying, repetition_time=1.0).usable
    assert not check_scan(write(tmp_path / "bold.nii", frames()), encoder_card("tiny-t1w-cnn")).usable
    with pytest.raises(NotFoundError):
        check_scan(tmp_path / "gone.nii")
    assert main(["check-scan", str(head_file), "--encoder", "tiny-t1w-cm"]) == 66
    assert "did you mean tiny-t1w-cnn" in capsys.readouterr().err


def test_names_and_texts_of_other_images(tmp_path: Path, head_file: Path) -> None:
    image = nib.load(head_file)
    image.header["descrip"] = b"Jane Doe T1 post contrast"
    image.to_filename(tmp_path / "sub-01_T2starw.nii.gz")
    found = check_scan(tmp_path / "sub-01_T2starw.nii.gz", encoder_card("tiny-t1w-cnn"))
    assert found.header["described as"] == "contrast agent" and "Doe" not in repr(found)
    assert "the file's name says T2starw, but this encoder takes T1w" in found.warnings
    assert "the header's text says contrast agent, but this encoder takes T1w" in found.warnings


def test_a_head_far_from_adult_size_is_warned_of(tmp_path: Path, head_file: Path) -> None:
    found = _scaled(0.68, tmp_path, head_file)
    assert found.usable and any("an adult's has" in warning for warning in found.warnings)
    assert not any("adult" in warning for warning in check_scan(head_file, encoder_card("tiny-t1w-cnn")).warnings)


def _scaled(share: float, folder: Path, head_file: Path):
    image = nib.load(head_file)
    affine = np.diag([share, share, share, 1]) @ image.affine
    nib.Nifti1Image(np.asanyarray(image.dataobj), affine).to_filename(folder / "a_T1w.nii")
    return check_scan(folder / "a_T1w.nii", encoder_card("tiny-t1w-cnn"))


@pytest.mark.slow
def test_the_other_form_is_named_where_the_scan_is_refused(tmp_path: Path, head_file: Path, capsys) -> None:
    image = nib.load(head_file)
    turned = np.diag([-1.0, -1, 1, 1]) @ image.affine
    noise = np.random.default_rng(0).integers(0, 1000, image.shape).astype(np.int16)
    odd = nib.Nifti1Image(noise, image.affine)
    odd.set_sform(image.affine, 1)
    odd.set_qform(turned, 1)
    odd.to_filename(tmp_path / "odd_T1w.nii")
    assert main(["report", str(tmp_path / "odd_T1w.nii"), "-o", str(tmp_path) + "/"]) == 65
    said = capsys.readouterr().err
    assert "noted before: sform (scanner" in said and "--xform qform takes the other" in said
