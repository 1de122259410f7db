"""Compression: what is legal is read whole, what is damaged or something else is refused with one typed error."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.read import claimed_sizes, read_run, read_scan
from tests.preprocessing.formats.nifti.nifti_by_hand import build

SHAPE = (32, 36, 30)
AFFINE = np.array([[-4.0, 0, 0, 62], [0, 4, 0, -70], [0, 0, 4, -58], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)
PLAIN = build(VALUES, AFFINE, forms="sform", quaternion=((0, 0, 0), 1))
PACKED = gzip.compress(PLAIN, 1, mtime=0)
EMPTY_MEMBER = gzip.compress(b"", mtime=0)
HEADER_END = 10  # of the gzip header that `gzip.compress` writes
FOOTER = 8  # checksum and length


def refused(folder: Path, content: bytes, name: str = "head.nii.gz", words: str | None = None) -> ScanError:
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(path)
    error = caught.value
    assert error.exit_code == 65 and name in error.what and error.expected and error.seen and error.hint
    assert "Traceback" not in str(error) and str(folder) not in str(error)
    for reader in (claimed_sizes, lambda file: list(read_run(file).blocks())):
        try:  # those that read less of a file may find nothing wrong, but nothing else than ours goes up
            reader(path)
        except ScanError:
            continue
    return error


def assert_read(folder: Path, content: bytes, name: str = "head.nii.gz") -> None:
    (folder / name).write_bytes(content)
    scan = read_scan(folder / name)
    np.testing.assert_array_equal(scan.voxels, VALUES)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-4)


def cuts() -> list[int]:
    """In the header of the gzip file, in that of the scan, all through the voxels, and at every byte of the footer."""
    through = np.linspace(HEADER_END + 200, len(PACKED) - FOOTER, 32).astype(int).tolist()
    return [*range(1, 19), 50, 100, *through, *range(len(PACKED) - FOOTER, len(PACKED))]


@pytest.mark.parametrize("length", cuts())
def test_truncated_anywhere(length: int, tmp_path: Path) -> None:
    refused(tmp_path, PACKED[:length], words=r"truncated or damaged|not a NIfTI")


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("place", range(1, FOOTER + 1))
def test_checksum_and_length(place: int, bit: int, tmp_path: Path) -> None:
    """A bit in the checksum or in the length: all voxels are there, and still they are not believed."""
    raw = bytearray(PACKED)
    raw[-place] ^= 1 << bit
    refused(tmp_path, bytes(raw), words="truncated or damaged")


@pytest.mark.parametrize("seed", range(24))
def test_a_flipped_bit_in_the_stream(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    raw = bytearray(PACKED)
    raw[rng.integers(HEADER_END, len(raw) - FOOTER)] ^= 1 << rng.integers(8)
    refused(tmp_path, bytes(raw))


@pytest.mark.parametrize("field", ["method", "flags"])
def test_a_gzip_header_of_another_kind(field: str, tmp_path: Path) -> None:
    raw = bytearray(PACKED)
    raw[2 if field == "method" else 3] = 7 if field == "method" else 0x08  # a file name, where there is none
    refused(tmp_path, bytes(raw))


JUNK = {
    "a byte": b"\x01",
    "text": b"-- \nsent by mail",
    "half a member": gzip.compress(bytes(4000))[:12],
    "a member with a wrong checksum": gzip.compress(b"abc")[:-8] + bytes(8),
    "a plane more": gzip.compress(bytes(32 * 36 * 2)),
    "much more": gzip.compress(bytes(2**21)),
    "the file again": PACKED,
    "html": b"<html>502 Bad Gateway</html>",
}


@pytest.mark.parametrize("junk", JUNK)
def test_trailing_junk(junk: str, tmp_path: Path) -> None:
    refused(tmp_path, PACKED + JUNK[junk], words="truncated or damaged|more than its header says")


def members(*places: int) -> bytes:
    edges = [0, *places, len(PLAIN)]
    return b"".join(gzip.compress(PLAIN[a:b], 1) for a, b in pairwise(edges))


def with_fields() -> bytes:
    """Extra field, file name, comment and header checksum, as RFC 1952 allows."""
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + struct.pack("<H", 4) + b"ab\0\0" + b"head.nii\0" + b"a comment\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    body = zlib.compressobj(1, zlib.DEFLATED, -15)
    return head + body.compress(PLAIN) + body.flush() + PACKED[-FOOTER:]


LEGAL = {
    "two members": members(100_00),
    "a member inside the header": members(100),
    "at the first voxel": members(352),
    "ten members": members(*range(200, 60_000, 6000)),
    "a member for each byte of the magic": members(344, 345, 346, 347),
    "an empty member first": EMPTY_MEMBER + PACKED,
    "empty members between": gzip.compress(PLAIN[:5000]) + EMPTY_MEMBER * 3 + gzip.compress(PLAIN[5000:]),
    "an empty member last": PACKED + EMPTY_MEMBER,
    "zeros behind (tape blocks)": PACKED + bytes(512),
    "stored, not deflated": gzip.compress(PLAIN, 0),
    "best": gzip.compress(PLAIN, 9),
    "all optional fields": with_fields(),
    "blocks that can be sought": b"".join(gzip.compress(PLAIN[a : a + 4096]) for a in range(0, len(PLAIN), 4096)),
}


@pytest.mark.parametrize("form", LEGAL)
def test_legal_forms_are_read_whole(form: str, tmp_path: Path) -> None:
    assert_read(tmp_path, LEGAL[form])


@pytest.mark.parametrize("name", ["head.nii", "head.NII", "head.nii.GZ", "sub-01_T1w.nii.gz", "head.img"])
@pytest.mark.parametrize("packed", [True, False])
def test_the_content_counts_not_the_ending(name: str, packed: bool, tmp_path: Path) -> None:
    assert_read(tmp_path, PACKED if packed else PLAIN, name)


def zstandard() -> bytes:
    from numcodecs import Zstd

    return bytes(Zstd(level=1).encode(PLAIN))  # type: ignore[arg-type]


def others() -> Iterator[tuple[str, bytes, str]]:
    """Name, content, and what the message says that it is."""
    page = b"<!DOCTYPE html><html><body>Please log in, Jane Doe</body></html>"
    yield "nothing", b"", "no bytes at all"
    yield "zeros", bytes(4096), "zeros"
    yield "nothing, compressed", EMPTY_MEMBER, "no bytes at all"
    yield "the two first bytes of gzip", b"\x1f\x8b", "End-of-stream|end-of-stream"
    yield "gzip in gzip", gzip.compress(PACKED), "a gzip file in a gzip file"
    yield "bzip2", bz2.compress(PLAIN), "bzip2"
    yield "xz", lzma.compress(PLAIN, preset=0), "an xz file"
    yield "zstandard", zstandard(), "zstandard"
    yield "compress (.Z)", b"\x1f\x9d\x90" + PLAIN[:1000], "begins with"
    yield "zip", b"PK\x03\x04" + PACKED, "zip archive"
    yield "html", page, "a web page"
    yield "html, compressed", gzip.compress(page * 50), "a web page"
    yield "annex", b"/annex/objects/SHA256E-s8321012--5fa21e3b0f8e4b2b6d7a.nii.gz\n", "git-annex"
    yield "LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 8321012\n", "git LFS"
    yield "json", b'{"PatientName": "Jane Doe"}', "begins with"
    yield "DICOM", bytes(128) + b"DICM" + bytes(400), "DICOM"
    yield "png", b"\x89PNG\r\n\x1a\n" + bytes(400), "begins with"
    yield "HDF5 (MINC 2)", b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"


@pytest.mark.parametrize(("content", "seen"), [pytest.param(*rest, id=name) for name, *rest in others()])
@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz"])
def test_other_files_under_a_scans_name(name: str, content: bytes, seen: str, tmp_path: Path) -> None:
    error = refused(tmp_path, content, name, words="not a NIfTI|truncated or damaged")
    assert re.search(seen, str(error)), str(error)
    assert "Jane" not in str(error)


def test_a_link_to_content_that_was_not_fetched(tmp_path: Path) -> None:
    """As DataLad leaves the files of a dataset until they are asked for."""
    (tmp_path / "head.nii.gz").symlink_to(".git/annex/objects/xx/yy/SHA256E-s8321012.nii.gz")
    with pytest.raises(NotFoundError, match="datalad get"):
        read_scan(tmp_path / "head.nii.gz")


def test_there_are_enough_of_them() -> None:
    cases = len(cuts()) + FOOTER * 3 + 24 + 2 + len(JUNK) + len(LEGAL) + 10 + 2 * len(list(others()))
    assert cases >= 150
