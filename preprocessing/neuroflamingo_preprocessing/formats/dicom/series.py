"""`group_series`: group DICOM images into series, and judge kind, geometry and completeness of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neuroflamingo_preprocessing.formats.dicom.attributes import COMPRESSED, UNCOMPRESSED, Form, Image, Triple

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.geometry import Affine

Kind = Literal["T1w", "T2w", "FLAIR", "PDw", "bold", "dwi", "localizer", "phase", "derived", "other", "unknown"]
SAME_PLACE_MM = 0.02
EVEN_SHARE = 0.05
"""Largest deviation of a slice distance from the median, as a share of it."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DERIVED = {"DERIVED", "SECONDARY", "MPR", "CSA MPR", "MNIP", "MIP", "PROJECTION IMAGE", "REFORMATTED", "SUBTRACTION"}
MAPS = {
    "ADC",
    "FA",
    "TRACEW",
    "TRACE",
    "PERFUSION",
    "ASL",
    "T1 MAP",
    "T2 MAP",
    "T2STAR MAP",
    "TTEST",
    "MEAN",
    "SCREEN SAVE",
}
EPI_VOLUMES = 5
"""Smallest number of volumes of a run: reference scans and field maps are gradient-echo EPI of fewer."""
THICK_MM = 2.0


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
        agent: True if a contrast agent is stated.
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
    kept: dict[str, list[Image]] = {}
    doubles: dict[str, int] = {}
    seen: dict[str, Path] = {}
    for image in images:
        if image.instance and seen.setdefault(image.instance, image.file) != image.file:
            doubles[image.series] = doubles.get(image.series, 0) + 1
        else:
            kept.setdefault(image.series, []).append(image)
    by_number = sorted(
        kept.values(), key=lambda group: (group[0].number is None, group[0].number or 0, group[0].series)
    )
    numbers = [group[0].number for group in by_number]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    found = []
    for number, group in zip(numbers, by_number, strict=True):
        again = doubles.get(group[0].series, 0)
        warnings = [f"{again} of its images exist twice; the copies were left out"] if again else []
        found += _parts(int(number or 0), group, warnings)
    return found


def _parts(number: int, images: list[Image], warnings: list[str]) -> list[Series]:
    """Split a series by echo, component, form, direction and image size."""

    def key(image: Image) -> tuple[Any, ...]:
        direction = tuple(np.round(image.orientation or (), 2) + 0.0)
        components = ("magnitude", "phase", "real", "imaginary")
        echo = round(image.times[1], 2) if image.times[1] is not None else -1.0
        return components.index(image.component), echo, image.form, image.rows, image.columns, direction

    groups = [list(group) for _, group in groupby(sorted(images, key=key), key=key)]
    echoes = sorted({group[0].times[1] or 0.0 for group in groups})
    directions = {key(group[0])[5] for group in groups}
    found = []
    for order, group in enumerate(groups):
        first = group[0]
        part = [f"echo {echoes.index(first.times[1] or 0.0) + 1} of {len(echoes)}"] if len(echoes) > 1 else []
        part += [first.component] if first.component != "magnitude" else []
        series = _series(number, ", ".join(part), order, group, warnings)
        if len(directions) > 1 and series.kind not in ("phase", "derived"):  # localizers have several directions
            series = replace(series, kind="localizer")
        found.append(series)
    return found


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
    return Series(
        number=number,
        part=part,
        kind=judge_kind(images, stack.volumes),
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
        return "it is in colour"
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


def judge_kind(images: list[Image], volumes: int) -> Kind:
    """Judge the kind of a series from image type, sequence and times, not from descriptions that people typed."""
    first = images[0]
    types = {word for image in images for word in image.image_type}
    if first.modality != "MR":
        return "other"
    if first.component != "magnitude":
        return "phase" if first.component == "phase" else "derived"
    if "LOCALIZER" in types:
        return "localizer"
    if types & MAPS:
        return "derived"
    diffusion = any(image.b_value for image in images) or "DIFFUSION" in {first.contrast, *types}
    if diffusion or re.search(r"EP_B\d+", first.sequence_name):
        return "dwi"
    if types & DERIVED:
        return "derived"
    if "EP" in first.sequence:
        return "bold" if volumes >= EPI_VOLUMES and "SE" not in first.sequence else "other"
    return _contrast(first)


def _contrast(image: Image) -> Kind:
    """Contrast from the times: short echo with inversion or short repetition is T1-weighted, long echo T2-weighted."""
    named: dict[str, Kind] = {"T1": "T1w", "T2": "T2w", "FLUID_ATTENUATED": "FLAIR", "PROTON_DENSITY": "PDw"}
    if image.contrast in named:
        return named[image.contrast]
    repetition, echo, inversion = image.times
    if echo is None or repetition is None:
        return "unknown"
    spin = "SE" in image.sequence and "GR" not in image.sequence
    if inversion and echo >= 60:
        return "FLAIR" if inversion >= 1400 else "T2w"
    if echo >= 60:
        return "T2w"
    if inversion and 300 <= inversion <= 1500 and echo <= 30:
        return "T1w"
    if spin:
        return "T1w" if repetition <= 1000 and echo <= 30 else ("PDw" if echo <= 30 else "T2w")
    return "T1w" if echo <= 10 and repetition <= 60 else "other"
