"""FreeSurfer's volumes: the same head as from NIfTI, and the same distrust of the header."""

from __future__ import annotations

import gzip
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.geometry import apply, corners
from neuroflamingo_preprocessing.read import claimed_sizes, is_run, read_run, read_scan
from neuroflamingo_preprocessing.scan import Scan

SHAPE = (12, 14, 11)
AFFINE = np.array([[-12.0, 0, 0, 70], [0, 0, 12, -80], [0, -12, 0, 60], [0, 0, 0, 1]])


def voxels(*more: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (*SHAPE, *more))


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, tr: float | None = None) -> Path:
    image = nib.MGHImage(values, affine)  # type: ignore[attr-defined]
    if tr is not None:
        image.header.set_zooms((12.0, 12.0, 12.0, tr))
    image.to_filename(path)
    return path


@pytest.mark.parametrize("name", ["a_T1w.mgh", "a_T1w.mgz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_types(tmp_path: Path, name: str, dtype: type) -> None:
    scan = read_scan(write(tmp_path / name, voxels().astype(dtype)))
    assert np.array_equal(scan.voxels, voxels()) and np.allclose(scan.affine, AFFINE, atol=1e-4)
    assert scan.modality == "T1w" and not scan.provenance.warnings
    facts = scan.provenance.header
    assert facts["format"] == "MGH" and facts["affine from"] == "direction cosines" and facts["orientation"] == "LIA"
    assert len(scan.provenance.sha256 or "") == 64 and str(tmp_path) not in str(scan.provenance)


def test_every_orientation(stored: tuple, stored_as: Callable[..., Scan], tmp_path: Path) -> None:
    other = stored_as(Scan(voxels().astype(np.float32), AFFINE), *stored)
    scan = read_scan(write(tmp_path / "o.mgh", np.asarray(other.voxels), other.affine))
    assert np.array_equal(scan.voxels, other.voxels) and np.allclose(scan.affine, other.affine, atol=1e-4)


def test_tags_behind_the_voxels_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mgh", voxels().astype(np.int16))
    path.write_bytes(path.read_bytes() + b"Jane Doe" * 1000)
    scan = read_scan(path)
    assert np.array_equal(scan.voxels, voxels()) and "Jane" not in str(scan.provenance)
    path.write_bytes(path.read_bytes() + bytes(2 * 2**20))
    with pytest.raises(ScanError, match="more than its header says"):
        read_scan(path)


FAULTS = [
    (0, ">i", 2, "not an MGH file"),
    (4, ">i", 0, "dimensions are impossible"),
    (4, ">i", -3, "dimensions are impossible"),
    (4, ">i", 2**30, "claims"),
    (4, ">i", 13, "truncated"),
    (16, ">i", 5, "holds 5 volumes"),
    (20, ">i", 2, "type cannot be read"),
    (20, ">i", 77, "type cannot be read"),
    (28, ">h", 0, "left and right cannot be told"),
    (28, ">h", 256, "left and right cannot be told"),
    (30, ">f", 0.0, "impossible"),
    (30, ">f", -12.0, "impossible"),
    (30, ">f", float("nan"), "impossible"),
    (30, ">f", 1.0, "whole head"),
    (42, ">f", -3.0, "impossible"),
    (46, ">f", 0.4, "sheared"),
    (78, ">f", float("inf"), "usable affine"),
]


@pytest.mark.parametrize(("place", "kind", "value", "words"), FAULTS)
@pytest.mark.parametrize("name", ["bad.mgh", "bad.mgz"])
def test_faults(tmp_path: Path, place: int, kind: str, value: float, words: str, name: str) -> None:
    path = write(tmp_path / name, voxels().astype(np.int16))
    raw = bytearray(gzip.decompress(path.read_bytes()) if name.endswith("z") else path.read_bytes())
    raw[place : place + struct.calcsize(kind)] = struct.pack(kind, value)
    path.write_bytes(gzip.compress(bytes(raw), 1) if name.endswith("z") else raw)
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(path)
    error = caught.value
    assert error.exit_code == 65 and name in str(error) and error.seen and error.expected and error.hint


@pytest.mark.parametrize("share", [0.0, 0.005, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("name", ["cut.mgh", "cut.mgz"])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    path = write(tmp_path / name, voxels().astype(np.int16))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ScanError, match=r"truncated|not an MGH file"):
        read_scan(path)


def test_bombs_cost_little(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.mgz", voxels().astype(np.float32))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[4:16] = struct.pack(">3i", 800, 800, 800)
    raw[30:42] = struct.pack(">3f", 0.3, 0.3, 0.3)
    path.write_bytes(gzip.compress(bytes(raw), 9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ScanError, match="truncated"):
        read_scan(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kilobytes


@pytest.mark.slow
def test_one_byte_of_the_header(tmp_path: Path) -> None:
    """The direction cosines are unit vectors at right angles; sizes and centre are said once (README.md says so)."""
    good = write(tmp_path / "a.mgh", voxels().astype(np.int16)).read_bytes()
    silent = set()
    for place in range(90):
        for value in {good[place] ^ 1, good[place] ^ 0x80, 0xFF} - {good[place]}:
            (tmp_path / "m.mgh").write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            try:
                scan = read_scan(tmp_path / "m.mgh")
            except ScanError:
                continue
            if scan.voxels.shape != SHAPE:
                assert "the header's sizes may be wrong" in scan.provenance.warnings[0]
                continue
            moved = np.linalg.norm(apply(scan.affine, corners(SHAPE)) - apply(AFFINE, corners(SHAPE)), axis=1).max()
            if moved > 0.25 and not scan.provenance.warnings:
                silent.add("delta" if place < 42 else "Mdc" if place < 78 else "Pxyz_c")
            assert np.array_equal(scan.voxels, voxels())
    assert silent <= {"delta", "Pxyz_c", "Mdc"}


def test_a_file_with_another_ending_than_its_format(tmp_path: Path) -> None:
    nib.Nifti1Image(voxels().astype(np.int16), AFFINE).to_filename(tmp_path / "a.nii")  # type: ignore[attr-defined]
    (tmp_path / "a.nii").rename(tmp_path / "a.mgh")
    with pytest.raises(ScanError, match="not an MGH file"):
        read_scan(tmp_path / "a.mgh")
    write(tmp_path / "b.mgh", voxels().astype(np.int16)).rename(tmp_path / "b.nii")
    with pytest.raises(ScanError, match="not a NIfTI file"):
        read_scan(tmp_path / "b.nii")


def test_there_is_no_form_to_choose(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="has no qform"):
        read_scan(write(tmp_path / "a.mgz", voxels().astype(np.int16)), xform="qform")


@pytest.mark.parametrize("name", ["r_bold.mgh", "r_bold.mgz"])
def test_runs(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, voxels(5).astype(np.int16), tr=2500.0)
    assert is_run(path) and claimed_sizes(path) == (*SHAPE, 5)
    run = read_run(path)
    assert run.frames == 5 and run.repetition_time == 2.5 and np.allclose(run.affine, AFFINE, atol=1e-4)
    assert np.array_equal(np.concatenate([block for _, block in run.blocks(2)], axis=-1), voxels(5))
    (tmp_path / "r_bold.json").write_text('{"RepetitionTime": 2.0}')
    told = read_run(path)
    assert told.repetition_time == 2.0 and "2 s in r_bold.json and 2.5 s in the header" in told.provenance.warnings[0]
    assert read_run(path, 2.0).repetition_time == 2.0
    (tmp_path / "r_bold.json").unlink()
    assert read_run(write(tmp_path / name, voxels(5).astype(np.int16), tr=0.0)).repetition_time is None
