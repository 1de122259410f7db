"""`read_scan`: a scan file to a `Scan`, header first, voxels only if the header can be believed."""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from neuroflamingo_preprocessing.dicom_files import is_dicom_input, refuse_series, shown_name
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.header import (
    CheckedHeader,
    check_extensions,
    check_header,
    check_values,
)
from neuroflamingo_preprocessing.magic import name_content
from neuroflamingo_preprocessing.mgh import check_mgh, is_mgh
from neuroflamingo_preprocessing.scan import Provenance, Scan, ScanModality
from neuroflamingo_preprocessing.voxels import read_voxels, refuse_excess, refuse_short, truncated
from neuroflamingo_preprocessing.xform import Xform, checked_xform, refuse_form
from neuroflamingo_preprocessing.zarr_metadata import is_zarr
from neuroflamingo_preprocessing.zarr_scan import read_zarr

HEAD_BYTES = 544
MIN_FINITE_SHARE = 0.05
SUFFIXES: dict[str, ScanModality] = {"t1w": "T1w", "t2w": "T2w", "flair": "FLAIR", "bold": "bold", "dwi": "dwi"}
BROKEN_STREAM: Any = (EOFError, zlib.error, igzip_lib.IsalError, igzip.BadGzipFile)


def read_scan(
    path: str | Path, series: int | None = None, *, xform: Xform = "auto", series_sha256: str | None = None
) -> Scan:
    """Read one volume: NIfTI-1 or -2 (`.nii`, `.nii.gz`), FreeSurfer's MGH (`.mgh`, `.mgz`), a zarr folder, or DICOM.

    Any byte order and orientation. Voxels are read once in their stored type and scaled once to float32. The affine of
    a NIfTI header is the sform where its code is above 0, else the qform; both are compared, and warnings say what was
    odd. DICOM is a folder, a zip archive or one enhanced file; see `dicom.open_dicom`.

    Args:
        path: of the scan; for zarr see `zarr_scan`.
        series: of a DICOM input; None: its one T1-weighted volume.
        xform: `sform` or `qform` uses that one, even where the other puts left on the other side (with a warning).
        series_sha256: of a DICOM series that was hashed before, see `Examination.digest`: it is not hashed again.

    Raises:
        UsageError: no such `xform`.
        NotFoundError: no such file (exit 66).
        UsageError: a series of a file that is no DICOM, or one that is not there.
        ScanError: not a NIfTI file, truncated, or a header or voxels that cannot be a whole head (exit 65).
    """
    path, xform = Path(path), checked_xform(xform)
    if is_dicom_input(path):
        from neuroflamingo_preprocessing.dicom import open_dicom

        refuse_form(shown_name(path), xform, "DICOM")
        with open_dicom(path) as examination:
            return examination.scan(series, series_sha256)
    refuse_series(path, series)
    if not path.exists():
        hint = "fetch its content first: datalad get, or git annex get" if path.is_symlink() else "check the path"
        raise NotFoundError(f"there is no file {path}", expected="a .nii or .nii.gz file", hint=hint)
    if is_zarr(path):
        stored, checked, provenance = read_zarr(path, xform)
        voxels, odd = _to_float(stored, checked, path.name)
        provenance = replace(provenance, warnings=(*provenance.warnings, *odd))
        return Scan(voxels, checked.affine, _modality(path.name), provenance, space=checked.code)
    if not path.is_file():
        raise ScanError(
            f"{path} is not a file",
            expected="a .nii or .nii.gz file",
            seen="a folder" if path.is_dir() else "a device or socket",
            hint="name one scan inside it",
        )
    try:
        with path.open("rb") as raw:
            return _read(raw, path, xform)
    except OSError as error:
        if isinstance(error, BROKEN_STREAM):
            raise truncated(path.name, str(error)) from error
        raise ScanError(
            f"{path} cannot be read", seen=str(error), hint="check its permissions", exit_code=74
        ) from error


