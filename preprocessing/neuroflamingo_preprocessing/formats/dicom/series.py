"""`group_series`: group DICOM images into series, and judge kind, geometry and completeness of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.formats.dicom.attributes import COMPRESSED, UNCOMPRESSED, Form, Image, Triple
from neuroflamingo_preprocessing.formats.dicom.copies import without_copies
from neuroflamingo_preprocessing.formats.dicom.series_kind import (
    SHOTS_MS,
    Kind,
    inversion_images,
    is_prepared,
    is_uniform,
    judge_kind,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import Affine

SAME_PLACE_MM = 0.02
EVEN_SHARE = 0.05
"""Largest deviation of a slice distance from the median, as a share of it."""
ECHO_MS, ECHO_SHARE, COSINE, PIXEL_SHARE = 0.05, 0.02, 0.01, 0.01
"""Differences up to which echo times (the larger of the two counts), direction cosines and pixel sizes are the same:
scanners compute them anew for each slice."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """Stack of images that belong together: a series, or the part of one with its own echo or component.

    Attributes:
        number: number for `--series`: SeriesNumber, or a count from 1 where numbers are missing or not unique.
        part: such as `echo 2 of 2, phase`; empty for a series of one part.
        kind: judged from image type, sequence and times.
        form: `classic` (a file per slice), `enhanced` (many frames per file) or `mosaic` (a file per volume).
        modality: such as MR.
        slices, volumes: numbers of slices and volumes; slices is 1 for a mosaic that does not state it.
        rows, columns: of a slice.
        spacing: along a row, down a column, from slice to slice, mm; None where not stated.
        three_d: True if acquired as a volume.
        head: False if the header names another part of the body.
        agent: True if a contrast agent is stated or described.
        described: what the series' description says of the kind of image, where that is not T1-weighted.
        prepared: True for magnetisation prepared by inversion (MPRAGE).
        order: order of the parts; the first magnitude echo is 0.
        echo_time: in ms; None where not stated.
        component: `magnitude`, `phase`, `real` or `imaginary`.
        maker, syntax: manufacturer and transfer syntax, from closed lists.
        affine: column, row, slice to RAS mm, from the headers alone; None for mosaics.
        tilt_degrees: gantry tilt; 0 for none.
        fault: reason why it cannot be converted; None if it can.
        warnings: oddities that do not make it unusable.
        files: files of the images, without duplicates.
        frames: file and frame index of each slice of each volume, in the slice direction of the affine; empty for
            mosaics and for series with a fault.
    """

    number: int
    part: str
    kind: Kind
    form: Form
    modality: str
    slices: int
    volumes: int
    rows: int
    columns: int
    spacing: Triple | None
    three_d: bool
    head: bool
    agent: bool
    described: tuple[str, ...]
    prepared: bool
    order: int
    echo_time: float | None
    component: str
    maker: str
    syntax: str
    affine: Affine | None
    tilt_degrees: float
    fault: str | None
    warnings: tuple[str, ...]
    files: tuple[Path, ...]
    frames: tuple[tuple[Path, int], ...]

    @property
    def name(self) -> str:
        """Name in records and messages."""
        return f"DICOM series {self.number}"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of columns, rows and slices."""
        return self.columns, self.rows, self.slices

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without identifiers and paths."""
        kept = (
            "number",
            "part",
            "kind",
            "form",
            "modality",
            "slices",
            "volumes",
            "rows",
            "columns",
            "three_d",
            "fault",
        )
        return {key: getattr(self, key) for key in kept} | {
            "spacing_mm": None if self.spacing is None else [round(mm, 3) for mm in self.spacing],
            "words": self.describe(),
        }

    def describe(self) -> str:
        """Description in one line."""
        sizes = f"{self.slices} slice{'s' * (self.slices > 1)} of {self.columns} x {self.rows}"
        sizes += f", {self.volumes} volumes" if self.volumes > 1 else ""
        sizes += "" if self.spacing is None else ", " + " x ".join(f"{mm:.3g}" for mm in self.spacing) + " mm"
        words = [self.part, self.kind + (" (3D)" if self.three_d else ""), sizes]
        words += [self.modality] if self.modality != "MR" else []
        words += ["with contrast agent"] if self.agent else []
        words += [] if self.head else ["not of the head"]
        words += [self.fault] if self.fault else []
        return f"series {self.number}: " + ", ".join(word for word in words if word)


def group_series(images: Iterable[Image]) -> list[Series]:
    """Group images into series, sorted by number, then part."""
    groups: dict[str, list[Image]] = {}
    for image in images:
        groups.setdefault(image.series, []).append(image)
    by_number = sorted(
        groups.values(), key=lambda group: (group[0].number is None, group[0].number or 0, group[0].series)
    )
    numbers = [group[0].number for group in by_number]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    inversions, found = inversion_images(by_number), []
    for place, (number, group) in enumerate(zip(numbers, by_number, strict=True)):
        kept, warnings = without_copies(group)
        parts = _parts(int(number or 0), kept, warnings)
        found += [_as_inversion(part, inversions[place]) for part in parts] if place in inversions else parts
    return found


def _as_inversion(series: Series, time: float) -> Series:
    """An image of one inversion, which is not taken for a T1-weighted head."""
    part = ", ".join(word for word in (series.part, f"MP2RAGE inversion image at {time:.0f} ms") if word)
    said = "it is one inversion of an MP2RAGE, not its uniform image, which shows T1-weighted contrast"
    kind = "other" if series.kind in ("T1w", "PDw", "unknown") else series.kind
    return replace(series, part=part, kind=kind, warnings=(*series.warnings, said))


def clusters(values: Sequence[float], least: float, share: float = 0.0) -> NDArray[np.intp]:
    """Number of the cluster of each value, from 0, in order of the values: a larger step than allowed begins a new one.

    Unlike rounding, this never separates values that lie close to each other on two sides of a boundary.

    Args:
        values: in any order.
        least, share: largest step within a cluster: `least`, or that share of the value if it is more.
    """
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, float)[order]
    steps = np.diff(ordered) > np.maximum(least, share * np.abs(ordered[:-1]))
    found = np.empty(len(order), np.intp)
    found[order] = np.concatenate([[0], np.cumsum(steps)])
    return found


def _keys(images: list[Image]) -> list[tuple[Any, ...]]:
    """What sets the parts of a series apart, for each image: component, echo, form, sizes, direction.

    Every number is compared within a tolerance, see `clusters`; whole numbers are compared as they are.
    """
    components = ("magnitude", "phase", "real", "imaginary")
    echoes = clusters([-1.0 if image.times[1] is None else image.times[1] for image in images], ECHO_MS, ECHO_SHARE)
    pixels = np.array([image.spacing or (0.0, 0.0) for image in images])
    directions = np.array([image.orientation or (0.0,) * 6 for image in images])
    sizes = np.stack([clusters(column, 0.0, PIXEL_SHARE) for column in pixels.T], axis=1)
    turns = np.stack([clusters(column, COSINE) for column in directions.T], axis=1)
    return [
        (components.index(image.component), int(echo), image.form, image.rows, image.columns, *size, *turn)
        for image, echo, size, turn in zip(images, echoes, sizes.tolist(), turns.tolist(), strict=True)
    ]


def _parts(number: int, images: list[Image], warnings: list[str]) -> list[Series]:
    """Split a series by echo, component, form, direction, image and pixel size."""
    keyed = sorted(zip(_keys(images), range(len(images)), strict=True))
    groups = [(key, [images[n] for _, n in group]) for key, group in groupby(keyed, key=lambda pair: pair[0])]
    echoes = sorted({key[1] for key, _ in groups})
    directions = {key[-6:] for key, _ in groups}
    found = []
    for order, (key, group) in enumerate(groups):
        first = group[0]
        part = [f"echo {echoes.index(key[1]) + 1} of {len(echoes)}"] if len(echoes) > 1 else []
        part += [first.component] if first.component != "magnitude" else []
        said = [*warnings, *(_numbering(group) if len(groups) == 1 else [])]
        series = _series(number, ", ".join(part), order, group, said)
        if len(directions) > 1 and series.kind not in ("phase", "derived"):  # localizers have several directions
            series = replace(series, kind="localizer")
        found.append(series)
    return found


def _numbering(images: list[Image]) -> list[str]:
    """What the images' own numbers say of others that are not here; only classic images count through the series."""
    numbers = {image.order for image in images}
    first, last = min(numbers), max(numbers)
    if images[0].form != "classic" or len(numbers) < len(images) or last - first < len(images):
        return []
    return [f"its images are numbered from {first} to {last}, but {len(images)} are here: some may be missing"]


