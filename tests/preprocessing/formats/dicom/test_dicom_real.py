"""DICOM files that nibabel and pydicom ship: real headers, code streams and a real examination."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from neuroflamingo_preprocessing import read_run, read_scan
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.dicom.read_dicom import list_series


def shipped(package: str, *parts: str) -> Path:
    return Path(__import__(package).__file__ or "").parent.joinpath(*parts)


def test_real_siemens_mosaics(tmp_path: Path) -> None:
    """nibabel's two diffusion mosaics of 48 slices: a real CSA header, read as a run of two volumes."""
    for name in ("siemens_dwi_0", "siemens_dwi_1000"):
        packed = shipped("nibabel", "nicom", "tests", "data", f"{name}.dcm.gz")
        (tmp_path / name).write_bytes(gzip.decompress(packed.read_bytes()))
    (series,) = list_series(tmp_path)
    assert (series.kind, series.form, series.slices, series.volumes) == ("dwi", "mosaic", 48, 2)
    run = read_run(tmp_path, series=12)
    assert run.shape == (128, 128, 48) and run.repetition_time == 6.6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental
        import nibabel.nicom.dicomwrappers as wrappers
    expected = wrappers.wrapper_from_file(str(tmp_path / "siemens_dwi_0"))
    (_, block), *_ = run.blocks(2)
    to_ras = np.diag([-1.0, -1, 1, 1]) @ expected.affine
    pixels = np.asarray(expected.get_data())
    for index in ((64, 64, 24), (30, 90, 10), (100, 40, 40)):
        world = to_ras[:3, :3] @ index + to_ras[:3, 3]
        there = np.linalg.inv(run.affine)
        here = there[:3, :3] @ world + there[:3, 3]
        assert np.abs(here - np.round(here)).max() < 0.01
        assert block[..., 0][tuple(np.round(here).astype(int))] == pixels[index]


@pytest.mark.slow
def test_a_real_enhanced_header(tmp_path: Path) -> None:
    """nibabel's Philips MPRAGE: a real enhanced header of 176 frames; its pixels were set to 0, which is refused."""
    packed = shipped("nibabel", "nicom", "tests", "data", "philips_mprage.dcm.gz")
    (tmp_path / "head").write_bytes(gzip.decompress(packed.read_bytes()))
    (series,) = list_series(tmp_path)
    assert (series.number, series.kind, series.form, series.slices) == (301, "T1w", "enhanced", 176)
    with pytest.raises(ScanError, match="holds no image"):
        read_scan(tmp_path)


def test_real_examination_with_a_dicomdir() -> None:
    """pydicom's examination of seven series, a DICOMDIR above it: listed from the images alone, none is a head."""
    folder = shipped("pydicom", "data", "test_files", "dicomdirtests", "98892003")
    kinds = [one.kind for one in list_series(folder)]
    assert kinds.count("derived") == 7 and kinds.count("T1w") == 4 and kinds.count("localizer") == 6
    with pytest.raises(ScanError, match="single slice"):
        read_scan(folder)


SYNTAXES = ["", "_RLE", "_implicit", "_bigendian", "_jp2klossless", "_jpeg_ls_lossless"]


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
def test_real_code_streams(syntax: str, tmp_path: Path) -> None:
    """pydicom's one MR slice as different packages stored it, stacked into a series: the same voxels each time."""
    stacks = []
    for name in ("", syntax):
        folder = tmp_path / f"x{name}"
        folder.mkdir()
        study, series = generate_uid(), generate_uid()
        for number in range(8):
            data = dcmread(shipped("pydicom", "data", "test_files", f"MR_small{name}.dcm"))
            data.StudyInstanceUID, data.SeriesInstanceUID = study, series
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            data.InstanceNumber, data.PixelSpacing = number + 1, [3.0, 3.0]
            data.ImagePositionPatient = [-96, -96, 20.0 * number]
            data.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
            data.save_as(folder / f"{number}")
        stacks.append(read_scan(folder, series=1).voxels)
    assert stacks[0].std() > 100
    assert np.array_equal(*stacks)


def test_a_real_truncated_file() -> None:
    with pytest.raises(ScanError, match="1 of 1 files are truncated"):
        read_scan(shipped("pydicom", "data", "test_files", "MR_truncated.dcm"), series=1)
