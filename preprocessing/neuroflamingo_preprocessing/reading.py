"""`read_scan`: a NIfTI file to a `Scan`, header first, voxels only if the header can be believed."""

from __future__ import annotations

import hashlib
import re
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from neuroflamingo_preprocessing.dicom_files import is_dicom_input, refuse_series
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.header import CheckedHeader, check_header
from neuroflamingo_preprocessing.magic import name_content
from neuroflamingo_preprocessing.scan import Provenance, Scan, ScanModality
from neuroflamingo_preprocessing.voxels import read_voxels, refuse_excess, refuse_short, truncated

MIN_FINITE_SHARE = 0.05
SUFFIXES: dict[str, ScanModality] = {"t1w": "T1w", "t2w": "T2w", "flair": "FLAIR", "bold": "bold", "dwi": "dwi"}
BROKEN_STREAM: Any = (EOFError, zlib.error, igzip_lib.IsalError, igzip.BadGzipFile)


def read_scan(path: str | Path, series: int | None = None) -> Scan:
    """Read one volume from `.nii` or `.nii.gz` (NIfTI-1 or -2, either byte order, any orientation), or from DICOM.

    Voxels are read once in their stored type and scaled once to float32. The affine is the sform where its code is
    above 0, else the qform; both are compared, and warnings say what was odd. DICOM is a folder, a zip archive or one
    enhanced file; see `dicom.open_dicom`.

    Args:
        path: of the scan.
        series: of a DICOM input; None: its one T1-weighted volume.

    Raises:
        NotFoundError: no such file (exit 66).
        UsageError: a series of a file that is no DICOM, or one that is not there.
        ScanError: not a NIfTI file, truncated, or a header or voxels that cannot be a whole head (exit 65).
    """
    path = Path(path)
    if is_dicom_input(path):
        from neuroflamingo_preprocessing.dicom import open_dicom

        with open_dicom(path) as examination:
            return examination.scan(series)
    refuse_series(path, series)
    if not path.exists():
        hint = "fetch its content first: datalad get, or git annex get" if path.is_symlink() else "check the path"
        raise NotFoundError(f"there is no file {path}", expected="a .nii or .nii.gz file", hint=hint)
    if not path.is_file():
        raise ScanError(
            f"{path} is not a file",
            expected="a .nii or .nii.gz file",
            seen="a folder" if path.is_dir() else "a device or socket",
            hint="name one scan inside it",
        )
    try:
        with path.open("rb") as raw:
            return _read(raw, path)
    except OSError as error:
        if isinstance(error, BROKEN_STREAM):
            raise truncated(path.name, str(error)) from error
        raise ScanError(
            f"{path} cannot be read", seen=str(error), hint="check its permissions", exit_code=74
        ) from error


def _read(raw: BufferedReader, path: Path) -> Scan:
    name = path.name
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream: Any = igzip.GzipFile(fileobj=raw) if packed else raw
    try:
        head = stream.read(544)
        header = parse_header(head, name)
        checked = check_header(header, name)
        refuse_short(path, packed, checked)
        voxels, odd = _read_volume(stream, checked, name)
    except BROKEN_STREAM as error:
        raise truncated(name, str(error)) from error
    raw.seek(0)
    provenance = Provenance(
        file=name,
        sha256=hashlib.file_digest(raw, "sha256").hexdigest(),
        header_sha256=hashlib.sha256(head[: int(header["sizeof_hdr"])]).hexdigest(),
        header=checked.facts,
        warnings=(*checked.warnings, *odd),
    )
    return Scan(voxels=voxels, affine=checked.affine, modality=_modality(name), provenance=provenance)


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
    """The voxels, `[x, y, z]` in Fortran order; those that are no numbers are replaced, and told."""
    stream.seek(checked.offset)
    flat = np.empty(int(np.prod(checked.shape)), np.float32)
    lowest, highest = read_voxels(stream, checked, flat, name)
    refuse_excess(stream, checked, name)
    odd = []
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        finite = np.isfinite(flat)
        share = float(finite.mean())
        if share < MIN_FINITE_SHARE:
            raise _no_picture(name, f"{1 - share:.1%} of the voxels are not numbers")
        lowest, highest = float(flat[finite].min()), float(flat[finite].max())
        flat[~finite] = np.clip(0.0, lowest, highest)
        odd.append(f"{1 - share:.2%} of the voxels were not finite numbers and were set to background")
    if highest <= lowest:
        raise _no_picture(name, f"all voxels are {lowest:g}")
    return flat.reshape(checked.shape, order="F"), odd


def _no_picture(name: str, seen: str) -> ScanError:
    return ScanError(
        f"{name} holds no picture",
        expected="a T1-weighted head",
        seen=seen,
        hint="check how the file was written: the scan seems lost",
    )


def _modality(name: str) -> ScanModality:
    found = re.search(r"_([A-Za-z0-9]+)\.nii(\.gz)?$", name)
    return SUFFIXES.get(found[1].lower(), "unknown") if found else "unknown"
