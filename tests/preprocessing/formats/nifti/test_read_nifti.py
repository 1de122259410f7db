"""Reading: good files give the same head whatever their form; bad files give one typed error each, cheaply."""

from __future__ import annotations

import gzip
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.read import read_scan

SHAPE = (30, 32, 28)
AFFINE = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -100], [0, 0, 6, -70], [0, 0, 0, 1]])
Write = Callable[..., Path]


def voxels(dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])  # type: ignore[attr-defined]
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, ">i2", ">f4"])
def test_formats(write_nifti: Write, name: str, kind: Any, dtype: Any) -> None:
    scan = read_scan(write_nifti(voxels(dtype), AFFINE, name, kind=kind))
    np.testing.assert_array_equal(scan.voxels, voxels().astype(np.float32))
    assert scan.voxels.dtype == np.float32
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)
    assert scan.spacing == pytest.approx((6, 6, 6))


def test_scaling_is_applied_once(write_nifti: Write) -> None:
    def scale(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 0.5, -3

    scan = read_scan(write_nifti(voxels(), AFFINE, change=scale))
    np.testing.assert_allclose(scan.voxels, voxels() * 0.5 - 3)


def test_header_extensions_are_skipped(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), AFFINE)  # type: ignore[attr-defined]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 5000))  # type: ignore[attr-defined]
    image.to_filename(tmp_path / "e.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "e.nii.gz").voxels, voxels())


def test_a_fourth_axis_of_one_is_no_series(write_nifti: Write) -> None:
    assert read_scan(write_nifti(voxels()[..., None], AFFINE)).voxels.shape == SHAPE


def test_provenance_names_the_file_and_its_hash_but_no_folder_and_no_free_text(write_nifti: Write) -> None:
    import hashlib

    path = write_nifti(voxels(), AFFINE, "sub-01_T1w.nii.gz", lambda h: h.__setitem__("descrip", b"Jane Doe"))
    scan = read_scan(path)
    assert scan.modality == "T1w"
    assert scan.provenance.file == "sub-01_T1w.nii.gz"
    assert scan.provenance.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert scan.provenance.header["orientation"] == "LAS"
    assert "Jane" not in str(scan.provenance)
    assert str(path.parent) not in str(scan.provenance)


def test_few_broken_voxels_become_background_and_are_told(write_nifti: Write) -> None:
    data = voxels(np.float32)
    data[0, 0, :5] = np.nan
    data[1, 1, 1] = np.inf
    scan = read_scan(write_nifti(data, AFFINE))
    assert np.isfinite(scan.voxels).all()
    assert scan.voxels[0, 0, 0] == 0
    assert "not finite" in scan.provenance.warnings[0]


# --- bad input ---------------------------------------------------------------------------------------------------


def refused(path: Path, words: str, exit_code: int = 65) -> None:
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(path)
    error = caught.value
    assert error.exit_code == exit_code
    assert path.name in str(error) and error.seen and error.expected and error.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no file .*gone\.nii") as caught:
        read_scan(tmp_path / "gone.nii")
    assert caught.value.exit_code == 66


def test_folder(tmp_path: Path) -> None:
    """Its name is not repeated: folders are often named after patients."""
    with pytest.raises(ScanError, match="holds no DICOM files") as caught:
        read_scan(tmp_path)
    assert caught.value.exit_code == 65 and caught.value.expected and caught.value.hint
    assert tmp_path.name not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x", b"P5 whatever" * 100, gzip.compress(b"plain text" * 100, mtime=0)])
def test_not_nifti(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.nii.gz"
    path.write_bytes(content)
    refused(path, "not a NIfTI file")


def test_a_header_without_the_other_half_of_its_pair(tmp_path: Path) -> None:
    nib.Nifti1Pair(voxels(), AFFINE).to_filename(tmp_path / "pair.img")  # type: ignore[attr-defined]
    (tmp_path / "pair.img").unlink()
    with pytest.raises(NotFoundError, match="half of a pair"):
        read_scan(tmp_path / "pair.hdr")


@pytest.mark.parametrize("share", [0.005, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
def test_truncated(write_nifti: Write, name: str, share: float) -> None:
    path = write_nifti(voxels(), AFFINE, name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "truncated|not a NIfTI")


def test_damaged_gzip(write_nifti: Write) -> None:
    path = write_nifti(voxels(), AFFINE)
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 0xFF  # the checksum
    path.write_bytes(raw)
    refused(path, "truncated or damaged")


@pytest.mark.parametrize("name", ["bomb.nii", "bomb.nii.gz"])
@pytest.mark.parametrize("dims", [(10_000, 10_000, 10_000), (30_000, 30_000, 600), (800, 800, 800)])
def test_a_header_that_claims_too_much_costs_little(write_nifti: Write, name: str, dims: tuple[int, int, int]) -> None:
    def claim(header: Any) -> None:
        header["dim"][1:4] = dims
        header["pixdim"][1:4] = 0.4
        header["sform_code"] = 0
        header["qform_code"] = 1

    path = write_nifti(voxels(np.float32), AFFINE, name, claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "claims|truncated")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kilobytes


def test_more_voxels_than_the_header_says(write_nifti: Write) -> None:
    path = write_nifti(voxels(np.float32), AFFINE)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2 * 2**20), 1))
    refused(path, "more than its header says")


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (30, 1, 28)])
def test_single_slices(write_nifti: Write, shape: tuple[int, ...]) -> None:
    refused(write_nifti(np.ones(shape, np.float32), AFFINE), "single slice")


