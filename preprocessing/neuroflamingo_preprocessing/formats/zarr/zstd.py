"""What a zstandard frame says it will become, before anything is unpacked: 16 kB may become half a gigabyte."""

from __future__ import annotations

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPED = b"\x50\x2a\x4d\x18"
"""Begins a frame without content; its first byte may be any up to 0x5f."""
REPEATED, COMPRESSED, MAX_BLOCK_BYTES = 1, 2, 2**17
"""Kinds of blocks (RFC 8878, section 3.1.1.2): one byte many times, and what has to be unpacked."""
HEADER_BYTES = 18
"""The longest frame header: magic, descriptor, window, dictionary, content size (RFC 8878, section 3.1.1.1)."""


def content_size(head: bytes) -> int | None:
    """Bytes of content that a frame declares.

    Args:
        head: its first `HEADER_BYTES`, or all of it.

    Returns:
        None where it does not say; decompressors then unpack until it ends.

    Raises:
        ValueError: no frame.
    """
    if head[:4] != MAGIC or len(head) < 6:
        raise ValueError("no zstandard frame")
    return _header(head)[0]


def _header(head: bytes) -> tuple[int | None, int, int]:
    """The declared content, the header's length, and that of the checksum behind the last block."""
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    place = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    length = (int(single), 2, 4, 8)[descriptor >> 6]
    checksum = 4 if descriptor & 4 else 0
    if not length:
        return None, place, checksum
    declared = int.from_bytes(head[place : place + length], "little") + (256 if length == 2 else 0)
    return declared, place + length, checksum


def claimed(packed: bytes, enough: int) -> tuple[int, int]:
    """The content that all frames one behind another declare, and the most that those can hold that declare none.

    Only headers of frames and of blocks are looked at. What is no frame ends it: nothing can be unpacked from there on.

    Args:
        packed: frames, as decompressors take them.
        enough: bytes above which nothing more is counted.
    """
    declared = others = place = 0
    while place + 6 <= len(packed) and declared + others <= enough:
        magic = packed[place : place + 4]
        if magic[1:] == SKIPPED[1:] and magic[0] >> 4 == SKIPPED[0] >> 4:
            place += 8 + int.from_bytes(packed[place + 4 : place + 8], "little")
            continue
        if magic != MAGIC:
            break
        said, header, checksum = _header(packed[place : place + HEADER_BYTES])
        place += header
        declared += said or 0
        last = False
        while not last and place < len(packed) and declared + others <= enough:
            block = int.from_bytes(packed[place : place + 3], "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            place += 3 + (1 if kind == REPEATED else size)
            if said is None:
                others += MAX_BLOCK_BYTES if kind == COMPRESSED else size
        place += checksum
    return declared, others
