"""`judge_kind`: the kind of a DICOM series, from image type, sequence, angles and times."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.dicom.attributes import Image

Kind = Literal[
    "T1w", "T2w", "FLAIR", "PDw", "bold", "dwi", "angio", "localizer", "phase", "derived", "other", "unknown"
]
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
NAMED: dict[str, Kind] = {
    "T1": "T1w",
    "T2": "T2w",
    "FLUID_ATTENUATED": "FLAIR",
    "PROTON_DENSITY": "PDw",
    "TOF": "angio",
    "FLOW_ENCODED": "angio",
    "DIFFUSION": "dwi",
    "PERFUSION": "other",
    "STIR": "other",
    "T2_STAR": "other",
    "TAGGING": "other",
}
"""AcquisitionContrast of enhanced images (DICOM PS3.3, C.8.13.2.1.1); the others say nothing of the weighting."""
ANGIO = {"ANGIO", "TOF", "MRA", "TIME OF FLIGHT"}
ANGIO_NAME = re.compile(r"(?<!T)FL[23]D\d+R|TOF|PC[23]?D\d|_V\d+(IN|AP|RL|FH)|ANGIO", re.ASCII)
"""Sequence names of angiographies: time of flight (Siemens `fl3d1r_t70`, with flow compensation) and phase contrast."""
EPI_VOLUMES = 5
"""Smallest number of volumes of a run: reference scans and field maps are gradient-echo EPI of fewer."""
UNIFORM, APART, SHOTS_MS = "UNI", 2.5, 4000.0
"""MP2RAGE: word in the image type of its uniform image (Siemens); how many times later its second inversion is read, at
least (some 700 and 2500 ms; two MPRAGE are closer); repetition time in ms from which on it is no MPRAGE's."""
TISSUE_T1_MS = 1000.0
DENSITY_SHARE = 0.7
"""Share of the Ernst angle below which a spoiled gradient echo shows proton density rather than T1 (Helms et al. 2008:
at a flip angle well below it the signal no longer depends on T1)."""


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
    if types & DERIVED and not is_uniform(first):
        return "derived"
    if first.angio or types & ANGIO or ANGIO_NAME.search(first.sequence_name):
        return "angio"
    if "EP" in first.sequence:
        return "bold" if volumes >= EPI_VOLUMES and "SE" not in first.sequence else "other"
    return _contrast(first)


def is_uniform(image: Image) -> bool:
    """True for the uniform image of an MP2RAGE: computed by the scanner, and T1-weighted."""
    return UNIFORM in image.image_type and not (DERIVED - {"DERIVED"} | MAPS) & set(image.image_type)


def inversion_images(groups: Sequence[list[Image]]) -> dict[int, float]:
    """Series that are single inversions of an MP2RAGE, by their place among all: the inversion time in ms.

    One is known by another series of its study with the same repetition time and matrix that was read at a much later
    or earlier inversion, or that is the uniform image. Its contrast is not that of a T1-weighted head.

    Args:
        groups: the images of each series.
    """
    firsts = [group[0] for group in groups]
    found = {}
    for number, one in enumerate(firsts):
        time = one.times[2]
        if not _may_be_inversion(one) or time is None:
            continue
        beside = [other for other in firsts if other is not one and _same_shots(one, other)]
        times = [other.times[2] for other in beside if _may_be_inversion(other)]
        apart = any(other and max(time, other) >= APART * min(time, other) for other in times)
        if apart or any(is_uniform(other) for other in beside):
            found[number] = time
    return found


def _may_be_inversion(image: Image) -> bool:
    echoes = "GR" in image.sequence and image.three_d
    return image.modality == "MR" and echoes and image.times[2] is not None and not is_uniform(image)


def _same_shots(one: Image, other: Image) -> bool:
    """Whether two series of a study may have been read out after the same inversion pulses."""
    repetitions = [image.times[0] for image in (one, other)]
    if one.study != other.study or (one.rows, one.columns) != (other.rows, other.columns) or None in repetitions:
        return False
    return math.isclose(*repetitions, rel_tol=0.01)  # pyright: ignore[reportArgumentType]


def is_prepared(image: Image) -> bool:
    """True for magnetisation prepared by inversion, as MPRAGE has it: the strongest T1 weighting."""
    return image.times[2] is not None or "IR" in image.sequence or "MP" in image.variant


def _contrast(image: Image) -> Kind:
    """Contrast from the times: short echo with inversion or short repetition is T1-weighted, long echo T2-weighted."""
    if image.contrast in NAMED:
        return NAMED[image.contrast]
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
    if echo > 10 or repetition > 60:
        return "other"
    return "PDw" if _shows_density(image, repetition) else "T1w"


def _shows_density(image: Image, repetition: float) -> bool:
    """True for a gradient echo without preparation whose flip angle lies far below the Ernst angle."""
    if image.flip_degrees is None or is_prepared(image):
        return False
    ernst = math.degrees(math.acos(math.exp(-repetition / TISSUE_T1_MS)))
    return image.flip_degrees < DENSITY_SHARE * ernst
