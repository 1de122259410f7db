"""Damaged headers through `read_scan`: typed errors or an honest scan, and never another place in silence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isal import igzip
from scipy.spatial.transform import Rotation

from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError
from neuroflamingo_preprocessing.geometry import apply, corners
from neuroflamingo_preprocessing.read import read_run, read_scan
from neuroflamingo_preprocessing.scan import Scan
from tests.preprocessing.formats.nifti.nifti_by_hand import (
    NIFTI_1,
    NIFTI_2,
    Told,
    build,
    header_of,
    layout,
    read_by_hand,
)

SHAPE = (44, 50, 40)
SPACING = np.array([3.6, 3.2, 4.0])
APART_MM = 1.0  # sform and qform that lie closer together than this are one place
ZOOMS_APART, LEAN = 0.01, 0.002  # pixdim against the affine's columns; cosine between two of these
KINDS = ("byte", "bit", "bytes", "field", "swapped field", "shift", "other order", "exchange", "nudge")
PLACE = ["dim", "pixdim", "vox_offset", "quatern", "qoffset", "srow", "sform_code", "qform_code", "xyzt_units"]


def base(number: int) -> bytes:
    """One of 36 good files: two versions, two byte orders, three kinds of form, three stored types."""
    turn = Rotation.from_rotvec([0.10, -0.14, 0.08])
    hand = -1 if number % 5 == 0 else 1
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix() @ np.diag(SPACING * (1, 1, hand))
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) / 2)
    values = np.random.default_rng(number).integers(1, 250, SHAPE)
    stored = values.astype((np.int16, np.uint8, np.float32)[number // 12 % 3])
    forms = ("both", "sform", "qform")[number // 4 % 3]
    b, c, d, _ = turn.as_quat(canonical=True)
    order = "<>"[number // 2 % 2]
    return build(stored, affine, version=1 + number % 2, order=order, forms=forms, quaternion=((b, c, d), hand))


def mutant(good: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """The file with a damaged header; the voxels stay."""
    raw, head = bytearray(good), int(header_of(good)["vox_offset"])
    if kind == "byte":
        raw[rng.integers(head)] = rng.integers(256)
    elif kind == "bit":
        raw[rng.integers(head)] ^= 1 << rng.integers(8)
    elif kind == "bytes":
        for place in rng.integers(head, size=rng.integers(2, 6)):
            raw[place] = rng.integers(256)
    elif kind == "shift":
        place = int(rng.integers(head))
        raw[place:head] = (bytes(int(rng.integers(1, 5))) + raw[place:head])[: head - place]
    elif kind == "other order":
        swapped = np.frombuffer(good, header_of(good).dtype, 1)[0]
        raw[: swapped.dtype.itemsize] = swapped.astype(layout(1 + (head > 400), _other(swapped))).tobytes()
    else:
        _change_field(raw, kind, rng)
    return bytes(raw)


def _other(header: Any) -> str:
    return ">" if header.dtype["dim"].base.byteorder in "=<" else "<"


def _change_field(raw: bytearray, kind: str, rng: np.random.Generator) -> None:
    header = header_of(bytes(raw))
    fields = [name for name, _, _ in (NIFTI_1 if header["sizeof_hdr"] == 348 else NIFTI_2)]
    name = str(rng.choice(PLACE if kind == "nudge" else fields))
    view = np.frombuffer(raw, header.dtype, 1)[0].copy()
    part = np.atleast_1d(view[name])
    place = int(rng.integers(part.size))
    if kind == "swapped field":
        view[name] = part.byteswap() if part.size > 1 else part.byteswap()[0]
    elif kind == "exchange" and part.size > 1:
        part[place], part[place - 1] = part[place - 1], part[place]
        view[name] = part
    elif kind == "nudge":
        part[place] += part.dtype.type(rng.choice([-3, -2, -1, 1, 2, 3]) * (1 if part.dtype.kind in "iu" else 0.1))
        view[name] = part if part.size > 1 else part[0]
    elif part.dtype.kind != "S":
        odd = [0, -1, 1, 2, 3, 7, 255, 256, 32767, -32768, 2**31 - 1, 0.5, 1e-30, 1e30, np.nan, np.inf, -np.inf]
        with np.errstate(all="ignore"):
            value = np.float64(odd[rng.integers(len(odd))] if rng.random() < 0.7 else part[place] * rng.uniform(-2, 2))
            part[place] = np.nan_to_num(value).astype(np.int64).astype(part.dtype) if part.dtype.kind in "iu" else value
        view[name] = part if part.size > 1 else part[0]
    raw[: header.dtype.itemsize] = view.tobytes()


def apart_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far the volume's corners lie apart."""
    return float(np.abs(apply(one, corners(shape)) - apply(other, corners(shape))).max())


