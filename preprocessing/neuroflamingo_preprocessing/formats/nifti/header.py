"""Checks of NIfTI headers before any voxel is read: they keep left and right safe, and a wrong header harmless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.described import described_by_text
from neuroflamingo_preprocessing.formats.nifti.orientation import CODE_NAME, DAMAGED, UNIT_NAME, place_by_forms
from neuroflamingo_preprocessing.geometry import Affine, orientation_codes

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.nifti.xform import Xform

MAX_VOXELS = 2**29  # 2 GiB as float32; a whole head at 0.25 mm has 450 million
SLACK_BYTES = 2**20  # no more than this is read of what follows the voxels
NUMBERS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI codes of real integers and floats up to 64 bit
CIFTI_INTENTS = range(3000, 3100)
STATISTICS = range(2, 25)  # NIfTI intent codes of statistical maps
TEXTS = ("descrip", "aux_file", "intent_name")
"""Free texts, of which only words of a closed list are kept."""
LARGE_WHOLE = 2.0**29  # most floating-point numbers, read as whole ones, lie above this
SMALLEST_FLOAT = 1.2e-38  # whole numbers below 2^23, read as floating-point ones, lie below this


@dataclass(frozen=True)
class CheckedHeader:
    """Header fields after the checks.

    Attributes:
        shape: x, y, z.
        frames: number of volumes, 1 for a single one.
        dtype: stored type, in the file's byte order.
        offset: position of the first voxel in bytes.
        slope, inter: scaling of stored values.
        affine: voxel index to world, RAS mm.
        facts: fields for the provenance.
        warnings: oddities that do not make the file unusable.
        header_bytes: length of the header itself.
        footer: True if the format has more data behind the voxels.
        display_range: display range for viewers; None if the header does not state one.
        code: NIfTI code of the world space; 1 (scanner) for formats without one.
    """

    shape: tuple[int, int, int]
    frames: int
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: Affine
    facts: dict[str, str]
    warnings: tuple[str, ...]
    header_bytes: int = 348
    footer: bool = False
    display_range: tuple[float, float] | None = None
    code: int = 1

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels, which the file must hold after the offset."""
        return self.frames * self.frame_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of one volume."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def check_header(
    header: Any, name: str, *, run: bool = False, xform: Xform = "auto", single_file: bool = True
) -> CheckedHeader:
    """Check a nibabel NIfTI-1 or NIfTI-2 header.

    Args:
        header: as parsed, unchecked.
        name: name of the file, for messages.
        run: True for a time series of volumes, False for a single volume.
        xform: which affine to use, see `Xform`.
        single_file: True if the voxels follow the header in the same file, at `vox_offset`.

    Raises:
        ScanError: anything that makes values, position or side of voxels uncertain.
    """
    warnings: list[str] = []
    intent = _check_intent(header, name, warnings)
    shape, frames = check_shape([int(n) for n in header["dim"]], name, run)
    dtype = _check_dtype(header, name)
    offset = _check_offset(header, name) if single_file else 0
    slope, inter = _check_scaling(header, name, warnings)
    placed = place_by_forms(header, shape, name, xform, warnings)
    facts = {
        "format": "NIfTI-2" if int(header["sizeof_hdr"]) == 540 else "NIfTI-1",
        "shape": " x ".join(map(str, (*shape, frames) if run else shape)),
        "stored type": str(dtype),
        "units": UNIT_NAME[int(header["xyzt_units"]) % 8],
        "sform": CODE_NAME[int(header["sform_code"])],
        "qform": CODE_NAME[int(header["qform_code"])],
        "affine from": placed.source + ("" if xform == "auto" else ", as asked"),
        "orientation": orientation_codes(placed.affine),
    }
    facts |= {"intent": intent} if intent else {}
    described = described_by_text(b" ".join(bytes(header[field]) for field in TEXTS).decode("latin-1"))
    facts |= {"described as": ", ".join(described)} if described else {}
    facts |= {"scaling": f"stored x {slope:g} + {inter:g}"} if (slope, inter) != (1.0, 0.0) else {}
    low, high = float(header["cal_min"]), float(header["cal_max"])
    return CheckedHeader(
        shape=shape,
        frames=frames,
        dtype=dtype,
        offset=offset,
        slope=slope,
        inter=inter,
        affine=placed.affine,
        facts=facts,
        warnings=tuple(warnings),
        header_bytes=int(header["sizeof_hdr"]),
        display_range=(low, high) if np.isfinite([low, high]).all() and low < high else None,
        code=placed.code,
    )


