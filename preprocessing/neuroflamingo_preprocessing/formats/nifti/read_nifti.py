"""`read_nifti`: read a NIfTI or MGH volume; the header is checked before any voxel is read."""

from __future__ import annotations

import hashlib
import re
import zlib
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from isal import igzip, igzip_lib

from neuroflamingo_preprocessing.errors import ScanError, not_readable
from neuroflamingo_preprocessing.formats.file_type import name_content
from neuroflamingo_preprocessing.formats.mgh import check_mgh, is_mgh
from neuroflamingo_preprocessing.formats.nifti.header import CheckedHeader, check_extensions, check_header, check_values
from neuroflamingo_preprocessing.formats.nifti.voxels import read_voxels, refuse_excess, refuse_short, truncated
from neuroflamingo_preprocessing.scan import Provenance, Scan, ScanModality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.formats.nifti.xform import Xform

HEAD_BYTES = 544
MIN_FINITE_SHARE = 0.05
SUFFIXES: dict[str, ScanModality] = {"t1w": "T1w", "t2w": "T2w", "flair": "FLAIR", "bold": "bold", "dwi": "dwi"}
BROKEN_STREAM: Any = (EOFError, zlib.error, igzip_lib.IsalError, igzip.BadGzipFile)


def read_nifti(path: Path, xform: Xform = "auto") -> Scan:
    """Read one NIfTI or MGH volume; see `read_scan`.

    Raises:
        ScanError: see `read_scan`.
    """
    try:
        with path.open("rb") as raw:
            return _read(raw, path, xform)
    except OSError as error:
        if isinstance(error, BROKEN_STREAM):
            raise truncated(path.name, str(error)) from error
        raise not_readable(path, error) from error


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
        voxels, warnings = _read_volume(stream, checked, name)
    except BROKEN_STREAM as error:
        raise truncated(name, str(error)) from error
    raw.seek(0)
    provenance = Provenance(
        file=name,
        sha256=hashlib.file_digest(raw, "sha256").hexdigest(),
        header_sha256=hashlib.sha256(head[: checked.header_bytes]).hexdigest(),
        header=checked.facts,
        warnings=(*checked.warnings, *warnings),
    )
    return Scan(voxels, checked.affine, modality_of(name), provenance, space=checked.code)


def checked_head(head: bytes, name: str, *, run: bool = False, xform: Xform = "auto") -> CheckedHeader:
    """Check the header in a file's first bytes; FreeSurfer's format is recognised by the file name.

    Raises:
        ScanError: see `check_header` and `check_mgh`.
    """
    if is_mgh(name):
        return check_mgh(head, name, run=run, xform=xform)
    return check_header(parse_header(head, name), name, run=run, xform=xform)


def parse_header(head: bytes, name: str) -> Any:
    """Parse the NIfTI-1 or -2 header in the first bytes of a file, without checks.

    Raises:
        ScanError: neither of the two (exit 65).
    """
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
    """Read the voxels, `[x, y, z]` in Fortran order; also gives warnings."""
    stream.seek(checked.offset)
    flat = np.empty(int(np.prod(checked.shape)), np.float32)
    lowest, highest = read_voxels(stream, checked, flat, name)
    warnings = refuse_excess(stream, checked, name)
    return flat.reshape(checked.shape, order="F"), [*warnings, *check_picture(flat, lowest, highest, checked, name)]


def to_float(stored: NDArray[Any], checked: CheckedHeader, name: str) -> tuple[NDArray[np.float32], list[str]]:
    """Scale stored voxels to float32 and check them, as for those of a file; also gives warnings."""
    with np.errstate(all="ignore"):
        voxels = stored.astype(np.float32)
        if (checked.slope, checked.inter) != (1.0, 0.0):
            voxels *= np.float32(checked.slope)
            voxels += np.float32(checked.inter)
    return voxels, check_picture(voxels, float(voxels.min()), float(voxels.max()), checked, name)


def check_picture(
    voxels: NDArray[np.float32], lowest: float, highest: float, checked: CheckedHeader, name: str
) -> list[str]:
    """Refuse constant and mostly non-finite volumes; set other non-finite voxels to background, with a warning.

    Args:
        voxels: scaled, of any shape; changed in place.
        lowest, highest: their range.
        checked: the header.
        name: name of the file, for messages.

    Returns:
        Warnings.

    Raises:
        ScanError: no image (exit 65).
    """
    warnings = []
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        finite = np.isfinite(voxels)
        share = float(finite.mean())
        if share < MIN_FINITE_SHARE:
            raise _no_picture(name, f"{1 - share:.1%} of the voxels are not numbers")
        lowest, highest = float(voxels[finite].min()), float(voxels[finite].max())
        voxels[~finite] = np.clip(0.0, lowest, highest)
        warnings.append(f"{1 - share:.2%} of the voxels were not finite numbers and were set to background")
    if highest <= lowest:
        raise _no_picture(name, f"all voxels are {lowest:g}")
    return [*warnings, *check_values(lowest, highest, checked, name)]


def _no_picture(name: str, seen: str) -> ScanError:
    return ScanError(
        f"{name} holds no image",
        expected="a T1-weighted head",
        seen=seen,
        hint="check how the file was written: the scan seems lost",
    )


def modality_of(name: str) -> ScanModality:
    """Modality by the BIDS suffix of a file name; `unknown` for other names."""
    suffix = re.search(
        r"_([A-Za-z0-9]+)(\.nii(\.gz)?|\.mg[hz]|\.nrrd|\.nhdr|\.mh[ad]|\.(hdr|img)(\.gz)?)?(\.zarr)?$", name
    )
    return SUFFIXES.get(suffix[1].lower(), "unknown") if suffix else "unknown"
