"""NIfTI pairs (`.hdr` and `.img`): the header is checked as that of a single file; Analyze is named and refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from isal import igzip

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, not_readable
from neuroflamingo_preprocessing.files import sha256_of, sha256_of_text
from neuroflamingo_preprocessing.formats.nifti.header import CheckedHeader, check_header
from neuroflamingo_preprocessing.formats.nifti.read_nifti import BROKEN_STREAM, check_picture, modality_of
from neuroflamingo_preprocessing.formats.nifti.voxels import read_voxels, refuse_excess, refuse_short, truncated
from neuroflamingo_preprocessing.scan import Provenance, Scan

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.nifti.xform import Xform

HALVES = {".hdr": ".img", ".img": ".hdr"}
HEAD_BYTES = 544


def is_pair(path: str | Path) -> bool:
    """True for one half of a pair by its name, packed or not, unless its content is a whole NIfTI file."""
    path = Path(path)
    return _ending(path) in HALVES and not (path.is_file() and _is_whole(_head(path)[0]))


def is_pair_header(path: Path) -> bool:
    """True for a header that says itself that it is one of a NIfTI pair."""
    return _ending(path) == ".hdr" and _kind(_head(path)[0]) is not None


def pair_sizes(path: Path) -> tuple[int, ...]:
    """Sizes that the header of a pair claims.

    Raises:
        NotFoundError, ScanError: no such pair.
    """
    header, _, _ = _header(path)
    dim = [int(n) for n in header["dim"]]
    return tuple(dim[1 : max(0, min(dim[0], 7)) + 1])


def read_pair(path: Path, xform: Xform = "auto") -> Scan:
    """Read one volume of a NIfTI pair, given by either half.

    Raises:
        NotFoundError: the other half is not there (exit 66).
        ScanError: an Analyze file, which does not say where left is; see `read_scan` for the rest.
    """
    header, head, voxel_file = _header(path)
    checked = check_header(header, path.name, xform=xform, single_file=False)
    try:
        with _opened(voxel_file) as (stream, packed):
            offset = int(header["vox_offset"])
            whole = CheckedHeader(**{**vars(checked), "offset": offset if 0 <= offset <= 2**24 else 0})
            refuse_short(voxel_file, packed, whole)
            stream.seek(whole.offset)
            flat = np.empty(int(np.prod(whole.shape)), np.float32)
            lowest, highest = read_voxels(stream, whole, flat, path.name)
            warnings = refuse_excess(stream, whole, path.name)
    except BROKEN_STREAM as error:
        raise truncated(path.name, str(error)) from error
    except OSError as error:
        raise not_readable(path, error) from error
    warnings += check_picture(flat, lowest, highest, whole, path.name)
    facts = whole.facts | {"format": whole.facts["format"] + " (pair)"}
    provenance = Provenance(
        file=path.name,
        sha256=sha256_of_text(hashlib.sha256(head).hexdigest() + sha256_of(voxel_file)),
        header_sha256=hashlib.sha256(head[: whole.header_bytes]).hexdigest(),
        header=facts,
        warnings=(*whole.warnings, *warnings),
    )
    return Scan(
        flat.reshape(whole.shape, order="F"), whole.affine, modality_of(path.name), provenance, space=whole.code
    )


def _header(path: Path) -> tuple[Any, bytes, Path]:
    """Header of a pair, its bytes, and the file with the voxels."""
    head_file = path if _ending(path) == ".hdr" else _other(path)
    head, _ = _head(head_file)
    kind = _kind(head)
    if kind is None:
        analyze = 348 in {int.from_bytes(head[:4], order) for order in ("little", "big")}
        raise ScanError(
            f"{path.name} is an Analyze file, which does not say where left is"
            if analyze
            else f"{path.name} is no scan",
            expected="a NIfTI pair: .hdr with the mark ni1, and .img",
            seen="Analyze 7.5 or SPM99" if analyze else "a .hdr file of another kind",
            hint="convert it again from DICOM; or, if you know how it lies, save it as .nii.gz with nibabel",
        )
    voxel_file = _other(path) if head_file == path else path
    return kind(head, check=False), head, voxel_file


def _kind(head: bytes) -> Any:
    from nibabel.nifti1 import Nifti1PairHeader
    from nibabel.nifti2 import Nifti2PairHeader

    if head[344:348] == b"ni1\0" and len(head) >= 348:
        return lambda raw, check: Nifti1PairHeader(raw[:348], check=check)
    if head[4:8] == b"ni2\0" and len(head) >= 540:
        return lambda raw, check: Nifti2PairHeader(raw[:540], check=check)
    return None


def _is_whole(head: bytes) -> bool:
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def _head(path: Path) -> tuple[bytes, bool]:
    try:
        with _opened(path) as (stream, packed):
            return stream.read(HEAD_BYTES), packed
    except BROKEN_STREAM as error:
        raise truncated(path.name, str(error)) from error
    except OSError as error:
        raise not_readable(path, error) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, bool]]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        yield (igzip.GzipFile(fileobj=raw) if packed else raw), packed


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return name[-4:] if len(name) > 4 else ""


def _other(path: Path) -> Path:
    """The other half of a pair, packed or not."""
    packed = path.name.lower().endswith(".gz")
    stem = path.name[: -7 if packed else -4]
    ending = HALVES[_ending(path)]
    found = [path.with_name(stem + e + gz) for e in (ending, ending.upper()) for gz in ("", ".gz")]
    here = [file for file in found if file.is_file()]
    if not here:
        raise NotFoundError(
            f"{path.name} is half of a pair, and the other half is not beside it",
            expected=f"a file {stem}{ending}",
            hint="put both into one folder",
        )
    return here[0]
