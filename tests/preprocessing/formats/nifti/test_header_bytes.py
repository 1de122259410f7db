"""One wrong byte in a NIfTI header: a typed error, the same scan, or a scan that says what is odd; never silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.nifti.orientation import SAME_PLACE_MM
from neuroflamingo_preprocessing.geometry import apply, corners
from neuroflamingo_preprocessing.read import read_scan
from neuroflamingo_preprocessing.scan import Scan

SHAPE = (12, 14, 11)
FIELDS = nib.nifti1.header_dtype.fields  # type: ignore[attr-defined]
PLACE = ("pixdim", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
"""What a file with nothing but a qform says once: a wrong value of these cannot be known from the file alone."""


def oblique() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [4, -7, 11], degrees=True).as_matrix() @ np.diag([-11.9, 12.1, 12.3])
    affine[:3, 3] = 70, -80, -60
    return affine


def header_of(sform: int, qform: int, dtype: Any = np.int16, *, unused: bool = True) -> bytes:
    """A file as dcm2niix writes it; without `unused`, a form that has no code is all 0."""
    values = np.random.default_rng(0).integers(0, 900, SHAPE).astype(dtype)
    image = nib.Nifti1Image(values, oblique())  # type: ignore[attr-defined]
    image.set_sform(oblique(), sform)
    image.set_qform(oblique(), qform)
    image.header.set_xyzt_units(2, 8)
    raw = bytearray(image.to_bytes())
    if not unused and not sform:
        raw[280:328] = bytes(48)
    if not unused and not qform:
        raw[256:280] = bytes(24)
    return bytes(raw)


def field_at(index: int) -> str:
    return next(n for n, f in FIELDS.items() if f[1] <= index < f[1] + f[0].itemsize)


def outcome(path: Path, raw: bytes, base: Scan) -> str:
    path.write_bytes(raw)
    try:
        scan = read_scan(path)
    except ScanError as error:
        assert error.exit_code == 65 and error.seen and error.expected and error.hint
        return "refused"
    assert np.isfinite(scan.affine).all() and np.isfinite(scan.voxels).all()
    if scan.voxels.shape == SHAPE and np.array_equal(scan.voxels, base.voxels):
        moved = np.linalg.norm(apply(scan.affine, corners(SHAPE)) - apply(base.affine, corners(SHAPE)), axis=1).max()
        if moved <= SAME_PLACE_MM:
            return "same"
    return "told" if scan.provenance.warnings or "scaling" in scan.provenance.header else "silent"


def flipped(raw: bytes, places: range | list[int], path: Path, values: tuple[int, ...]) -> Counter[tuple[str, str]]:
    """How often which field came out how."""
    path.write_bytes(raw)
    base = read_scan(path)
    assert not base.provenance.warnings
    counts: Counter[tuple[str, str]] = Counter()
    for index in places:
        for value in sorted({raw[index] ^ 0x01, raw[index] ^ 0x80, *values} - {raw[index]}):
            mutant = bytearray(raw)
            mutant[index] = value
            counts[outcome(path, bytes(mutant), base), field_at(index)] += 1
    return counts


@pytest.mark.slow
def test_no_byte_changes_a_scan_in_silence_where_the_header_says_its_place_twice(tmp_path: Path) -> None:
    counts = flipped(header_of(1, 1), range(348), tmp_path / "a.nii", (0xFF, 0x42))
    assert not [field for (kind, field) in counts if kind == "silent"]
    kinds = Counter({kind: sum(n for (k, _), n in counts.items() if k == kind) for kind in ("same", "refused", "told")})
    assert kinds["refused"] > 150 and kinds["told"] > 40 and kinds["same"] > 800
    unused = {"data_type", "db_name", "extents", "session_error", "regular", "dim_info", "descrip", "aux_file"}
    assert {kind for (kind, field) in counts if field in unused} == {"same"}


PLACES = [
    i for i in range(348) if field_at(i) in ("pixdim", "xyzt_units", "qform_code", "sform_code") or 256 <= i < 328
]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_an_unused_form_still_vouches_for_the_one_with_a_code(tmp_path: Path, form: str) -> None:
    """nibabel sets both and gives a code to one."""
    raw = header_of(2, 0) if form == "sform" else header_of(0, 2)
    counts = flipped(raw, PLACES, tmp_path / "a.nii", ())
    assert not [field for (kind, field) in counts if kind == "silent"]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "unknowable"), [("sform", ("srow_x", "srow_y", "srow_z")), ("qform", PLACE)])
def test_what_cannot_be_known_from_a_file_that_says_its_place_once(
    tmp_path: Path, form: str, unknowable: tuple[str, ...]
) -> None:
    """These are the only fields; README.md lists them. Every other byte is covered as above."""
    raw = header_of(1, 0, unused=False) if form == "sform" else header_of(0, 1, unused=False)
    counts = flipped(raw, PLACES, tmp_path / "a.nii", ())
    silent = {field for (kind, field) in counts if kind == "silent"}
    assert silent and silent <= set(unknowable)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_sizes_are_held_against_the_bytes_that_are_there(write_nifti: Callable[..., Path], name: str) -> None:
    values = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    for axis, wrong in ((1, 11), (2, 13), (3, 10), (1, 13), (3, 12)):
        with pytest.raises(ScanError, match=r"more than its header says|truncated"):
            read_scan(write_nifti(values, oblique(), name, lambda h, a=axis, w=wrong: h["dim"].__setitem__(a, w)))
    path = write_nifti(values, oblique(), "b.nii")
    path.write_bytes(path.read_bytes() + bytes(100))
    scan = read_scan(path)
    assert np.array_equal(scan.voxels, values) and "100 bytes follow the last voxel" in scan.provenance.warnings[0]


def test_types_of_one_size_are_told_apart(tmp_path: Path) -> None:
    """int32 and float32 differ by one byte; so do float64 and nothing else of 64 bit."""
    whole, real = bytearray(header_of(1, 1, np.int32)), bytearray(header_of(1, 1, np.float32))
    whole[70], real[70] = 16, 8
    (tmp_path / "whole.nii").write_bytes(whole)
    with pytest.raises(ScanError, match="far too small"):
        read_scan(tmp_path / "whole.nii")
    (tmp_path / "real.nii").write_bytes(real)
    assert "floating-point numbers marked as integers" in read_scan(tmp_path / "real.nii").provenance.warnings[0]


def test_voxels_do_not_begin_inside_an_extension(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(values, oblique())  # type: ignore[attr-defined]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 100))  # type: ignore[attr-defined]
    raw = bytearray(image.to_bytes())
    path = tmp_path / "e.nii"
    path.write_bytes(raw)
    assert np.array_equal(read_scan(path).voxels, values)
    for offset in (352.0, 368.0, 448.0):
        raw[108:112] = np.float32(offset).tobytes()
        path.write_bytes(raw)
        if offset == 352.0:  # what follows is less than a plane of voxels and is told
            assert "follow the last voxel" in read_scan(path).provenance.warnings[0]
            continue
        with pytest.raises(ScanError, match="inside one of its own extensions"):
            read_scan(path)


def edit(field: str, value: Any) -> Callable[[Any], None]:
    return lambda header: header.__setitem__(field, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edit("intent_code", 3), "statistical map"),
        (edit("intent_code", 2999), "unknown intent"),
        (edit("scl_slope", -2.0), "scaled by -2"),
        (lambda h: (h.__setitem__("cal_min", 1e4), h.__setitem__("cal_max", 1e5)), "display range is 10000 to 100000"),
    ],
)
def test_odd_fields_are_told(write_nifti: Callable[..., Path], change: Callable[[Any], Any], says: str) -> None:
    values = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    assert says in str(read_scan(write_nifti(values, oblique(), change=change)).provenance.warnings)


def test_facts_show_scaling_and_intent_but_no_free_text(write_nifti: Callable[..., Path]) -> None:
    def change(header: Any) -> None:
        header["scl_slope"], header["scl_inter"], header["intent_code"] = 0.5, 3, 1002
        header["intent_name"] = b"Jane Doe"

    values = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    said = read_scan(write_nifti(values, oblique(), change=change)).provenance
    assert said.header["scaling"] == "stored x 0.5 + 3" and said.header["intent"] == "label"
    assert not said.warnings and "Jane" not in str(said)


def test_a_qfac_of_0_is_1_as_the_standard_says(write_nifti: Callable[..., Path]) -> None:
    affine = np.diag([12.0, 12, 12, 1])
    path = write_nifti(np.arange(12 * 14 * 11.0).reshape(SHAPE), affine, change=lambda h: (
        h.__setitem__("sform_code", 0), h.__setitem__("qform_code", 1), h["pixdim"].__setitem__(0, 0)
    ))  # fmt: skip
    scan = read_scan(path)
    assert np.allclose(scan.affine, affine) and "taken as 1" in scan.provenance.warnings[0]
