"""NRRD (`.nrrd`, `.nhdr`) and MetaImage (`.mha`, `.mhd`): headers held to NIfTI's policy, voxels read by ITK."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError, not_readable
from neuroflamingo_preprocessing.files import sha256_of, sha256_of_text
from neuroflamingo_preprocessing.formats.nifti.header import CheckedHeader, check_shape
from neuroflamingo_preprocessing.formats.nifti.orientation import DAMAGED, check_columns, check_extent
from neuroflamingo_preprocessing.formats.nifti.read_nifti import modality_of, to_float
from neuroflamingo_preprocessing.formats.nifti.voxels import MOST_DEFLATED, refuse_bomb, truncated
from neuroflamingo_preprocessing.formats.nifti.xform import Xform, refuse_xform
from neuroflamingo_preprocessing.geometry import Affine, orientation_codes
from neuroflamingo_preprocessing.scan import Provenance, Scan

if TYPE_CHECKING:
    import SimpleITK as sitk

ENDINGS = {".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage"}
MAX_HEADER = 2**16
SPACES = {
    *("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las"),
}
"""Spaces of NRRD in which left is known, and which ITK turns into its own."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
BITS = {"8-bit": 1, "16-bit": 2, "32-bit": 4, "64-bit": 8}
NO_LEFT = "convert the scan again from DICOM, or set the orientation if you are certain of it"


@dataclass(frozen=True)
class _Layout:
    """Voxels by the header: their sizes, their file, how many bytes are there, and whether they are packed."""

    sizes: list[int]
    data: Path
    stored: int
    packed: bool


def is_itk(name: str | Path) -> bool:
    """True for the name of an NRRD or MetaImage file."""
    return Path(name).suffix.lower() in ENDINGS


def itk_sizes(path: Path) -> tuple[int, ...]:
    """Sizes that the header claims.

    Raises:
        ScanError: not such a file.
    """
    return tuple(_layout(path)[0].sizes)


def read_itk(path: Path, xform: Xform = "auto") -> Scan:
    """Read one volume of an NRRD or MetaImage file.

    Args:
        path: the file; voxels in a file of their own must lie in the same folder.
        xform: must be `auto`: these formats have one affine.

    Raises:
        ScanError: a header that does not say where left is, claims more than the file holds, or names other files.
    """
    import SimpleITK as sitk

    kind = ENDINGS[path.suffix.lower()]
    try:
        layout, head = _layout(path)
        refuse_xform(path.name, xform, kind)
        shape, _ = check_shape([len(layout.sizes), *layout.sizes], path.name, run=False)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("NrrdImageIO" if kind == "NRRD" else "MetaImageIO")
        reader.ReadImageInformation()
        checked = _checked(reader, shape, path.name, kind)
        _refuse_short(layout, checked, path.name)
        stored = sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except RuntimeError as error:  # ITK's only type; its messages hold paths
        raise truncated(path.name, f"ITK cannot read it as {kind}") from error
    except OSError as error:
        raise not_readable(path, error) from error
    voxels, warnings = to_float(stored, checked, path.name)
    provenance = Provenance(
        file=path.name,
        sha256=_digest(path, layout.data),
        header_sha256=hashlib.sha256(head).hexdigest(),
        header=checked.facts,
        warnings=(*checked.warnings, *warnings),
    )
    return Scan(voxels, checked.affine, modality_of(path.name), provenance)


def _layout(path: Path) -> tuple[_Layout, bytes]:
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER)
    return _of_nrrd(start, path) if ENDINGS[path.suffix.lower()] == "NRRD" else _of_meta(start, path)


def _of_nrrd(start: bytes, path: Path) -> tuple[_Layout, bytes]:
    head, blank, _ = (
        re.split(rb"(\r?\n\r?\n)", start, maxsplit=1) if re.search(rb"\r?\n\r?\n", start) else (start, b"", b"")
    )
    if not start.startswith(b"NRRD000"):
        raise _no_file(path.name, "NRRD", "a text that begins with NRRD0004 or the like")
    _refuse_twice(head, rb"data ?file", path.name)
    fields = _fields(head, ":")
    if fields.get("space", "").strip().lower() not in SPACES or "space directions" not in fields:
        raise ScanError(
            f"{path.name} does not say how it lies in the world, so left and right cannot be told",
            expected="space directions, and a space: left-posterior-, right-anterior- or left-anterior-superior",
            seen="another space" if "space" in fields else "no space",
            hint=NO_LEFT,
        )
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    if units - {"mm", ""} or fields.get("encoding", "").strip().lower() not in ("raw", "gzip", "gz"):
        raise ScanError(
            f"{path.name}: this kind of NRRD is not read",
            expected="voxels as raw or gzip, in millimetres",
            seen="other units" if units - {"mm", ""} else "another encoding",
            hint="save it again as .nii.gz",
        )
    packed = fields["encoding"].strip().lower() != "raw"
    file = fields.get("data file", fields.get("datafile"))
    return _found(path, fields.get("sizes", ""), file, len(head) + len(blank), packed), head


