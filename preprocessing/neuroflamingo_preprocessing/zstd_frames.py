"""What a zstandard frame says it will become, before anything is unpacked: 16 kB may become half a gigabyte."""

from __future__ import annotations

MAGIC = b"\x28\xb5\x2f\xfd"
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
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    place = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    length = (int(single), 2, 4, 8)[descriptor >> 6]
    if not length:
        return None
    return int.from_bytes(head[place : place + length], "little") + (256 if length == 2 else 0)
