"""Checks of the zstandard frames in the chunks of a zarr array before the library decompresses them.

A frame of 1 kB may expand to gigabytes, and the library checks the size of a chunk only after decompression.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.zarr.metadata import METADATA, Packing
from neuroflamingo_preprocessing.formats.zarr.zstd import claimed

SLACK_BYTES = 2**20
"""Allowance for frames that do not declare their size, as Java's writers make them: they are counted in whole blocks of
up to 128 kB, so that the estimate is too high."""
EMPTY = 2**64 - 1
"""Length, in the index of a shard, of a chunk that does not exist."""


def check_frames(folder: Path, packing: Packing, name: str) -> None:
    """Refuse chunks whose frames expand to more than a chunk holds.

    Files that are not frames are skipped: the library cannot decompress them either.

    Args:
        folder: folder of the array, without links.
        packing: compression of its chunks, see `ArrayMetadata`.
        name: name of the scan, for messages.

    Raises:
        ScanError: such a chunk.
    """
    for file in folder.rglob("*"):
        if not file.is_file() or file.name in METADATA:
            continue
        for packed in _frames_of(file, packing):
            declared, others = claimed(packed, packing.chunk_bytes + SLACK_BYTES)
            too_much = declared > packing.chunk_bytes or declared + others > packing.chunk_bytes + SLACK_BYTES
            if too_much or len(packed) > _most_packed(packing):
                raise ScanError(
                    f"{name}: a chunk would expand to more than it can hold",
                    expected=f"at most {packing.chunk_bytes:,} bytes, as the metadata say",
                    seen=f"{len(packed):,} bytes compressed by zstandard that claim {declared + others:,}",
                    hint="write the folder again, or give the scan as .nii.gz",
                )


def _most_packed(packing: Packing) -> int:
    return 2 * packing.chunk_bytes + SLACK_BYTES


def _frames_of(file: Path, packing: Packing) -> Iterator[bytes]:
    """Compressed bytes of each chunk in a file, cut to one more than any chunk may have."""
    most = _most_packed(packing) + 1
    with file.open("rb") as stream:
        if packing.shard is None:
            yield stream.read(most)
            return
        end, index = file.stat().st_size, packing.shard.index_bytes
        stream.seek(0 if packing.shard.index_first else max(end - index, 0))
        raw = stream.read(index)
        if len(raw) < index:
            return
        order = "<u8" if packing.shard.little else ">u8"
        for place, length in set(map(tuple, np.frombuffer(raw, order, 2 * packing.shard.chunks).reshape(-1, 2))):
            if length != EMPTY and int(place) + int(length) <= end:
                stream.seek(int(place))
                yield stream.read(min(int(length), most))
