"""Sizes that zstandard frames declare, read before anything is decompressed: 16 kB may expand to half a gigabyte."""

from __future__ import annotations

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPED = b"\x50\x2a\x4d\x18"
"""Magic number of a skippable frame, which has no content; its first byte may be anything from 0x50 to 0x5f."""
REPEATED, COMPRESSED, MAX_BLOCK_BYTES = 1, 2, 2**17
"""Block types (RFC 8878, section 3.1.1.2): one repeated byte, and compressed; and the largest block."""
HEADER_BYTES = 18
"""Longest frame header: magic number, descriptor, window, dictionary, content size (RFC 8878, section 3.1.1.1)."""


def content_size(head: bytes) -> int | None:
    """Content size in bytes that a frame declares.

    Args:
        head: the first `HEADER_BYTES` of the frame, or all of it.

    Returns:
        The size; None if the frame does not declare it, and decompressors go on to its end.

    Raises:
        ValueError: not a frame.
    """
    if head[:4] != MAGIC or len(head) < 6:
        raise ValueError("not a zstandard frame")
    return _header(head)[0]


def _header(head: bytes) -> tuple[int | None, int, int]:
    """Declared content size, length of the header, and length of the checksum behind the last block.

    The bits of the descriptor (RFC 8878, section 3.1.1.1.1): 7-6 length of the content size, 5 single segment (no
    window byte, and a content size of at least one byte), 2 checksum, 1-0 length of the dictionary's id. A content
    size of two bytes counts from 256.
    """
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
    """Content size that consecutive frames declare, and an upper bound for frames that declare none.

    Only the headers of frames and blocks are read. Anything but a frame ends the count: decompressors stop there too.
    Frames without a content size have to be walked block by block, since nothing else says where the next one begins;
    a compressed block may expand to at most 128 kB.

    Args:
        packed: frames, as decompressors take them.
        enough: number of bytes at which counting stops.
    """
    declared = others = place = 0
    while place + 6 <= len(packed) and declared + others <= enough:
        magic = packed[place : place + 4]
        if magic[1:] == SKIPPED[1:] and magic[0] >> 4 == SKIPPED[0] >> 4:
            place += 8 + int.from_bytes(packed[place + 4 : place + 8], "little")
            continue
        if magic != MAGIC:
            break
        content, header, checksum = _header(packed[place : place + HEADER_BYTES])
        place += header
        declared += content or 0
        last = False
        while not last and place < len(packed) and declared + others <= enough:
            block = int.from_bytes(packed[place : place + 3], "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            place += 3 + (1 if kind == REPEATED else size)  # a repeated byte is stored once; `size` is its count
            if content is None:
                others += MAX_BLOCK_BYTES if kind == COMPRESSED else size
        place += checksum
    return declared, others