def _series(number: int, part: str, order: int, images: list[Image], warnings: list[str]) -> Series:
    first = images[0]
    stack = _Stack(images)
    files = tuple(dict.fromkeys(image.file for image in images))
    fault = _fault(images, files) or stack.fault
    announced = first.announced
    if stack.volumes == 1 and first.form == "classic" and announced and announced > len(images):
        warnings = [
            *warnings,
            f"the header announces {announced} images, {len(images)} are here: some may be missing at an end",
        ]
    kind = judge_kind(images, stack.volumes)
    if kind == "T1w" and first.three_d and (first.times[0] or 0.0) >= SHOTS_MS and not is_uniform(first):
        said = f"its repetition time of {first.times[0]:.0f} ms is that of an MP2RAGE's inversions: is it one of them?"
        warnings = [*warnings, said]
    return Series(
        number=number,
        part=part,
        kind=kind,
        form=first.form,
        modality=first.modality,
        slices=stack.slices,
        volumes=stack.volumes,
        rows=first.rows,
        columns=first.columns,
        spacing=stack.spacing,
        three_d=first.three_d,
        head=first.head,
        agent=first.agent,
        described=first.described,
        prepared=is_prepared(first),
        order=order,
        echo_time=first.times[1],
        component=first.component,
        maker=first.maker,
        syntax=first.syntax,
        affine=stack.affine,
        tilt_degrees=stack.tilt_degrees,
        fault=fault,
        warnings=tuple(warnings),
        files=files,
        frames=stack.frames,
    )


