"""Copies: images that are there twice, under the same identifier or another one."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.formats.dicom.attributes import silenced

if TYPE_CHECKING:
    from pathlib import Path

    from neuroflamingo_preprocessing.formats.dicom.attributes import Image

FEW = 4
"""Largest number of images at one place whose pixels are compared: runs have more, and their frames differ."""


def without_copies(images: Sequence[Image]) -> tuple[list[Image], list[str]]:
    """The images of a series, each once; also gives warnings.

    A file with the identifier (SOPInstanceUID) of another one is a copy only if it also shows the same place at the
    same time: programs that remove identifiers may give all images of a series the same one. Images with identifiers
    of their own are copies if place and pixels are the same, as after a second export.
    """
    seen: dict[Any, Path] = {}
    kept: list[Image] = []
    identifiers: dict[str, set[Path]] = defaultdict(set)
    for image in images:
        key = image.instance, image.order, *_what(image)
        if not image.instance or seen.setdefault(key, image.file) == image.file:
            kept.append(image)
            identifiers[image.instance].add(image.file)
    shared = max((len(files) for identifier, files in identifiers.items() if identifier), default=0)
    kept, again = _without_same_pixels(kept)
    copies = len(images) - len(kept)
    warnings = [f"{copies} of its images exist twice; the copies were left out"] if copies else []
    if again:
        warnings[0] += f" ({again} of them under other identifiers)"
    if shared > 1:
        warnings.append(f"{shared} of its images have one and the same identifier (SOPInstanceUID); all are used")
    return kept, warnings


def _what(image: Image) -> tuple[Any, ...]:
    return image.frame, image.position, image.orientation, image.component, image.times


def _without_same_pixels(images: list[Image]) -> tuple[list[Image], int]:
    """Images without those of the same place and the same pixels as an earlier one, and the number left out."""
    places: dict[Any, list[Image]] = defaultdict(list)
    for image in images:
        if image.form == "classic" and image.position is not None and image.b_value is None:
            places[_what(image)].append(image)
    doubtful = [group for group in places.values() if len(group) > 1]
    if not doubtful or max(map(len, doubtful)) > FEW:
        return images, 0
    copies = {id(image) for group in doubtful for image in _copies(group)}
    return [image for image in images if id(image) not in copies], len(copies)


def _copies(group: list[Image]) -> list[Image]:
    first: dict[str, Image] = {}
    digests = [(_pixels(image.file), image) for image in group]
    return [image for digest, image in digests if digest and first.setdefault(digest, image) is not image]


def _pixels(file: Path) -> str:
    """Hash of the stored pixels; empty where they cannot be read."""
    from pydicom import dcmread

    try:
        with silenced():
            return hashlib.sha256(dcmread(file, force=True, specific_tags=["PixelData"]).PixelData).hexdigest()
    except Exception:  # of many types, with values of the header in their messages
        return ""
