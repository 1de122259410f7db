"""NRRD, MetaImage and NIfTI pairs give voxels and places as NIfTI does; where left is not stated they are refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.read import claimed_sizes, is_run, read_run, read_scan
from neuroflamingo_preprocessing.spec import Axis, ScanSpec

SHAPE = (50, 44, 46)
TURN = np.array([[0.98, -0.17, 0.05], [0.17, 0.98, 0.02], [-0.05, -0.01, 1.0]])


def affine(flip: float = -1.0) -> np.ndarray:
    turn, _ = np.linalg.qr(TURN)
    out = np.eye(4)
    out[:3, :3] = turn * np.sign(np.diag(turn)) * np.array([3.0 * flip, 3.5, 4.0])
    out[:3, 3] = [-60.0 * flip, -75.0, -90.0]
    return out


def voxels(kind: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(kind)


def written(path: Path, kind: Any = np.int16, packed: bool = False, flip: float = -1.0) -> Path:
    """Written by ITK from the voxels and the affine of a NIfTI file."""
    image = sitk.GetImageFromArray(voxels(kind).transpose(2, 1, 0))
    lps = np.diag([-1.0, -1, 1, 1]) @ affine(flip)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


def pair(path: Path, kind: type = nib.Nifti1Pair, magic: bool = True) -> Path:
    image = kind(voxels(), affine())
    nib.save(image, path)
    return path


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32, np.float64, np.uint16])
def test_voxels_and_places_are_those_of_nifti(ending: str, packed: bool, kind: Any, tmp_path: Path) -> None:
    for flip in (-1.0, 1.0):
        scan = read_scan(written(tmp_path / f"sub-01_T1w.{ending}", kind, packed, flip))
        assert np.allclose(scan.affine, affine(flip), atol=1e-4)
        assert np.array_equal(scan.voxels, voxels(kind).astype(np.float32)) and scan.voxels.dtype == np.float32
        assert scan.modality == "T1w" and scan.provenance.warnings == ()
        assert scan.provenance.header["stored type"] == str(np.dtype(kind))
        assert scan.provenance.header["orientation"] == ("LAS" if flip < 0 else "RAS")
    assert claimed_sizes(tmp_path / f"sub-01_T1w.{ending}") == SHAPE and not is_run(tmp_path / f"sub-01_T1w.{ending}")


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1))],
)
def test_spaces_of_nrrd(space: str, signs: tuple[int, ...], tmp_path: Path) -> None:
    head = f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 50 44 46\nencoding: raw\nendian: little\n"
    head += "space directions: (3,0,0) (0,3.5,0) (0,0,4)\nspace origin: (10,20,30)\nkinds: domain domain domain\n\n"
    file = tmp_path / "a.nrrd"
    file.write_bytes(head.encode() + voxels().tobytes(order="F"))
    scan = read_scan(file)
    assert np.allclose(scan.affine[:3, :3], np.diag(np.array([3, 3.5, 4]) * signs))
    assert np.allclose(scan.affine[:3, 3], np.array([10, 20, 30]) * signs)
    assert np.array_equal(scan.voxels, voxels())


def changed(path: Path, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))
    return path


HARM: dict[str, tuple[str, bytes, bytes, str]] = {
    "no space": ("nrrd", b"space: left-posterior-superior\n", b"space dimension: 3\n", "left and right cannot be told"),
    "another space": ("nrrd", b"left-posterior-superior", b"scanner-xyz", "left and right cannot be told"),
    "no directions": ("mha", b"TransformMatrix", b"TransformNothing", "left and right cannot be told"),
    "no place": ("mha", b"Offset", b"Ofsett", "left and right cannot be told"),
    "larger than it is": ("nrrd", b"sizes: 50 44 46", b"sizes: 50 44 96", "truncated"),
    "far larger": ("mha", b"DimSize = 50 44 46", b"DimSize = 90 99 99", "truncated"),
    "gigantic": ("mha", b"DimSize = 50 44 46", b"DimSize = 99999 99999 9999", "claims"),
    "not numbers": ("mha", b"DimSize = 50 44 46", b"DimSize = a b c", "impossible"),
    "a single slice": ("nrrd", b"sizes: 50 44 46", b"sizes: 50 44 1", "single slice"),
    "not such a file": ("nrrd", b"NRRD", b"NORD", "is not an NRRD file"),
    "no such file either": ("mha", b"NDims", b"MDims", "is not a MetaImage file"),
    "other folders": ("mhd", b"ElementDataFile = ", b"ElementDataFile = ../x/", "not in one file beside it"),
    "two names": (
        "mha",
        b"ElementDataFile = ",
        b" elementDataFile = /etc/passwd\nElementDataFile = ",
        "more than once",
    ),
    "two names of data": ("nhdr", b"data file: ", b"Datafile: /etc/passwd\ndata file: ", "more than once"),
    "a list": ("mhd", b"ElementDataFile = ", b"ElementDataFile = LIST ", "not in one file beside it"),
    "a pattern": ("mhd", b"ElementDataFile = ", b"ElementDataFile = %03d", "not in one file beside it"),
    "a folder's data": ("nhdr", b"data file: ", b"data file: /etc/passwd #", "not in one file beside it"),
}


@pytest.mark.parametrize("name", HARM)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    ending, old, new, words = HARM[name]
    file = changed(written(tmp_path / f"a.{ending}"), old, new)
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(file)
    assert caught.value.exit_code == 65 and caught.value.hint


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_that_break_off(ending: str, packed: bool, tmp_path: Path) -> None:
    file = written(tmp_path / f"a.{ending}", packed=packed)
    raw = file.read_bytes()
    for share in (0.3, 0.9, 0.999):
        file.write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(ScanError, match=r"truncated|not a"):
            read_scan(file)


def test_one_affine_and_one_volume(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="has no qform"):
        read_scan(written(tmp_path / "a.nrrd"), xform="qform")
    run = sitk.JoinSeries([sitk.GetImageFromArray(voxels().transpose(2, 1, 0))] * 3)
    sitk.WriteImage(run, str(tmp_path / "run.nrrd"))
    with pytest.raises(ScanError):
        read_scan(tmp_path / "run.nrrd")
    with pytest.raises(ScanError, match="runs are not read"):
        read_run(tmp_path / "run.nrrd")


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("given", [".hdr", ".img"])
def test_pairs(kind: type, given: str, tmp_path: Path) -> None:
    pair(tmp_path / "sub-01_T1w.img", kind)
    scan = read_scan(tmp_path / f"sub-01_T1w{given}")
    assert np.array_equal(scan.voxels, voxels()) and np.allclose(scan.affine, affine(), atol=1e-4)
    assert scan.modality == "T1w" and "pair" in scan.provenance.header["format"]
    assert claimed_sizes(tmp_path / f"sub-01_T1w{given}") == SHAPE
    (tmp_path / "sub-01_T1w.img").rename(tmp_path / "other.img")
    with pytest.raises((NotFoundError, ScanError)):
        read_scan(tmp_path / f"sub-01_T1w{given}")


def test_packed_and_cut_pairs(tmp_path: Path) -> None:
    pair(tmp_path / "a.img")
    for file in (tmp_path / "a.img", tmp_path / "a.hdr"):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert np.array_equal(read_scan(tmp_path / "a.hdr.gz").voxels, voxels())
    pair(tmp_path / "b.img")
    (tmp_path / "b.img").write_bytes((tmp_path / "b.img").read_bytes()[:-50])
    with pytest.raises(ScanError, match="truncated"):
        read_scan(tmp_path / "b.hdr")


@pytest.mark.parametrize("given", ["a.hdr", "a.img", "a.nii"])
def test_analyze_is_named_and_refused(given: str, tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(voxels(), np.diag([3.0, 3.5, 4.0, 1.0])), tmp_path / "a.img")
    (tmp_path / "a.nii").write_bytes((tmp_path / "a.hdr").read_bytes())
    with pytest.raises(ScanError, match="Analyze") as caught:
        read_scan(tmp_path / given)
    assert "DICOM" in str(caught.value.hint)


def test_folders_are_searched_for_them(tmp_path: Path) -> None:
    for ending in ("nrrd", "mha"):
        written(tmp_path / f"{ending}.{ending}")
    pair(tmp_path / "pair.img")
    (tmp_path / "analyze.hdr").write_bytes(b"\x5c\1\0\0" + bytes(344))
    spec = ScanSpec(modality="volume3d", axes=(Axis(name="channel", size=1),), channels=("T1w",))
    assert [one.path.name for one in find_inputs(tmp_path, spec)] == ["mha.mha", "nrrd.nrrd", "pair.hdr"]
