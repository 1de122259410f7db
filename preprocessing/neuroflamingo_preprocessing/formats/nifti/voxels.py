"""`read_voxels`: read stored voxels as float32, piece by piece.

The stored bytes are never in memory as a whole, and each piece is decompressed, checked and scaled while it is in the
processor's cache. isal reads to the end of the last gzip member, where its checksum and length are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.nifti.header import SLACK_BYTES, CheckedHeader, check_rest

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE_BYTES = 2**19
MOST_DEFLATED = 1032  # largest growth of a deflate stream: two bits for 258 bytes (RFC 1951)
BOMB_BYTES, BOMB_RATIO = 2**28, 500  # no real image of this size compresses by more


def read_voxels(
    stream: Any, header: CheckedHeader, out: NDArray[np.float32], name: str, done: int = 0
) -> tuple[float, float]:
    """Fill `out` with the next voxels, scaled once to float32.

    Args:
        stream: decompressed bytes, at the first of these voxels.
        header: stored type and scaling.
        out: float32, one axis. The system maps its pages as they are written, so a file that ends early costs little.
        name: name of the file, for messages.
        done: number of voxels read before, for messages.

    Returns:
        Lowest and highest value; one of them is not finite if any voxel is not.

    Raises:
        ScanError: the file ends before (exit 65).
    """
    stored = np.empty(PIECE_BYTES // header.dtype.itemsize, header.dtype)
    view = memoryview(stored.view(np.uint8))  # type: ignore[arg-type]
    scaled = (header.slope, header.inter) != (1.0, 0.0)
    lowest, highest = np.inf, -np.inf
    with np.errstate(all="ignore"):
        for first in range(0, len(out), len(stored)):
            piece = out[first : first + len(stored)]
            filled = _fill(stream, view[: len(piece) * header.dtype.itemsize])
            if filled < len(piece) * header.dtype.itemsize:
                seen = (done + first) * header.dtype.itemsize + filled
                raise truncated(name, f"{seen} of {header.data_bytes} bytes of voxels")
            piece[:] = stored[: len(piece)]
            if scaled:
                piece *= np.float32(header.slope)
                piece += np.float32(header.inter)
            lowest, highest = np.minimum(lowest, piece.min()), np.maximum(highest, piece.max())  # NaN stays NaN
    return float(lowest), float(highest)


def _fill(stream: Any, view: memoryview) -> int:
    """Read until the view is full or the stream ends: a decompressor may return less than was asked for."""
    filled = 0
    while filled < len(view):
        more = stream.readinto(view[filled:])
        if not more:
            break
        filled += more
    return filled


def refuse_short(path: Path, packed: bool, checked: CheckedHeader) -> None:
    """Refuse, before voxels are read, a header that claims more than a file of this size can hold.

    Args:
        path: the file.
        packed: True if it is compressed.
        checked: its header.

    Raises:
        ScanError: more bytes than the file can hold, or gigabytes that compress as only one value does.
    """
    size = path.stat().st_size
    if not packed:
        if size < checked.offset + checked.data_bytes:
            raise truncated(path.name, f"{max(size - checked.offset, 0)} of {checked.data_bytes} bytes of voxels")
        return
    if checked.data_bytes > MOST_DEFLATED * size:
        raise truncated(path.name, f"{size} packed bytes, which cannot hold {checked.data_bytes} bytes of voxels")
    refuse_bomb(path.name, checked.data_bytes, checked.dtype.itemsize, size)


def refuse_bomb(name: str, claimed: int, itemsize: int, size: int) -> None:
    """Refuse voxels that compress better than those of any image: gigabytes of one value in a kilobyte.

    Args:
        name: name of the file, for messages.
        claimed: bytes of the voxels.
        itemsize: bytes of one voxel as stored.
        size: bytes on disk.

    Raises:
        ScanError: such voxels.
    """
    if claimed + 4 * claimed // itemsize > BOMB_BYTES and claimed > BOMB_RATIO * size:
        raise ScanError(
            f"{name} holds no image",
            expected=f"voxels that compress by less than {BOMB_RATIO} times",
            seen=f"{claimed} bytes of voxels in {size}",
            hint="check how it was written: nearly all of its voxels must be one value",
        )


def refuse_excess(stream: Any, checked: CheckedHeader, name: str) -> list[str]:
    """Read to the end of the stream, which also verifies the checksum of the compression.

    Returns:
        Warnings about bytes behind the voxels.

    Raises:
        ScanError: so many bytes that a size in the header must be too small.
    """
    return check_rest(len(stream.read(SLACK_BYTES + 1)), checked, name)


def truncated(name: str, seen: str) -> ScanError:
    """Error for a file that ends too early, or whose compression is damaged."""
    return ScanError(
        f"{name} is truncated or damaged",
        expected="a complete file",
        seen=seen,
        hint="copy or download it again",
    )