def test_series(write_nifti: Write) -> None:
    refused(write_nifti(np.ones((*SHAPE, 5), np.float32), AFFINE), "holds 5 volumes")


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "usable affine"), (np.inf, "usable affine"), (1e9, "usable affine"), (0.0, "usable affine")],
)
def test_affines_of_impossible_numbers(write_nifti: Write, value: float, words: str) -> None:
    def change(header: Any) -> None:
        header["qform_code"] = 0
        header["srow_x"] = value

    refused(write_nifti(voxels(), AFFINE, change=lambda h: (change(h), h["srow_y"].fill(0))), words)
    if value:
        refused(write_nifti(voxels(), AFFINE, change=change), words)


def test_singular_affine(write_nifti: Write) -> None:
    def change(header: Any) -> None:
        header["qform_code"] = 0
        header["srow_y"] = [6, 0, 0, 0]
        header["srow_x"] = [0, 6, 6, 0]
        header["srow_z"] = [0, 0, 1e-4, 0]

    refused(write_nifti(voxels(), AFFINE, change=change), "singular")


def test_sheared_affine(write_nifti: Write) -> None:
    def shear(by: float) -> Callable[[Any], None]:
        def change(header: Any) -> None:
            header["qform_code"] = 0
            header["srow_y"] = [0, 6, by, -100]

        return change

    refused(write_nifti(voxels(), AFFINE, change=shear(1.5)), "sheared")
    scan = read_scan(write_nifti(voxels(), AFFINE, change=shear(0.1)))
    assert "slightly sheared" in scan.provenance.warnings[0]


def test_unknown_orientation(write_nifti: Write) -> None:
    def change(header: Any) -> None:
        header["sform_code"] = header["qform_code"] = 0

    refused(write_nifti(voxels(), AFFINE, change=change), "left and right cannot be told")


def test_sform_and_qform_that_disagree_about_left(write_nifti: Write) -> None:
    def change(header: Any) -> None:
        header["qform_code"] = 1
        header["srow_x"] = -header["srow_x"]

    refused(write_nifti(voxels(), AFFINE, change=change), "disagree about which side is left")


def test_sform_and_qform_that_differ_in_place_are_told(write_nifti: Write) -> None:
    def change(header: Any) -> None:
        header["sform_code"], header["qform_code"] = 4, 1
        header["srow_z"][3] += 30

    scan = read_scan(write_nifti(voxels(), AFFINE, change=change))
    assert scan.affine[2, 3] == AFFINE[2, 3] + 30
    assert "differ by up to 30 mm; the sform is used" in scan.provenance.warnings[0]


def test_two_voxel_sizes(write_nifti: Write) -> None:
    def change(header: Any) -> None:
        header["sform_code"], header["qform_code"] = 1, 0
        header["pixdim"][3] = 3

    refused(write_nifti(voxels(), AFFINE, change=change), "two different voxel sizes")


@pytest.mark.parametrize("zoom", [np.nan, 0.0, np.inf])
def test_impossible_qform(write_nifti: Write, zoom: float) -> None:
    def change(header: Any) -> None:
        header["sform_code"], header["qform_code"] = 0, 1
        header["pixdim"][2] = zoom

    refused(write_nifti(voxels(), AFFINE, change=change), "affine|decoded|voxel sizes")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("datatype", 128, "type cannot be read"),
        ("datatype", 32, "type cannot be read"),
        ("bitpix", 8, "contradicts itself"),
        ("vox_offset", 100, "impossible position"),
        ("vox_offset", np.nan, "impossible position"),
        ("scl_slope", np.inf, "not finite"),
        ("xyzt_units", 7, "impossible codes"),
        ("sform_code", 77, "impossible codes"),
    ],
)
def test_fields_out_of_range(write_nifti: Write, field: str, value: float, words: str) -> None:
    refused(write_nifti(voxels(), AFFINE, change=lambda h: h.__setitem__(field, value)), words)


@pytest.mark.parametrize("dim", [[0] * 8, [3, 0, 30, 30, 1, 1, 1, 1], [3, -4, 30, 30, 1, 1, 1, 1], [9] * 8])
def test_impossible_dimensions(write_nifti: Write, dim: list[int]) -> None:
    refused(write_nifti(voxels(), AFFINE, change=lambda h: h.__setitem__("dim", dim)), "dimensions are impossible")


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_volumes_without_a_picture(write_nifti: Write, value: float) -> None:
    refused(write_nifti(np.full(SHAPE, value, np.float32), AFFINE), "holds no image")


def test_ten_centimetres_are_no_whole_head(write_nifti: Write) -> None:
    small = np.diag([100 / 30, 100 / 32, 100 / 28, 1.0])
    refused(write_nifti(voxels(), small), "whole head")


def test_too_large_for_a_head(write_nifti: Write) -> None:
    refused(write_nifti(voxels(), np.diag([60.0, 60, 60, 1])), "too large for a head")


@pytest.mark.slow
def test_header_mutants_give_typed_errors_or_finite_heads(tmp_path: Path) -> None:
    """2,000 single-byte faults: never another exception, never an affine or voxels that are not finite."""
    rng = np.random.default_rng(7)
    image = nib.Nifti1Image(voxels(), AFFINE)  # type: ignore[attr-defined]
    good, path = image.to_bytes(), tmp_path / "mutant.nii"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        raw = bytearray(good)
        raw[rng.integers(0, 352)] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            scan = read_scan(path)
        except ScanError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert np.isfinite(scan.affine).all() and np.isfinite(scan.voxels).all()
        assert abs(np.linalg.det(scan.affine[:3, :3])) > 1e-6
    assert outcomes["refused"] > 100 and outcomes["read"] > 500