def _read(raw: BufferedReader, path: Path, xform: Xform) -> Scan:
    name = path.name
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream: Any = igzip.GzipFile(fileobj=raw) if packed else raw
    try:
        head = stream.read(HEAD_BYTES)
        checked = checked_head(head, name, xform=xform)
        refuse_short(path, packed, checked)
        if checked.offset > len(head):  # only header extensions take that much room
            head += stream.read(checked.offset - len(head))
        check_extensions(head[: checked.offset], checked, name)
        voxels, odd = _read_volume(stream, checked, name)
    except BROKEN_STREAM as error:
        raise truncated(name, str(error)) from error
    raw.seek(0)
    provenance = Provenance(
        file=name,
        sha256=hashlib.file_digest(raw, "sha256").hexdigest(),
        header_sha256=hashlib.sha256(head[: checked.header_bytes]).hexdigest(),
        header=checked.facts,
        warnings=(*checked.warnings, *odd),
    )
    return Scan(voxels, checked.affine, _modality(name), provenance, space=checked.code)


def checked_head(head: bytes, name: str, *, run: bool = False, xform: Xform = "auto") -> CheckedHeader:
    """What a file's first bytes say, checked; FreeSurfer's format is known by its ending.

    Raises:
        ScanError: see `check_header` and `check_mgh`.
    """
    if is_mgh(name):
        return check_mgh(head, name, run=run, xform=xform)
    return check_header(parse_header(head, name), name, run=run, xform=xform)


def parse_header(head: bytes, name: str) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    for size, kind, magic, start in ((348, Nifti1Header, b"n+1\0", 344), (540, Nifti2Header, b"n+2\0", 4)):
        if size in sizes and len(head) >= size and head[start : start + 4] == magic:
            return kind(head[:size], check=False)
    seen, hint = name_content(head)
    raise ScanError(
        f"{name} is not a NIfTI file",
        expected="NIfTI-1 or NIfTI-2 in one file (.nii or .nii.gz)",
        seen=seen,
        hint=hint,
    )


def _read_volume(stream: Any, checked: CheckedHeader, name: str) -> tuple[NDArray[np.float32], list[str]]:
    """The voxels, `[x, y, z]` in Fortran order, and what is odd about them."""
    stream.seek(checked.offset)
    flat = np.empty(int(np.prod(checked.shape)), np.float32)
    lowest, highest = read_voxels(stream, checked, flat, name)
    odd = refuse_excess(stream, checked, name)
    return flat.reshape(checked.shape, order="F"), [*odd, *_check_picture(flat, lowest, highest, checked, name)]


def _to_float(stored: NDArray[Any], checked: CheckedHeader, name: str) -> tuple[NDArray[np.float32], list[str]]:
    """An array as `_read_volume` gives those of a file, scaled once."""
    with np.errstate(all="ignore"):
        voxels = stored.astype(np.float32)
        if (checked.slope, checked.inter) != (1.0, 0.0):
            voxels *= np.float32(checked.slope)
            voxels += np.float32(checked.inter)
    return voxels, _check_picture(voxels, float(voxels.min()), float(voxels.max()), checked, name)


def _check_picture(
    voxels: NDArray[np.float32], lowest: float, highest: float, checked: CheckedHeader, name: str
) -> list[str]:
    """Refuse volumes without a picture; replace voxels that are no numbers, and tell."""
    odd = []
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        finite = np.isfinite(voxels)
        share = float(finite.mean())
        if share < MIN_FINITE_SHARE:
            raise _no_picture(name, f"{1 - share:.1%} of the voxels are not numbers")
        lowest, highest = float(voxels[finite].min()), float(voxels[finite].max())
        voxels[~finite] = np.clip(0.0, lowest, highest)
        odd.append(f"{1 - share:.2%} of the voxels were not finite numbers and were set to background")
    if highest <= lowest:
        raise _no_picture(name, f"all voxels are {lowest:g}")
    return [*odd, *check_values(lowest, highest, checked, name)]


def _no_picture(name: str, seen: str) -> ScanError:
    return ScanError(
        f"{name} holds no picture",
        expected="a T1-weighted head",
        seen=seen,
        hint="check how the file was written: the scan seems lost",
    )


def _modality(name: str) -> ScanModality:
    found = re.search(r"_([A-Za-z0-9]+)(\.nii(\.gz)?|\.mg[hz])?(\.zarr)?$", name)
    return SUFFIXES.get(found[1].lower(), "unknown") if found else "unknown"
