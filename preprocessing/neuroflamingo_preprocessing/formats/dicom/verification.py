"""Verification of a conversion: the planes of the NIfTI file must be equal to the DICOM images.

dcm2niix sorts the frames of enhanced files by vendor-specific rules, and for some files puts slices of different times
into one volume, without a warning. So the pixels themselves are compared, where they are stored uncompressed.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.dicom.attributes import UNCOMPRESSED, silenced
from neuroflamingo_preprocessing.formats.nifti.read_nifti import parse_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.formats.dicom.series import Series
    from neuroflamingo_preprocessing.geometry import Affine

BIG_ENDIAN = "1.2.840.10008.1.2.2"


def flips_between(one: Affine, other: Affine, shape: tuple[int, ...]) -> Affine:
    """Affine from voxel indices of `other` to those of `one`, whose axes may run in opposite directions."""
    flips = np.eye(4)
    for axis, count in enumerate(shape[:3]):
        if one[:3, axis] @ other[:3, axis] < 0:
            flips[axis, axis], flips[axis, 3] = -1.0, count - 1.0
    return flips


def verify_contents(file: Path, series: Series, stored: Affine) -> bool:
    """Compare planes with images: all of an enhanced file with several volumes, else the first, middle and last.

    Planes of an enhanced file that are complete but in another order are reordered in the file.

    Returns:
        True if they were reordered.

    Raises:
        ScanError: other pixels than those of the images, or several volumes in a form that cannot be compared.
    """
    if series.affine is None:
        return False  # a mosaic is one file a volume
    in_doubt = series.form == "enhanced" and series.volumes > 1
    planes = _planes(file)
    if planes is None or series.syntax not in UNCOMPRESSED:
        if in_doubt:
            raise misplaced(series.name, "several volumes in one compressed or scaled file, whose order is uncertain")
        return False
    flips = flips_between(series.affine, stored, (series.columns, series.rows, series.slices))
    turn = tuple(slice(None, None, int(flips[axis, axis])) for axis in range(2))
    numbers = np.arange(series.slices * series.volumes).reshape(series.volumes, series.slices)
    wanted = numbers[:, :: int(flips[2, 2])].ravel()  # of the images, in the order of the planes
    if planes.shape[2] != len(wanted):
        raise misplaced(series.name, f"{planes.shape[2]} planes for {len(wanted)} images")
    if in_doubt:
        return _put_in_order(planes, [series.frames[n] for n in wanted], turn, series)
    for place in sorted({0, len(wanted) // 2, len(wanted) - 1}):
        file_of, number = series.frames[wanted[place]]
        pictures, mask = _pictures(file_of, series)
        if not np.array_equal(_bits(planes[:, :, place][turn], mask), pictures[number]):
            raise misplaced(series.name, "another image there")
    return False


def _put_in_order(planes: Any, frames: list[tuple[Path, int]], turn: tuple[slice, ...], series: Series) -> bool:
    pictures = {file: _pictures(file, series) for file in dict.fromkeys(file for file, _ in frames)}
    mask = next(iter(pictures.values()))[1]
    found: dict[int, list[int]] = defaultdict(list)
    for place in reversed(range(planes.shape[2])):
        found[_fingerprint(_bits(planes[:, :, place][turn], mask))].append(place)
    order = []
    for file, number in frames:
        there = found.get(_fingerprint(pictures[file][0][number]))
        if not there:
            raise misplaced(series.name, "another image there")
        order.append(there.pop())
    if order == sorted(order):
        return False
    planes[:] = planes[:, :, order]
    planes.flush()
    return True


def _fingerprint(picture: NDArray[np.uint16]) -> int:
    return zlib.crc32(picture.T.tobytes())


def _planes(file: Path) -> Any:
    """Writable planes of a NIfTI file, `[x, y, plane]`; None for anything but 8- or 16-bit integers."""
    with file.open("rb") as stream:
        header = parse_header(stream.read(544), file.name)
    kind = header.get_data_dtype()
    if kind.kind not in "iu" or kind.itemsize > 2:
        return None
    dim = [int(n) for n in header["dim"]]
    shape = (dim[1], dim[2], int(np.prod(dim[3 : dim[0] + 1])))
    return np.memmap(file, kind, mode="r+", offset=int(header["vox_offset"]), shape=shape, order="F")


def _pictures(file: Path, series: Series) -> tuple[NDArray[np.uint16], np.uint16]:
    """Pixels of an uncompressed file, `[frame, column, row]`, and the mask of the bits in use.

    Raises:
        ScanError: the file holds fewer pixels than its header says, or none.
    """
    from pydicom import dcmread

    wanted = ["Rows", "Columns", "BitsAllocated", "BitsStored", "NumberOfFrames", "PixelData"]
    try:
        with silenced():
            data = dcmread(file, force=True, specific_tags=wanted)
            kind = np.dtype(np.uint8 if data.BitsAllocated == 8 else np.uint16)
            kind = kind.newbyteorder(">" if series.syntax == BIG_ENDIAN else "<")
            count = int(data.get("NumberOfFrames") or 1) * data.Rows * data.Columns
            stored = np.frombuffer(data.PixelData, kind, count).reshape(-1, data.Rows, data.Columns)
            mask = np.uint16((1 << int(data.get("BitsStored") or 16)) - 1)
    except Exception:  # of many types, with values of the header in their messages
        raise misplaced(series.name, "an image without pixels") from None
    return stored.astype(np.uint16).transpose(0, 2, 1) & mask, mask


def _bits(plane: NDArray[Any], mask: np.uint16) -> NDArray[np.uint16]:
    return plane.astype(np.int32).astype(np.uint16) & mask


def misplaced(name: str, seen: str) -> ScanError:
    """Error for a conversion that contradicts the DICOM images."""
    return ScanError(
        f"{name}: conversion would put its voxels in the wrong place",
        expected="pixels and positions as in the DICOM images",
        seen=seen,
        hint="convert it yourself, look at it, and give the NIfTI file",
    )
