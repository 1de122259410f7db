"""Stored voxels to float32, a piece at a time.

What is stored never lies in memory as a whole, and each piece is decompressed, looked at and scaled while the
processor's cache still holds it.
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
MOST_DEFLATED = 1032  # a deflate stream cannot grow by more: two bits for 258 bytes (RFC 1951)
BOMB_BYTES, BOMB_RATIO = 2**28, 500  # so large, and packed so well, there can be no picture in it


def read_voxels(
    stream: Any, header: CheckedHeader, out: NDArray[np.float32], name: str, done: int = 0
) -> tuple[float, float]:
    """Fill `out` with the next voxels, scaled once to float32.

    Args:
        stream: decompressed bytes, at the first of these voxels.
        header: stored type and scaling.
        out: float32, one axis. Its pages come into being as they are written: a file that ends early costs little.
        name: of the file, for messages.
        done: voxels read before, for messages.

    Returns:
        The lowest and the highest; one of them is not finite if any voxel is not.

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
            got = _fill(stream, view[: len(piece) * header.dtype.itemsize])
            if got < len(piece) * header.dtype.itemsize:
                seen = (done + first) * header.dtype.itemsize + got
                raise truncated(name, f"{seen} of {header.data_bytes} bytes of voxels")
            piece[:] = stored[: len(piece)]
            if scaled:
                piece *= np.float32(header.slope)
                piece += np.float32(header.inter)
            lowest, highest = np.minimum(lowest, piece.min()), np.maximum(highest, piece.max())  # NaN stays NaN
    return float(lowest), float(highest)


def _fill(stream: Any, view: memoryview) -> int:
    """Read until the view is full or the stream ends: a decompressor may give less than was asked for."""
    got = 0
    while got < len(view):
        more = stream.readinto(view[got:])
        if not more:
            break
        got += more
    return got


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
    refuse_bomb(path.name, checked.data_bytes, checked.dtype.itemsize, size)


def refuse_bomb(name: str, claimed: int, itemsize: int, size: int) -> None:
    """Refuse voxels (`claimed` bytes) that pack (into `size`) better than any picture's: a kilobyte of zeros.

    Raises:
        ScanError: see above.
    """
    if claimed + 4 * claimed // itemsize > BOMB_BYTES and claimed > BOMB_RATIO * size:
        raise ScanError(
            f"{name} holds no picture",
            expected=f"voxels that are packed by less than {BOMB_RATIO} times",
            seen=f"{claimed} bytes of voxels in {size}",
            hint="check how it was written: nearly all of its voxels must be one value",
        )


def refuse_excess(stream: Any, checked: CheckedHeader, name: str) -> list[str]:
    """Read on to the end, which also checks the compression's own checksum; gives what to say of a few bytes more.

    Raises:
        ScanError: so much follows that one of the header's sizes must be too small.
    """
    return check_rest(len(stream.read(SLACK_BYTES + 1)), checked, name)


def truncated(name: str, seen: str) -> ScanError:
    """The error for a file that ends too early, or whose compression is damaged."""
    return ScanError(
        f"{name} is truncated or damaged",
        expected="a complete file",
        seen=seen,
        hint="copy or download it again",
    )
