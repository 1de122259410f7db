"""`read_zarr`: read scans in zarr folders that state their orientation.

Two forms are supported; of several resolutions the first, which is the full one, is read:

- **NIfTI-Zarr** (1.0.rc1: an OME-Zarr image with the binary NIfTI header as the array `nifti` beside it). The header
  takes precedence, as the draft says; its sizes and type must be those of the array.
- **An array with axes x, y, z** with the attributes `{"neuroflamingo": {"affine": 4 x 4, "world": "RAS+ mm"}}`.

OME-Zarr alone is refused: its scales and translations do not tell left from right.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError, not_readable
from neuroflamingo_preprocessing.formats.nifti.header import CheckedHeader, check_header, check_shape
from neuroflamingo_preprocessing.formats.nifti.orientation import check_columns, check_extent
from neuroflamingo_preprocessing.formats.nifti.voxels import refuse_bomb, truncated
from neuroflamingo_preprocessing.formats.zarr.chunks import check_frames
from neuroflamingo_preprocessing.formats.zarr.metadata import (
    METADATA,
    ArrayMetadata,
    damaged,
    fingerprint,
    read_array_metadata,
    read_group,
)
from neuroflamingo_preprocessing.geometry import orientation_codes
from neuroflamingo_preprocessing.scan import Provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.formats.nifti.xform import Xform

OWN = "neuroflamingo"
WORLD = "RAS+ mm"
MAX_HEADER_BYTES = 4096


def read_zarr(path: Path, xform: Xform = "auto") -> tuple[NDArray[Any], CheckedHeader, Provenance]:
    """Read the stored voxels `[x, y, z]`, their header and their provenance.

    Raises:
        ScanError: no orientation, metadata that claim too much or contradict the header, links, unknown codecs,
            damaged chunks.
    """
    name = path.name
    try:
        digest, size = fingerprint(path)  # refuses links before anything is followed
    except OSError as error:
        raise not_readable(name, error) from error
    attributes, group = read_group(path, name)
    warnings: list[str] = []
    if group:
        level, axes = _first_level(attributes, name)
        array = read_array_metadata(path / level, name)
        raw_header = _nifti_bytes(path, name)
        checked = check_header(_header_of(raw_header, name), name, xform=xform, single_file=False)
        folder = path / level
    else:
        array, folder = read_array_metadata(path, name), path
        axes = list(array.names)
        checked = _own_header(array, name, xform)
        raw_header = (path / "zarr.json" if array.zarr_format == 3 else path / ".zarray").read_bytes()
    order = _order(axes, array, checked, name)
    refuse_bomb(name, math.prod(array.shape) * array.dtype.itemsize, array.dtype.itemsize, size)
    stored = _read(folder, array, name, warnings)
    stored = stored.reshape([n for n, axis in zip(array.shape, axes, strict=True) if axis in "xyz"]).transpose(order)
    provenance = Provenance(
        file=name,
        sha256=digest,
        header_sha256=hashlib.sha256(raw_header).hexdigest(),
        header=checked.facts | {"format": f"{'NIfTI-Zarr' if group else 'zarr'}, version {array.zarr_format}"},
        warnings=(*checked.warnings, *warnings),
    )
    return stored, checked, provenance


def zarr_sizes(path: Path) -> tuple[int, ...]:
    """Sizes that the full resolution claims, x, y and z first.

    Raises:
        ScanError: not an image, or metadata that claim too much.
    """
    attributes, group = read_group(path, path.name)
    level, axes = _first_level(attributes, path.name) if group else (".", [])
    array = read_array_metadata(path / level, path.name)
    sizes = dict(zip(axes or array.names, array.shape, strict=False))
    return tuple(sizes.pop(axis, 1) for axis in "xyz") + tuple(sizes.values())


def _first_level(attributes: dict[str, Any], name: str) -> tuple[str, list[str]]:
    """Path of the full resolution, and the names of its axes."""
    try:
        image = attributes.get("ome", attributes)["multiscales"][0]
        level = image["datasets"][0]["path"]
        axes = [str(axis["name"]) for axis in image["axes"]]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _unplaced(name, "a zarr group without the multiscales of an image") from error
    if not isinstance(level, str) or not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+){0,3}", level):
        raise damaged(name, "the name of an array inside the folder", level)
    return level, axes


def _nifti_bytes(path: Path, name: str) -> bytes:
    if not any((path / "nifti" / file).is_file() for file in METADATA[:2]):
        raise _unplaced(name, "an OME-Zarr image without the array `nifti`")
    array = read_array_metadata(path / "nifti", name)
    if int(np.prod(array.shape)) * array.dtype.itemsize > MAX_HEADER_BYTES:
        raise damaged(name, "a NIfTI header of 348 or 540 bytes", f"{array.shape} of {array.dtype}")
    return _read(path / "nifti", array, name, []).tobytes()


def _header_of(raw_header: bytes, name: str) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    sizes = {int.from_bytes(raw_header[:4], order) for order in ("little", "big")}
    for size, kind in ((348, Nifti1Header), (540, Nifti2Header)):
        if size in sizes and len(raw_header) >= size:
            return kind(raw_header[:size], check=False)
    raise damaged(
        name, "a NIfTI header of 348 or 540 bytes", f"{len(raw_header)} bytes that begin with {raw_header[:8]!r}"
    )


def _own_header(array: ArrayMetadata, name: str, xform: Xform) -> CheckedHeader:
    attributes = array.attributes.get(OWN)
    if not isinstance(attributes, dict) or attributes.get("world") != WORLD:
        raise _unplaced(name, "a zarr array without them")
    try:
        affine = np.array(attributes["affine"], dtype=np.float64).reshape(4, 4)
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(name, "an affine of 4 x 4 numbers", error) from error
    if xform != "auto" or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise damaged(name, "one affine, its last row 0 0 0 1" if xform == "auto" else "no --xform", affine[3])
    sizes = dict(zip(array.names, array.shape, strict=False))
    if len(sizes) != len(array.shape) or not set("xyz") <= set(sizes):
        raise damaged(name, f"names for {len(array.shape)} axes, x, y and z among them", array.names)
    turned = [sizes.pop(axis) for axis in "xyz"] + list(sizes.values())
    shape, _ = check_shape([len(turned), *turned], name, run=False)
    warnings: list[str] = []
    check_columns(affine, name, "affine", warnings)
    check_extent(affine, shape, name, "mm")
    facts = {
        "shape": " x ".join(map(str, shape)),
        "stored type": str(array.dtype),
        "units": "mm",
        "affine from": "attributes",
        "orientation": orientation_codes(affine),
    }
    return CheckedHeader(shape, 1, array.dtype, 0, 1.0, 0.0, affine, facts, tuple(warnings))


def _order(axes: list[str], array: ArrayMetadata, checked: CheckedHeader, name: str) -> list[int]:
    """Permutation of the spatial axes to x, y, z; all other axes must have size 1."""
    space = [axis for axis in axes if axis in ("x", "y", "z")]
    if len(axes) != len(array.shape) or sorted(space) != ["x", "y", "z"]:
        raise damaged(name, f"names for {len(array.shape)} axes, x, y and z among them", axes)
    sizes = dict(zip(axes, array.shape, strict=True))
    if any(sizes[axis] != 1 for axis in axes if axis not in space):
        raise ScanError(
            f"{name} holds several volumes",
            expected="one 3D volume",
            seen=" x ".join(f"{axis}={n}" for axis, n in sizes.items()),
            hint="extract one volume first, or give the T1-weighted scan instead of the time series",
        )
    shape = sizes["x"], sizes["y"], sizes["z"]
    if shape != checked.shape or array.dtype.newbyteorder("=") != checked.dtype.newbyteorder("="):
        seen = f"{shape} of {array.dtype}"
        raise damaged(name, f"the array that the header describes: {checked.shape} of {checked.dtype}", seen)
    return [space.index(axis) for axis in "xyz"]


def _read(folder: Path, array: ArrayMetadata, name: str, warnings: list[str]) -> NDArray[Any]:
    import zarr

    try:
        if array.packing is not None:
            check_frames(folder, array.packing, name)
        opened: Any = zarr.open_array(folder, mode="r", zarr_format=array.zarr_format)  # type: ignore[arg-type]
        there, all_chunks = opened.nchunks_initialized, opened.nchunks
        stored = np.asarray(opened[...])
    except (MemoryError, ScanError):
        raise
    except Exception as error:  # the library and its codecs raise a dozen types
        raise truncated(name, f"{type(error).__name__}: {error}"[:200]) from error
    if there < all_chunks:
        warnings.append(f"{all_chunks - there} of {all_chunks} chunks are missing and count as the fill value")
    return stored


def _unplaced(name: str, seen: str) -> ScanError:
    return ScanError(
        f"{name} does not define its orientation, so left and right cannot be told apart",
        expected=f"NIfTI-Zarr, or an array x, y, z with attributes {{'{OWN}': {{'affine': ..., 'world': '{WORLD}'}}}}",
        seen=seen,
        hint="convert it from its NIfTI file with nifti-zarr, or give that file",
    )