def _check_intent(header: Any, name: str, warnings: list[str]) -> str | None:
    """Intent of the numbers by its code; the free text beside the code is not read."""
    from nibabel.nifti1 import intent_codes

    code = int(header["intent_code"])
    if code in CIFTI_INTENTS:
        raise ScanError(
            f"{name} is a CIFTI file: it holds values of the cortical surface or of parcels, not a volume",
            expected="a volume or a run of volumes",
            seen=f"intent code {code}",
            hint="give the scan in volume space; .ptseries.nii files are for parcel encoders",
        )
    if code == 0:
        return None
    if code not in intent_codes.value_set("code"):
        warnings.append(f"the header states an unknown intent ({code})")
        return f"unknown ({code})"
    label = str(intent_codes.label[code])
    if code in STATISTICS:
        warnings.append(f"the header calls it a statistical map ({label}), not a scan")
    return label


def _check_offset(header: Any, name: str) -> int:
    offset = float(header["vox_offset"])
    smallest = int(header["sizeof_hdr"]) + 4
    if not (smallest <= offset <= 2**24 and offset == int(offset)):
        raise ScanError(
            f"{name}: the header points to voxels at an impossible position",
            expected=f"vox_offset from {smallest} to {2**24}",
            seen=str(offset),
            hint=DAMAGED,
        )
    return int(offset)


def check_extensions(block: bytes, checked: CheckedHeader, name: str) -> None:
    """Check that the voxels do not begin inside a header extension.

    Args:
        block: bytes of the file up to the first voxel, as the header states it.
        checked: the header.
        name: name of the file, for messages.

    Raises:
        ScanError: `vox_offset` lies inside an extension.
    """
    place = checked.header_bytes + 4
    if checked.footer or not block[checked.header_bytes : checked.header_bytes + 1].strip(b"\0"):
        return
    order = "little" if int.from_bytes(block[:4], "little") == checked.header_bytes else "big"
    while place + 8 <= checked.offset:
        size = int.from_bytes(block[place : place + 4], order)
        if size < 8:
            return
        place += size
    if place > checked.offset > checked.header_bytes + 4:
        raise ScanError(
            f"{name}: the header points to voxels inside one of its own extensions",
            expected=f"vox_offset {place}, where the extensions end",
            seen=str(checked.offset),
            hint=DAMAGED,
        )


def check_rest(count: int, checked: CheckedHeader, name: str) -> list[str]:
    """Check the bytes behind the last voxel: a plane of voxels or more means that a size in the header is too small.

    Args:
        count: number of bytes, counted up to one more than `SLACK_BYTES`.
        checked: the header.
        name: name of the file, for messages.

    Returns:
        Warnings.

    Raises:
        ScanError: as many bytes as a plane of voxels.
    """
    planes = sorted(checked.shape)
    plane = planes[0] * planes[1] * checked.dtype.itemsize
    if count == 0 or (checked.footer and count < plane):
        return []
    if count > SLACK_BYTES or (count >= plane and not checked.footer):  # FreeSurfer's tags may hold a colour table
        raise ScanError(
            f"{name} holds more than its header says",
            expected=f"{checked.data_bytes} bytes of voxels",
            seen=f"{'more than ' * (count > SLACK_BYTES)}{min(count, SLACK_BYTES)} bytes after them",
            hint=DAMAGED,
        )
    return [f"{count} bytes follow the last voxel and were not read as voxels: the header's sizes may be wrong"]


