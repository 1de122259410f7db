"""CIFTI parcel series (`.ptseries.nii`): values, parcel names and repetition time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.nifti.header import CIFTI_INTENTS, MAX_VOXELS
from neuroflamingo_preprocessing.formats.nifti.orientation import DAMAGED
from neuroflamingo_preprocessing.functional.parcel_tables import Table, printable

ENDINGS = (".ptseries.nii", ".dtseries.nii")


def is_cifti(path: str | Path) -> bool:
    """True for the file name of a CIFTI time series, parcellated or dense."""
    return Path(path).name.lower().endswith(ENDINGS)


def is_dense(path: str | Path) -> bool:
    """True for the file name of a dense CIFTI time series."""
    return Path(path).name.lower().endswith(ENDINGS[1])


def read_cifti(raw: bytes, name: str) -> Table:
    """Read a parcel series as `[parcel, frame]`, whichever axis comes first in the file.

    Args:
        raw: bytes of the file.
        name: for messages.

    Raises:
        ScanError: not a CIFTI-2 file, damaged, a dense series or another kind, a time axis without seconds.
    """
    check_cifti_header(raw, name)
    axes, values = axes_and_values(raw, name)
    from nibabel.cifti2.cifti2_axes import BrainModelAxis, ParcelsAxis, SeriesAxis

    kinds = [type(axis) for axis in axes]
    if BrainModelAxis in kinds:
        raise ScanError(
            f"{name} is a dense series: it has values for grayordinates, not for parcels",
            expected="a parcel series, .ptseries.nii",
            seen="an axis of "
            + ", ".join(str(len(axis)) for axis in axes if isinstance(axis, BrainModelAxis))
            + " grayordinates",
            hint="give the parcellation's label file too: --atlas FILE.dlabel.nii",
        )
    if sorted(kinds, key=str) != sorted([ParcelsAxis, SeriesAxis], key=str):
        raise unusable(name, "axes " + ", ".join(kind.__name__ for kind in kinds))
    series: Any
    parcels: Any
    series, parcels = (next(axis for axis in axes if isinstance(axis, kind)) for kind in (SeriesAxis, ParcelsAxis))
    seconds = seconds_of(series, name)
    names = printable([str(label) for label in parcels.name])
    values = values if kinds[0] is ParcelsAxis else values.T
    return Table(values, seconds, kind="CIFTI parcel series", rows="parcels", names=names)


def check_cifti_header(raw: bytes, name: str) -> None:
    """Check the NIfTI-2 header of a CIFTI file, and that the file is complete, before its XML is parsed.

    Raises:
        ScanError: another header, or bytes missing.
    """
    from nibabel.nifti2 import Nifti2Header

    sizes = {int.from_bytes(raw[:4], order) for order in ("little", "big")}
    if len(raw) < 544 or 540 not in sizes or raw[4:8] != b"n+2\0":
        raise unusable(name, f"a file that begins with {raw[:8]!r}")
    header = Nifti2Header(raw[:540], check=False)
    if int(header["intent_code"]) not in CIFTI_INTENTS:
        raise unusable(name, f"intent code {int(header['intent_code'])}")
    dim = [int(n) for n in header["dim"]]
    count = int(np.prod(dim[5:7], dtype=object))
    if dim[0] != 6 or dim[1:5] != [1] * 4 or min(dim[5:7]) < 1 or count > MAX_VOXELS:
        raise unusable(name, f"dim = {dim}")
    offset, size = int(header["vox_offset"]), int(header["bitpix"]) // 8
    if int(header["datatype"]) not in (4, 8, 16, 64) or offset < 544 or len(raw) != offset + count * size:
        raise unusable(name, f"{len(raw)} bytes for {count} values of type {int(header['datatype'])} from {offset} on")


def axes_and_values(raw: bytes, name: str) -> tuple[list[Any], np.ndarray[Any, Any]]:
    """Axes and values of a CIFTI file, after `check_cifti_header`.

    Raises:
        ScanError: damaged XML, or axes that do not fit the values.
    """
    from nibabel.cifti2.cifti2 import Cifti2Image

    try:
        image = Cifti2Image.from_bytes(raw)
        axes = [image.header.get_axis(index) for index in range(2)]
        values = np.asarray(image.dataobj)
    except MemoryError:
        raise
    except Exception as error:  # nibabel's XML parser raises a dozen types
        raise unusable(name, f"{type(error).__name__}: {error}"[:200]) from error
    if values.shape != tuple(len(axis) for axis in axes):
        raise unusable(name, f"axes of {[len(axis) for axis in axes]} for values of {list(values.shape)}")
    return axes, values


def seconds_of(series: Any, name: str) -> float:
    """Repetition time in seconds of a CIFTI series axis.

    Raises:
        ScanError: another unit, or a time that is not above 0.
    """
    if series.unit != "SECOND" or not (np.isfinite(series.step) and series.step > 0):
        raise unusable(name, f"a step of {series.step:g} {series.unit.lower()}")
    return round(float(series.step), 6)


def unusable(name: str, seen: str) -> ScanError:
    """Error for a file that is not a CIFTI series, or is damaged."""
    return ScanError(
        f"{name} is not a usable CIFTI parcel series",
        expected="CIFTI-2: one axis of parcels, one of seconds, real numbers",
        seen=seen,
        hint=DAMAGED,
    )
