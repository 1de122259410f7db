"""`read_scan`: a NIfTI file to a `Scan`, header first, voxels only if the header can be believed."""

from __future__ import annotations

import hashlib
import re
import zlib
from io import BufferedReader, BytesIO
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

SLACK_BYTES = 2**20  # what may follow the voxels before a file counts as not being what its header says
CHUNK_BYTES = 2**24
MIN_FINITE_SHARE = 0.05
MOST_DEFLATED = 1032  # a deflate stream cannot grow by more: two bits for 258 bytes (RFC 1951)
BOMB_BYTES, BOMB_RATIO = 2**28, 500  # so large, and packed so well, there can be no picture in it
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
        stored = _read_voxels(stream, checked, name)
    except BROKEN_STREAM as error:
        raise truncated(name, str(error)) from error
    voxels, odd = _to_float(stored, checked, name)
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


def _read_voxels(stream: Any, checked: CheckedHeader, name: str) -> NDArray[Any]:
    stream.seek(checked.offset)
    raw = read_bytes(stream, checked.data_bytes, name, 0, checked)
    refuse_excess(stream, checked, name)
    return np.frombuffer(raw, dtype=checked.dtype).reshape(checked.shape, order="F")


def read_bytes(stream: Any, count: int, name: str, before: int, checked: CheckedHeader) -> memoryview:
    """So many bytes, in chunks: memory follows the bytes that are really there, not those that a header claims.

    Args:
        before: bytes of voxels that were read already, for the message.

    Raises:
        ScanError: the stream ends too early (exit 65).
    """
    buffer = BytesIO()
    while missing := count - buffer.tell():
        chunk = stream.read(min(missing, CHUNK_BYTES))
        if not chunk:
            raise truncated(name, f"{before + buffer.tell()} of {checked.data_bytes} bytes of voxels")
        buffer.write(chunk)
    return buffer.getbuffer()


def refuse_short(path: Path, packed: bool, checked: CheckedHeader) -> None:
    """Refuse a header that claims more than a file of this size can hold, or zeros by the gigabyte, before it is read.

    Raises:
        ScanError: see above.
    """
    size = path.stat().st_size
    if not packed:
        if size < checked.offset + checked.data_bytes:
            raise truncated(path.name, f"{max(size - checked.offset, 0)} of {checked.data_bytes} bytes of voxels")
        return
    if checked.data_bytes > MOST_DEFLATED * size:
        raise truncated(path.name, f"{size} packed bytes, which cannot hold {checked.data_bytes} bytes of voxels")
    held = checked.data_bytes + 4 * checked.data_bytes // checked.dtype.itemsize
    if held > BOMB_BYTES and checked.data_bytes > BOMB_RATIO * size:
        raise ScanError(
            f"{path.name} holds no picture",
            expected=f"voxels that gzip packs by less than {BOMB_RATIO} times",
            seen=f"{checked.data_bytes} bytes of voxels in {size}",
            hint="check how the file was written: nearly all of its voxels must be one value",
        )


def refuse_excess(stream: Any, checked: CheckedHeader, name: str) -> None:
    """Read on to the end: as much as a plane of voxels more means that one of the header's sizes is too small.

    Raises:
        ScanError: so much follows; the compression's own checksum does not fit.
    """
    x, y, _ = sorted(checked.shape)
    most = min(SLACK_BYTES, x * y * checked.dtype.itemsize)
    if len(stream.read(most)) >= most:
        raise ScanError(
            f"{name} holds more than its header says",
            expected=f"{checked.data_bytes} bytes of voxels",
            seen=f"{most} bytes or more after them",
            hint="the header is damaged: convert the scan again from its source",
        )


def truncated(name: str, seen: str) -> ScanError:
    return ScanError(
        f"{name} is truncated or damaged",
        expected="a complete file",
        seen=seen,
        hint="copy or download it again",
    )


def _to_float(stored: NDArray[Any], checked: CheckedHeader, name: str) -> tuple[NDArray[np.float32], list[str]]:
    """Scale once, replace voxels that are no numbers, and refuse volumes without a picture."""
    with np.errstate(all="ignore"):
        voxels = stored.astype(np.float32)
        if (checked.slope, checked.inter) != (1.0, 0.0):
            voxels *= np.float32(checked.slope)
            voxels += np.float32(checked.inter)
    odd = []
    lowest, highest = float(voxels.min()), float(voxels.max())
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
    return voxels, odd


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
