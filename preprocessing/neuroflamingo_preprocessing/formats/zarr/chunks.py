"""The sizes that the zstandard frames in a zarr array's chunks claim, before the library unpacks one.

1 kB may become gigabytes, and the library looks at the size of a chunk only once it has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.zarr.metadata import METADATA, Packing
from neuroflamingo_preprocessing.formats.zarr.zstd import claimed

SLACK_BYTES = 2**20
"""Frames that do not say their size, as Java's writers make them, are counted in blocks of at most 128 kB."""
EMPTY = 2**64 - 1
"""In a shard's index: no such chunk."""


def check_frames(folder: Path, packing: Packing, name: str) -> None:
    """Refuse chunks whose frames claim more than a chunk has room for.

    Files that are no frames are passed over: the library cannot unpack them either.

    Args:
        folder: of an array without links.
        packing: of its chunks, see `ArrayMetadata`.
        name: of the scan, for messages.

    Raises:
        ScanError: see above.
    """
    for file in folder.rglob("*"):
        if not file.is_file() or file.name in METADATA:
            continue
        for packed in _frames_of(file, packing):
            declared, others = claimed(packed, packing.chunk_bytes + SLACK_BYTES)
            too_much = declared > packing.chunk_bytes or declared + others > packing.chunk_bytes + SLACK_BYTES
            if too_much or len(packed) > _most_packed(packing):
                raise ScanError(
                    f"{name}: a chunk would become more than it has room for",
                    expected=f"at most {packing.chunk_bytes:,} bytes, as the metadata say",
                    seen=f"{len(packed):,} bytes packed by zstandard that claim {declared + others:,}",
                    hint="write the folder again, or give the scan as .nii.gz",
                )


def _most_packed(packing: Packing) -> int:
    return 2 * packing.chunk_bytes + SLACK_BYTES


def _frames_of(file: Path, packing: Packing) -> Iterator[bytes]:
    """The packed bytes of each chunk in a file; of one that is too large to be a chunk more than any may have."""
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
