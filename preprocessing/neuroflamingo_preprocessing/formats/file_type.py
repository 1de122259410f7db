"""File types that are mistaken for NIfTI, recognised by their first bytes, so that messages can say what to do."""

from __future__ import annotations

CONVERT = "convert it with nibabel or FreeSurfer's mri_convert; DICOM is read by its folder"
UNPACK = "unpack it, or pack it with gzip"
FETCH = "the content was never fetched: "

_KNOWN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a pointer of git LFS", FETCH + "git lfs pull"),
    (0, b"/annex/objects/", "a pointer of git-annex", FETCH + "datalad get, or git annex get"),
    (0, b"\x1f\x8b", "a gzip file in a gzip file", "unpack it once"),
    (0, b"BZh", "a bzip2 file", UNPACK),
    (0, b"\xfd7zXZ", "an xz file", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard file", UNPACK),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"<!DOCTYPE", "a web page", "the download failed or asks for a login: fetch it again"),
    (0, b"<html", "a web page", "the download failed or asks for a login: fetch it again"),
    (128, b"DICM", "a DICOM file", "give the folder of its series, or the file by a name without .nii"),
    (0, b"\x89HDF", "an HDF5 file (MINC 2?)", CONVERT),
    (344, b"ni1\0", "the header half of a NIfTI pair", "give it the ending .hdr, beside its .img"),
    (4, b"ni2\0", "the header half of a NIfTI pair", "give it the ending .hdr, beside its .img"),
    (0, b"NRRD000", "an NRRD file", "give it the ending .nrrd, and unpack it if it is packed"),
    (0, b"ObjectType", "a MetaImage file", "give it the ending .mha, and unpack it if it is packed"),
    (257, b"ustar", "a tar archive", "unpack it, and give the folder or the scan in it"),
    (0, b"MATLAB 5.0", "a MATLAB file", "save its array with numpy.save, or the scan as .nii.gz"),
)


def name_content(head: bytes) -> tuple[str, str]:
    """Name the file type that the first bytes suggest, and one thing to try; no text of the file is repeated.

    Args:
        head: some 350 bytes, decompressed.
    """
    if not head:
        return "no bytes at all", "copy or download it again"
    if not head.strip(b"\0"):
        return "zeros", "copy or download it again"
    for place, magic, words, hint in _KNOWN:
        if head[place : place + len(magic)] == magic:
            return words, hint
    if 348 in {int.from_bytes(head[:4], order) for order in ("little", "big")}:
        return "an Analyze 7.5 header", "convert it again from DICOM: Analyze does not say where left is"
    return f"a file that begins with {head[:8]!r}", CONVERT
