"""Headers of FreeSurfer volumes (`.mgh`, `.mgz`), with the same checks as for NIfTI."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.nifti.header import CheckedHeader, check_shape
from neuroflamingo_preprocessing.formats.nifti.orientation import DAMAGED, check_columns, check_extent, check_zooms
from neuroflamingo_preprocessing.formats.nifti.xform import Xform, refuse_xform
from neuroflamingo_preprocessing.geometry import orientation_codes

ENDINGS = (".mgh", ".mgz", ".mgh.gz")
OFFSET = 284
COSINES_REFUSE = 0.1
"""Largest deviation of the direction cosines from unit length."""


def is_mgh(name: str) -> bool:
    """True for a FreeSurfer file name."""
    return name.lower().endswith(ENDINGS)


def check_mgh(head: bytes, name: str, *, run: bool = False, xform: Xform = "auto") -> CheckedHeader:
    """Check the header of an MGH file: version, sizes, stored type, orientation.

    Args:
        head: the first bytes of the file, decompressed; at least 284.
        name: name of the file, for messages.
        run: True for a time series of volumes, False for a single volume.
        xform: must be `auto`: this format has one affine.

    Raises:
        ScanError: not an MGH file, or anything that makes values, position or side of voxels uncertain.
    """
    from nibabel.freesurfer.mghformat import MGHHeader

    fields = _parsed(head, name)
    shape, frames = check_shape([4, *fields["dims"].tolist()], name, run)
    dtype = _check_type(int(fields["type"]), name)
    _check_orientation(fields, name, xform)
    affine = np.asarray(MGHHeader(head[:OFFSET], check=False).get_affine(), dtype=np.float64)
    warnings: list[str] = []
    check_columns(affine, name, "affine", warnings)
    with np.errstate(all="ignore"):
        zooms = np.asarray(fields["delta"], dtype=float)
    check_zooms(affine, zooms, name, warnings)
    check_extent(affine, shape, name, "mm")
    facts = {
        "format": "MGH",
        "shape": " x ".join(map(str, (*shape, frames) if run else shape)),
        "stored type": str(dtype),
        "units": "mm",
        "affine from": "direction cosines",
        "orientation": orientation_codes(affine),
    }
    return CheckedHeader(
        shape, frames, dtype, OFFSET, 1.0, 0.0, affine, facts, tuple(warnings), header_bytes=OFFSET, footer=True
    )


def _parsed(head: bytes, name: str) -> Any:
    """Fields of the header, without nibabel's class, which replaces a missing orientation by a default."""
    from nibabel.freesurfer.mghformat import header_dtype

    if len(head) < OFFSET or head[:4] != b"\0\0\0\1":
        raise ScanError(
            f"{name} is not an MGH file",
            expected="FreeSurfer's format, version 1",
            seen=f"a file that begins with {head[:8]!r}",
            hint="give a NIfTI file its own extension (.nii.gz), or convert it: mri_convert",
        )
    return np.frombuffer(head, header_dtype, count=1)[0]


def mgh_sizes(head: bytes, name: str) -> tuple[int, ...]:
    """Sizes that a header claims: x, y, z, frames.

    Raises:
        ScanError: not an MGH file.
    """
    return tuple(_parsed(head, name)["dims"].tolist())


def _check_type(code: int, name: str) -> np.dtype[Any]:
    from nibabel.freesurfer.mghformat import data_type_codes

    if code not in data_type_codes.value_set("code"):
        raise ScanError(
            f"{name}: voxels of this type cannot be read",
            expected="uint8, int16, uint16, int32 or float32",
            seen=f"MGH type code {code}",
            hint="convert it: mri_convert --out_data_type float",
        )
    return np.dtype(str(data_type_codes.numpy_dtype[code]))


def _check_orientation(fields: Any, name: str, xform: Xform) -> None:
    if int(fields["goodRASFlag"]) != 1:
        raise ScanError(
            f"{name} does not define its orientation, so left and right cannot be told apart",
            expected="ras_good_flag 1",
            seen=f"ras_good_flag {int(fields['goodRASFlag'])}",
            hint="convert the scan again from DICOM: FreeSurfer's default orientation would be a guess",
        )
    refuse_xform(name, xform, "MGH")
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(np.asarray(fields["Mdc"], dtype=float), axis=1)
    if not (np.abs(lengths - 1) <= COSINES_REFUSE).all() or not (np.asarray(fields["delta"]) > 0).all():
        raise ScanError(
            f"{name}: the direction cosines or voxel sizes are impossible",
            expected="three unit vectors and three sizes above 0",
            seen=f"lengths {np.round(lengths, 3).tolist()}, sizes {fields['delta'].tolist()}",
            hint=DAMAGED,
        )


def mgh_time(stream: Any, checked: CheckedHeader) -> dict[str, Any]:
    """Repetition time from the footer behind the voxels, as NIfTI header fields (in milliseconds).

    Args:
        stream: the decompressed file.
        checked: its header.
    """
    stream.seek(checked.offset + checked.data_bytes)
    footer = stream.read(4)
    fields = float(np.frombuffer(footer, ">f4")[0]) if len(footer) == 4 else 0.0
    return {"pixdim": [1.0, *[0.0] * 3, fields], "xyzt_units": 2 | 16}