def _of_meta(start: bytes, path: Path) -> tuple[_Layout, bytes]:
    last = re.search(rb"(?m)^ElementDataFile\s*=\s*([^\r\n]*)\r?\n?", start)
    if last is None or not re.search(rb"(?m)^NDims\s*=", start[: last.end()]):
        raise _no_file(path.name, "MetaImage", "NDims, DimSize and, last, ElementDataFile")
    _refuse_twice(start[: last.end()], rb"ElementDataFile", path.name)
    fields = _fields(start[: last.end()], "=")
    turned = {"transformmatrix", "rotation", "orientation"} & fields.keys()
    placed = {"offset", "position", "origin"} & fields.keys()
    if not turned or not placed or not {"elementspacing", "elementsize"} & fields.keys():
        raise ScanError(
            f"{path.name} does not say how it lies in the world, so left and right cannot be told",
            expected="TransformMatrix, Offset and ElementSpacing",
            seen="not all of them",
            hint=NO_LEFT,
        )
    if fields.get("binarydata", "true").strip().lower() != "true":
        raise ScanError(
            f"{path.name}: voxels as text are not read", expected="BinaryData = True", hint="save it as .nii.gz"
        )
    name = fields["elementdatafile"].strip()
    packed = fields.get("compresseddata", "false").strip().lower() == "true"
    return _found(
        path, fields.get("dimsize", ""), None if name.upper() == "LOCAL" else name, last.end(), packed
    ), start[: last.end()]


def _refuse_twice(head: bytes, field: bytes, name: str) -> None:
    """Refuse a header that names its data more than once, in whatever letters: ITK might take the other name."""
    if len(re.findall(field, head, re.IGNORECASE)) > 1:
        raise ScanError(f"{name} names the file of its voxels more than once", expected="once", hint=DAMAGED)


def _fields(head: bytes, mark: str) -> Mapping[str, str]:
    pairs = (line.partition(mark) for line in head.decode("latin-1").splitlines() if not line.startswith("#"))
    return {key.strip().lower(): value.lstrip("=") for key, found, value in pairs if found}


def _found(path: Path, sizes: str, file: str | None, begins: int, packed: bool) -> _Layout:
    words = sizes.split()
    if not words or not all(word.isdigit() and len(word) < 10 for word in words):
        raise ScanError(f"{path.name}: the header's sizes are impossible", expected="whole numbers", hint=DAMAGED)
    if file is None:
        return _Layout([int(word) for word in words], path, path.stat().st_size - begins, packed)
    name = file.strip()
    data = path.parent / name
    if (
        not name
        or name in (".", "..")
        or re.search(r"[/\\\0%]|^LIST\b", name)
        or data.is_symlink()
        or not data.is_file()
    ):
        raise ScanError(
            f"{path.name}: its voxels are not in one file beside it",
            expected="the plain name of a file in the same folder",
            seen="a name with folders, a pattern, a link, or a file that is not there",
            hint="put both files into one folder under their own names, or save it as .nrrd, .mha or .nii.gz",
        )
    return _Layout([int(word) for word in words], data, data.stat().st_size, packed)


def _checked(reader: sitk.ImageFileReader, shape: tuple[int, int, int], name: str, kind: str) -> CheckedHeader:
    import SimpleITK as sitk

    words = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    size = next((count for bits, count in BITS.items() if words.startswith(bits)), None)
    if size is None or reader.GetNumberOfComponents() != 1 or tuple(reader.GetSize()) != shape:
        raise ScanError(
            f"{name}: voxels of this type cannot be read",
            expected="one whole or floating-point number for each voxel",
            seen=f"{words}, {reader.GetNumberOfComponents()} for each voxel",
            hint="save the scan as float32",
        )
    sign = "f" if "float" in words else "u" if "unsigned" in words else "i"
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.array(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    placed: Affine = LPS_TO_RAS @ affine
    warnings: list[str] = []
    check_columns(placed, name, "affine", warnings)
    check_extent(placed, shape, name, "mm")
    facts = {
        "format": kind,
        "shape": " x ".join(map(str, shape)),
        "stored type": str(np.dtype(f"{sign}{size}")),
        "units": "mm",
        "affine from": "directions",
        "orientation": orientation_codes(placed),
    }
    return CheckedHeader(shape, 1, np.dtype(f"{sign}{size}"), 0, 1.0, 0.0, placed, facts, tuple(warnings))


def _refuse_short(layout: _Layout, checked: CheckedHeader, name: str) -> None:
    if not layout.packed and layout.stored < checked.data_bytes:
        raise truncated(name, f"{max(layout.stored, 0)} of {checked.data_bytes} bytes of voxels")
    if layout.packed:
        if checked.data_bytes > MOST_DEFLATED * layout.stored:
            raise truncated(
                name, f"{layout.stored} packed bytes, which cannot hold {checked.data_bytes} bytes of voxels"
            )
        refuse_bomb(name, checked.data_bytes, checked.dtype.itemsize, layout.stored)


def _digest(path: Path, data: Path) -> str:
    """Hash of the file, or of the hashes of both files."""
    return sha256_of(path) if path == data else sha256_of_text(sha256_of(path) + sha256_of(data))


def _no_file(name: str, kind: str, expected: str) -> ScanError:
    return ScanError(
        f"{name} is not an {kind} file" if kind == "NRRD" else f"{name} is not a {kind} file",
        expected=expected,
        hint=DAMAGED,
    )