def check_values(lowest: float, highest: float, checked: CheckedHeader, name: str) -> list[str]:
    """Check the range of the values against the stored type and the display range.

    Args:
        lowest, highest: range after scaling.
        checked: the header.
        name: name of the file, for messages.

    Returns:
        Warnings.

    Raises:
        ScanError: integers that are marked as floating-point numbers.
    """
    warnings = []
    largest = max(abs(lowest - checked.inter), abs(highest - checked.inter)) / abs(checked.slope)
    if checked.dtype.kind == "f" and 0 < largest < SMALLEST_FLOAT:
        raise ScanError(
            f"{name}: the values are far too small for a scan",
            expected="grey values",
            seen=f"at most {largest:.2g} as {checked.dtype}, which is how integers look if marked as floating-point",
            hint=DAMAGED,
        )
    if checked.dtype.kind in "iu" and checked.dtype.itemsize >= 4 and largest >= LARGE_WHOLE:
        warnings.append(f"stored integers reach {largest:.2g}: they may be floating-point numbers marked as integers")
    if checked.display_range is not None and (highest < checked.display_range[0] or lowest > checked.display_range[1]):
        low, high = checked.display_range
        warnings.append(f"values from {lowest:g} to {highest:g}, but the header's display range is {low:g} to {high:g}")
    return warnings


def check_shape(dim: list[int], name: str, run: bool) -> tuple[tuple[int, int, int], int]:
    """Shape and number of frames from NIfTI's `dim`: the number of axes, then their sizes.

    Args:
        dim: as in the header.
        name: name of the file, for messages.
        run: True for a time series of volumes, False for a single volume.

    Raises:
        ScanError: impossible or too large, or another number of axes.
    """
    count = dim[0]
    if not 1 <= count <= 7 or min(dim[1 : count + 1]) < 1:
        raise ScanError(
            f"{name}: the header's dimensions are impossible",
            expected="1 to 7 axes of at least one voxel",
            seen=f"dim = {dim}",
            hint=DAMAGED,
        )
    sizes = dim[1 : count + 1]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    seen = " x ".join(map(str, sizes))
    if run and len(sizes) != 4:
        raise ScanError(
            f"{name} is not a time series",
            expected="a run of at least two 3D volumes",
            seen=seen,
            hint="give the fMRI run (its name often ends in _bold.nii.gz)",
        )
    if len(sizes) > 3 and not run:
        raise ScanError(
            f"{name} holds {int(np.prod(sizes[3:], dtype=object))} volumes",
            expected="one 3D volume",
            seen=seen,
            hint="extract one volume first, or give the T1-weighted scan instead of the time series",
        )
    if len(sizes) < 3 or min(sizes[:3]) < 2:
        raise ScanError(
            f"{name} is a single slice",
            expected="a 3D volume of a whole head",
            seen=f"a {len(sizes)}D image, {seen}",
            hint="stack the slices of the series into one volume (dcm2niix does it)",
        )
    voxels = int(np.prod(sizes[:3], dtype=object))
    if voxels > MAX_VOXELS:
        raise ScanError(
            f"{name}: the header claims {voxels:.3g} voxels",
            expected=f"at most {MAX_VOXELS:.3g}",
            seen=seen,
            hint="a whole head has a few million voxels: the header is damaged, or resample the scan to 0.5 mm",
        )
    return (sizes[0], sizes[1], sizes[2]), sizes[3] if run else 1


def _check_dtype(header: Any, name: str) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in NUMBERS:
        raise ScanError(
            f"{name}: voxels of this type cannot be read",
            expected="integers or floats up to 64 bit",
            seen=f"NIfTI datatype code {code}",
            hint="save the scan as float32 (colour images and complex numbers are not T1-weighted scans)",
        )
    dtype = header.get_data_dtype()
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise ScanError(
            f"{name}: the header contradicts itself about the bytes of a voxel",
            expected=f"bitpix {dtype.itemsize * 8} for {dtype}",
            seen=f"bitpix {int(header['bitpix'])}",
            hint=DAMAGED,
        )
    return dtype


def _check_scaling(header: Any, name: str, warnings: list[str]) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means unscaled, as the NIfTI standard and nibabel say."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(inter):
        raise ScanError(
            f"{name}: the scaling of the voxels is not finite",
            expected="finite scl_slope and scl_inter",
            seen=f"{slope}, {inter}",
            hint="save the scan again without scaling",
        )
    if slope < 0:
        warnings.append(f"values are scaled by {slope:g}, which inverts the contrast: bright becomes dark")
    return slope, inter
