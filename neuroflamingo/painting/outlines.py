"""Outlines of real lesions, from masks in MNI space: a second source of shapes and places beside the drawn ones."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from scipy import ndimage

from neuroflamingo.painting.anatomy import Volume
from neuroflamingo.painting.lesions import Outline
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.files import sha256_of, write_bytes_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_ML, LARGEST_ML = 0.3, 400.0
"""Smaller ones are below the least diameter of a finding; larger ones are no infarcts but faults of a mask."""
SPACING_MM, MARGIN_MM = 2.0, 12.0
HELD_OUT = 5
"""One in so many outlines, by the hash of its name, is kept for validation and testing."""


def load_outlines(
    path: str | Path, part: Literal["training", "held out"] = "training", cache: Path | None = None
) -> tuple[Outline, ...]:
    """Outlines of the largest connected piece of each mask; empty, tiny and impossible masks are left out.

    Args:
        path: folder or tar archive of NIfTI masks in MNI space (values above 0.5 are lesion).
        part: which outlines; a fifth is held out.
        cache: folder in which what is made of an archive is kept, under its hash.

    Raises:
        NotFoundError: nothing there, or no masks in it (exit 66).
        ScanError: a mask that cannot be read (exit 65).
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no {path}", expected="a folder or tar archive of lesion masks in MNI space")
    kept = None if cache is None or path.is_dir() else cache / f"{sha256_of(path)[:32]}.outlines.npz"
    if kept is not None and kept.is_file():
        outlines = _unpacked(kept)
    else:
        outlines = [] if kept else _outlines(path, part)  # only what is asked for, unless all is kept for another time
        if not outlines:
            outlines = _outlines(path)
        if not outlines:
            raise NotFoundError(f"there are no lesion masks in {path}", expected="NIfTI masks in MNI space")
        if kept is not None:
            write_bytes_atomic(kept, _packed(outlines), overwrite=True)
    return tuple(one for one in outlines if _is_held_out(one.name) is (part == "held out"))


def _outlines(path: Path, part: str | None = None) -> list[Outline]:
    files = (file for file in _masks(path) if part is None or _is_held_out(file[0]) is (part == "held out"))
    return [one for name, data in files if (one := _outline(name, data)) is not None]


def _is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0


def _masks(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.nii*")):
            yield file.name, file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith((".nii", ".nii.gz")) else None
            if file is not None:
                yield Path(member.name).name, file.read()


def _outline(name: str, data: bytes) -> Outline | None:
    """The largest piece of a mask, sampled every 2 mm; None if it is no lesion that a report would name."""
    mask, affine = _read_mask(name, data)
    step = max(1, round(SPACING_MM / float(np.linalg.norm(affine[:3, 0]))))
    labels, count = ndimage.label(mask)
    if not count:
        return None
    largest = 1 + int(np.argmax(np.bincount(labels.reshape(-1))[1:]))
    box = ndimage.find_objects(labels)[largest - 1]
    apart = round(MARGIN_MM / SPACING_MM) * step
    piece = np.pad(labels[box] == largest, apart)
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    volume_ml = float(piece.sum()) * float(np.prod(voxel_mm)) / 1000.0
    if not SMALLEST_ML <= volume_ml <= LARGEST_ML:
        return None
    distance = ndimage.distance_transform_edt(~piece, voxel_mm) - ndimage.distance_transform_edt(piece, voxel_mm)
    inside = affine[:3, :3] @ np.argwhere(piece).T + affine[:3, 3:]
    first = np.array([part.start for part in box]) - apart
    corner = affine[:3, :3] @ first + affine[:3, 3]
    inside += (affine[:3, :3] @ first)[:, None]
    centre = inside.mean(axis=1)
    radius = (3000.0 * volume_ml / (4.0 * np.pi)) ** (1 / 3)
    place = np.eye(4)
    place[:3, :3], place[:3, 3] = affine[:3, :3] * step / radius, (corner - centre) / radius
    every = (slice(None, None, step),) * 3
    extent = float(np.linalg.norm(inside - centre[:, None], axis=0).max()) / radius
    sampled = Volume((distance[every] / radius)[None].astype(np.float32), place)
    return Outline(name, centre.astype(np.float32), radius, extent, sampled)


def _read_mask(name: str, data: bytes) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    try:
        raw = gzip.decompress(data) if name.endswith(".gz") else data
        image = nib.Nifti1Image.from_bytes(raw)
        mask = np.asarray(image.dataobj) > 0.5
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise ScanError(f"{name} cannot be read", expected="a NIfTI mask", seen=str(error)) from error
    if mask.ndim != 3:
        raise ScanError(f"{name} is not one mask", expected="three dimensions", seen=f"shape {list(mask.shape)}")
    return mask, np.asarray(image.affine, dtype=np.float64)


def _packed(outlines: list[Outline]) -> bytes:
    parts: dict[str, NDArray] = {"names": np.array([one.name for one in outlines])}
    for number, one in enumerate(outlines):
        parts[f"distance {number}"] = one.distance.data[0].astype(np.float16)
        parts[f"place {number}"] = one.distance.affine
        parts[f"ball {number}"] = np.array([*one.centre, one.radius_mm, one.extent])
    stream = BytesIO()
    np.savez_compressed(stream, **parts)  # type: ignore[arg-type]
    return stream.getvalue()


def _unpacked(file: Path) -> list[Outline]:
    with np.load(file) as parts:
        return [
            Outline(
                str(name),
                parts[f"ball {number}"][:3].astype(np.float32),
                float(parts[f"ball {number}"][3]),
                float(parts[f"ball {number}"][4]),
                Volume(parts[f"distance {number}"][None].astype(np.float32), parts[f"place {number}"]),
            )
            for number, name in enumerate(parts["names"])
        ]
