"""Which affine is used: by default the sform, else the one that was asked for; always said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroflamingo_preprocessing.errors import ScanError, UsageError
from neuroflamingo_preprocessing.read import read_run, read_scan

SHAPE = (12, 14, 11)
SFORM = np.array([[-12.0, 0, 0, 70], [0, 12, 0, -80], [0, 0, 12, -60], [0, 0, 0, 1]])
Write = Callable[..., Path]


def write(write_nifti: Write, codes: tuple[int, int], qform: np.ndarray, frames: int = 1) -> Path:
    """A file with two forms of its own."""
    import nibabel as nib

    qrows = nib.Nifti1Header()  # type: ignore[attr-defined]
    qrows.set_data_shape(SHAPE)
    qrows.set_qform(qform, 1)

    def change(header: Any) -> None:
        for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[field] = qrows[field]
        header["pixdim"][:4] = qrows["pixdim"][:4]
        header["sform_code"], header["qform_code"] = codes

    values = np.random.default_rng(0).integers(0, 900, (*SHAPE, frames)).astype(np.int16)
    return write_nifti(values, SFORM, f"f{frames}.nii.gz", change)


MOVED = SFORM + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 30], [0, 0, 0, 0]])
MIRRORED = np.diag([-1.0, 1, 1, 1]) @ SFORM


@pytest.mark.parametrize(
    ("xform", "used", "source"), [("auto", SFORM, "sform"), ("sform", SFORM, "sform"), ("qform", MOVED, "qform")]
)
def test_two_forms_apart(write_nifti: Write, xform: Any, used: np.ndarray, source: str) -> None:
    path = write(write_nifti, (4, 1), MOVED)
    scan = read_scan(path, xform=xform)
    np.testing.assert_allclose(scan.affine, used, atol=1e-4)
    assert scan.provenance.header["affine from"] == source + ("" if xform == "auto" else ", as asked")
    (warning,) = scan.provenance.warnings
    assert "sform (MNI152, LAS)" in warning and "qform (scanner, LAS)" in warning
    assert f"differ by up to 30 mm; the {source} is used" in warning
    run = read_run(write(write_nifti, (4, 1), MOVED, frames=3), 2.0, xform=xform)
    np.testing.assert_allclose(run.affine, used, atol=1e-4)
    assert run.provenance.header["affine from"].startswith(source)


def test_other_handedness_is_refused_unless_one_is_asked_for(write_nifti: Write) -> None:
    path = write(write_nifti, (1, 1), MIRRORED)
    with pytest.raises(ScanError, match="which side is left") as caught:
        read_scan(path)
    assert caught.value.hint and "--xform sform" in caught.value.hint
    for xform, used in (("sform", SFORM), ("qform", MIRRORED)):
        scan = read_scan(path, xform=xform)  # type: ignore[arg-type]
        np.testing.assert_allclose(scan.affine, used, atol=1e-4)
        (warning,) = scan.provenance.warnings
        assert "LAS" in warning and "RAS" in warning and f"the {xform} is used" in warning


@pytest.mark.parametrize(("codes", "wanted", "there"), [((1, 0), "qform", "sform"), ((0, 1), "sform", "qform")])
def test_a_form_without_a_code_cannot_be_asked_for(
    write_nifti: Write, codes: tuple[int, int], wanted: Any, there: str
) -> None:
    path = write(write_nifti, codes, SFORM)
    with pytest.raises(ScanError, match=f"has no {wanted}") as caught:
        read_scan(path, xform=wanted)
    assert caught.value.exit_code == 65 and f"--xform {there}" in str(caught.value)
    assert read_scan(path).provenance.header["affine from"] == there
    with pytest.raises(ScanError, match="left and right cannot be told"):
        read_scan(write(write_nifti, (0, 0), SFORM), xform=wanted)


def test_a_form_that_is_not_used_and_has_no_code_is_told_if_it_says_otherwise(write_nifti: Write) -> None:
    (warning,) = read_scan(write(write_nifti, (2, 0), MOVED)).provenance.warnings
    assert "qform (unknown, LAS) differ by up to 30 mm; the sform is used" in warning
    (warning,) = read_scan(write(write_nifti, (2, 0), MIRRORED)).provenance.warnings
    assert "which side is left; the sform is used" in warning


def test_an_unusable_other_form_is_no_hindrance_to_the_one_asked_for(write_nifti: Write) -> None:
    path = write_nifti(
        np.random.default_rng(0).random(SHAPE), SFORM, "bad.nii", lambda h: (
            h.__setitem__("qform_code", 1), h.__setitem__("quatern_b", 9.0), h["pixdim"].__setitem__(slice(1, 4), 12)
        )
    )  # fmt: skip
    with pytest.raises(ScanError, match="cannot be decoded"):
        read_scan(path)
    assert "the qform cannot be used; the sform is" in read_scan(path, xform="sform").provenance.warnings


def test_no_other_names(write_nifti: Write) -> None:
    path: Any = write(write_nifti, (1, 1), SFORM)
    calls: tuple[Any, ...] = (read_scan, read_run)
    for call in calls:
        with pytest.raises(UsageError, match="unknown xform 'left'"):
            call(path, xform="left")