def contradictions(told: Told) -> list[str]:
    """Where a file says one thing twice, and differently.

    A file without any is called self-consistent here: voxels that fill it up to less than a plane; sform and qform (if
    both hold) that place the corners within 1 mm; pixdim within 1 % of the columns of the affine that is used; columns
    at right angles. A change of a number that a file states only once (an offset where one form holds, slope and
    intercept, signed for unsigned) leaves it self-consistent: nobody could tell by looking at the file alone.
    """
    found = []
    shape = told.values.shape
    plane = np.prod(sorted(shape)[:2])
    if told.rest >= plane:
        found.append(f"{told.rest} bytes behind the voxels")
    if told.sform is not None and told.qform is not None and apart_mm(told.sform, told.qform, shape) > APART_MM:
        found.append("two places")
    columns = told.affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if np.abs(told.zooms / lengths - 1).max() > ZOOMS_APART:
        found.append("two voxel sizes")
    cosines = np.abs((columns / lengths).T @ (columns / lengths))[np.triu_indices(3, 1)]
    if cosines.max() > LEAN:
        found.append("not at right angles")
    return found


def read_mutant(raw: bytes, number: int, folder: Path) -> Scan | None:
    """None where it is refused; every other exception than ours goes on up."""
    path = folder / ("mutant.nii.gz" if number % 3 == 0 else "mutant.nii")
    path.write_bytes(igzip.compress(raw, 0) if number % 3 == 0 else raw)
    try:
        return read_scan(path)
    except NeuroFlamingoError as error:
        assert isinstance(error, ScanError) and error.exit_code == 65
        assert path.name in str(error) and error.seen and error.expected and error.hint, str(error)
        return None


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_header_mutants_are_refused_or_read_honestly(part: int, tmp_path: Path) -> None:
    """8 x 250 mutants of 36 files in nine kinds of damage.

    What is read is what the bytes say by the standard, decoded a second time by hand: no repair, no guess. A scan that
    lies elsewhere, or has another shape or other values than the undamaged one, comes with a warning, unless the
    damaged file is self-consistent (see `contradictions`). Where both forms hold and one byte is damaged there is no
    such excuse for the place: it is the old one to 1 mm, or a warning says that it is not.
    """
    outcomes: Counter[str] = Counter()
    for number in range(250 * part, 250 * (part + 1)):
        rng = np.random.default_rng([2024, number])
        good, kind = base(number % 36), KINDS[number // 36 % len(KINDS)]
        raw = mutant(good, kind, rng)
        scan = read_mutant(raw, number, tmp_path)
        if scan is None:
            outcomes["refused"] += 1
            continue
        told, before = read_by_hand(raw), read_by_hand(good)
        assert np.isfinite(scan.affine).all() and np.isfinite(scan.voxels).all(), number
        assert scan.voxels.shape == told.values.shape, number
        assert apart_mm(scan.affine, told.affine, told.values.shape) < 0.05, number
        finite = np.isfinite(told.values)
        np.testing.assert_array_equal(scan.voxels[finite], told.values[finite], err_msg=str(number))
        moved = told.values.shape != SHAPE or apart_mm(scan.affine, before.affine, SHAPE) > 1e-3
        changed = moved or not np.array_equal(scan.voxels, before.values)
        warned = bool(scan.provenance.warnings)
        outcomes["told" if warned else "changed" if changed else "harmless"] += 1
        outcomes[kind] += changed and not warned
        assert warned or not contradictions(told), f"{number} ({kind}): {contradictions(told)} in silence"
        if kind in ("byte", "bit") and before.sform is not None and before.qform is not None:
            assert warned or apart_mm(scan.affine, before.affine, SHAPE) <= APART_MM, f"{number} ({kind}) moved"
            assert scan.voxels.shape == SHAPE
    assert outcomes["refused"] > 25 and outcomes["harmless"] > 25, outcomes


def test_the_hand_made_files_are_good_ones(tmp_path: Path) -> None:
    """The 36 files are read without a warning by us, and by nibabel as by hand."""
    import nibabel as nib

    for number in range(36):
        raw = base(number)
        scan = read_mutant(raw, number, tmp_path)
        assert scan is not None and not scan.provenance.warnings
        path = tmp_path / "good.nii"
        path.write_bytes(raw)
        image: Any = nib.load(path)  # type: ignore[attr-defined]
        told = read_by_hand(raw)
        np.testing.assert_array_equal(told.values, image.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(told.affine, image.affine, atol=1e-4)
        assert not contradictions(told)


@pytest.mark.slow
def test_headers_of_runs(tmp_path: Path) -> None:
    """500 mutants through `read_run`, all frames read: typed errors, or blocks of the shape that was said."""
    frames = np.random.default_rng(0).integers(1, 250, (*SHAPE, 3)).astype(np.uint8)
    good = bytearray(base(12))  # unsigned bytes, both forms
    head = int(header_of(bytes(good))["vox_offset"])
    outcomes: Counter[str] = Counter()
    fields = np.frombuffer(bytes(good), header_of(bytes(good)).dtype, 1)[0].copy()
    fields["dim"][:5], fields["pixdim"][4], fields["xyzt_units"] = [4, *SHAPE, 3], 2.0, 10
    good = fields.tobytes() + bytes(4) + frames.tobytes(order="F")
    path = tmp_path / "run.nii"
    for number in range(500):
        path.write_bytes(mutant(good, KINDS[number % 6], np.random.default_rng([7, number])))
        try:
            run = read_run(path)
            blocks = list(run.blocks())
        except ScanError as error:
            assert error.exit_code == 65 and error.hint
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert sum(block.shape[-1] for _, block in blocks) == run.frames
        assert all(block.shape[:3] == run.shape for _, block in blocks) and np.isfinite(run.affine).all()
    assert head == 352 and outcomes["refused"] > 50 and outcomes["read"] > 50