def _fault(images: list[Image], files: Sequence[Path]) -> str | None:
    """Fault that no converter can mend: unknown compression, colour, truncated files; None if there is none."""
    syntaxes = {image.syntax for image in images}
    strange = sorted(syntaxes - UNCOMPRESSED - set(COMPRESSED))
    if strange:
        known = all(re.fullmatch(r"1\.2\.840\.10008\.[\d.]{1,40}", syntax) for syntax in strange)
        return f"its compression is not known here (transfer syntax {strange[0] if known else 'of its own'})"
    if not all(image.grey for image in images):
        return "it is in colour, or holds numbers of a palette"
    if any(image.inverted for image in images):
        return "its grey values are stored inverted (MONOCHROME1): dark and bright would be swapped"
    short = {image.file for image in images if image.cut}
    if short:
        return f"{len(short)} of {len(files)} files are truncated"
    return None


class _Stack:
    """Geometry of a stack of images: positions, spacing, tilt and affine, or a fault."""

    def __init__(self, images: list[Image]) -> None:
        first = images[0]
        self.fault: str | None = None
        self.slices, self.volumes, self.tilt_degrees = first.tiles, len(images), 0.0
        self.spacing: Triple | None = None
        self.affine: Affine | None = None
        self.frames: tuple[tuple[Path, int], ...] = ()
        if first.form == "mosaic":
            self._of_mosaic(images)
        elif first.orientation is None or first.spacing is None or any(image.position is None for image in images):
            self.slices, self.volumes = len(images), 1
            self.fault = "it does not say where its slices lie, so left and right cannot be told apart"
        else:
            self._of_slices(images, first)

    def _of_mosaic(self, images: list[Image]) -> None:
        if images[0].tiles == 1:
            self.fault = "it does not say how many slices a mosaic holds"

    def _of_slices(self, images: list[Image], first: Image) -> None:
        assert first.orientation is not None and first.spacing is not None
        along, down = np.array(first.orientation[:3]), np.array(first.orientation[3:])
        lengths = np.linalg.norm(along), np.linalg.norm(down)
        if not (np.allclose(lengths, 1, atol=0.01) and abs(along @ down) < 0.01):
            self.slices, self.volumes, self.fault = len(images), 1, "its direction is impossible"
            return
        normal = np.cross(along, down)
        images = sorted(images, key=lambda image: float(np.array(image.position) @ normal))
        positions = np.array([image.position for image in images])
        depth = positions @ normal
        new = np.flatnonzero(np.diff(depth, prepend=-np.inf) > SAME_PLACE_MM)
        places, depths = positions[new], depth[new]
        self.slices, self.volumes = len(new), len(images) // len(new)
        ends = [*(int(n) for n in new[1:]), len(images)]
        counts = {end - start for start, end in zip(new, ends, strict=True)}
        if len(counts) > 1:
            self.fault = f"it is incomplete: {len(images)} images for {len(new)} places"
        if len(new) < 2:
            self.fault = "it is a single slice"
            return
        steps = np.diff(depths)
        middle = float(np.median(steps))
        self.fault = self.fault or _uneven(steps, middle)
        step = (places[-1] - places[0]) / (len(places) - 1)
        aside = step - normal * (step @ normal)
        self.tilt_degrees = float(np.degrees(np.arctan2(np.linalg.norm(aside), step @ normal)))
        if np.abs(places - places[0] - np.arange(len(places))[:, None] * step).max() > max(0.1, EVEN_SHARE * middle):
            self.fault = self.fault or "its slices do not lie in one line"
        self.spacing = (first.spacing[1], first.spacing[0], middle)
        if not self.fault:
            stacks = [images[start:end] for start, end in zip(new, ends, strict=True)]
            by_place = [sorted(group, key=lambda image: (image.order, image.frame)) for group in stacks]
            self.frames = tuple((image.file, image.frame) for volume in zip(*by_place, strict=True) for image in volume)
        affine = np.eye(4)
        affine[:3, :3] = np.stack([along * first.spacing[1], down * first.spacing[0], step], axis=1)
        affine[:3, 3] = places[0]
        self.affine = LPS_TO_RAS @ affine


def _uneven(steps: Any, middle: float) -> str | None:
    off = np.abs(steps - middle) > max(SAME_PLACE_MM, EVEN_SHARE * middle)
    if not off.any():
        return None
    times = steps[off] / middle
    whole = np.round(times)
    if (whole >= 2).all() and np.allclose(times, whole, atol=0.1):
        gaps = int((whole - 1).sum())
        return f"{gaps} slice{'s are' if gaps > 1 else ' is'} missing inside it"
    return f"its slices are {steps.min():.3g} to {steps.max():.3g} mm apart"
