"""Technical attributes of DICOM images; no names, dates, identifiers or free text are kept."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.described import AGENT, described_by_text

Form = Literal["classic", "enhanced", "mosaic"]
Triple = tuple[float, float, float]
LOWEST_PYDICOM = (3, 0, 2)  # older ones follow a DICOMDIR out of its folder
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
UNCOMPRESSED = {IMPLICIT, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
COMPRESSED = {  # transfer syntaxes that dcm2niix decompresses
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
# fmt: off
MAKERS = (
    "Siemens", "GE", "Philips", "Canon", "Toshiba", "Hitachi", "Fujifilm", "UIH", "Bruker", "Hyperfine", "Mindray",
)
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber",
    "Modality", "Manufacturer", "ImageType", "ScanningSequence", "SequenceVariant", "SequenceName",
    "MRAcquisitionType", "RepetitionTime", "EchoTime", "InversionTime", "BodyPartExamined", "ContrastBolusAgent",
    "ImagesInAcquisition", "ComplexImageComponent", "AcquisitionContrast", "DiffusionBValue", "EchoPulseSequence",
    "SeriesDescription", "PulseSequenceName", "FlipAngle", "AngioFlag", "TimeOfFlightContrast",
    "PhotometricInterpretation",
    "EchoPlanarPulseSequence", "InversionRecovery", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "BitsAllocated", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]
# fmt: on
FUNCTIONAL = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "FrameContentSequence": ("TemporalPositionIndex",),
    "MRImageFrameTypeSequence": ("FrameType", "ComplexImageComponent", "AcquisitionContrast"),
    "MRTimingAndRelatedParametersSequence": ("RepetitionTime", "FlipAngle"),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRModifierSequence": ("InversionRecovery", "InversionTimes"),
    "MRDiffusionSequence": ("DiffusionBValue",),
}
"""Functional groups of an enhanced image, and the attributes read from them."""
# fmt: off
ELSEWHERE = (
    "SPINE", "NECK", "CHEST", "THORAX", "ABDOMEN", "PELVIS", "HIP", "KNEE", "ANKLE", "FOOT", "LEG", "ARM", "ELBOW",
    "WRIST", "HAND", "SHOULDER", "EXTREMITY", "HEART", "BREAST", "LIVER", "PROSTATE", "UTERUS", "KIDNEY",
)
# fmt: on
"""Parts of the body that are not the head."""
MOSAIC_COUNT = 0x0019100A  # Siemens: images in a mosaic
MOSAIC_GROUP = 0x00190010
FRAGMENT = b"\xfe\xff\x00\xe0"


@dataclass(frozen=True)
class Image:
    """One slice, one frame of an enhanced image, or one mosaic.

    Attributes:
        file: path of the file.
        frame: index within the file, from 0.
        order: order in time among the images at one position: TemporalPositionIndex or InstanceNumber.
        study, series, instance: identifiers, for grouping only.
        number: SeriesNumber.
        form: way of storage.
        modality: such as MR.
        image_type: ImageType or FrameType, upper case.
        sequence: ScanningSequence, or its equivalent of an enhanced image, upper case.
        variant: SequenceVariant, upper case.
        sequence_name: the vendor's name of the pulse sequence.
        three_d: acquired as a volume.
        times: repetition, echo and inversion time in ms; None where not stated.
        flip_degrees: flip angle; None where not stated.
        angio: True if the header calls it an angiography.
        component: `magnitude`, `phase`, `real` or `imaginary`.
        contrast: AcquisitionContrast of an enhanced image.
        b_value: of diffusion imaging.
        head: False if the header names another part of the body.
        agent: True if a contrast agent is stated, or named in the series' description.
        described: what that says of the kind of image, see `described_by_text`; the text itself is not kept.
        announced: ImagesInAcquisition.
        rows, columns: of the image (for a mosaic: of one tile if that is stated, else of the whole).
        tiles: number of slices in a mosaic; 1 for other forms.
        spacing: down a column and along a row, mm.
        orientation, position: as DICOM has them, LPS mm; None where not stated.
        maker: manufacturer, from a closed list.
        syntax: transfer syntax UID.
        cut: True if the file ends before its pixels do.
        grey: True for one sample per pixel that is no index into a palette.
        inverted: True where the lowest value is white (MONOCHROME1).
    """

    file: Path
    frame: int
    order: int
    study: str
    series: str
    instance: str
    number: int | None
    form: Form
    modality: str
    image_type: tuple[str, ...]
    sequence: frozenset[str]
    variant: frozenset[str]
    sequence_name: str
    three_d: bool
    times: tuple[float | None, float | None, float | None]
    flip_degrees: float | None
    angio: bool
    component: str
    contrast: str
    b_value: float | None
    head: bool
    agent: bool
    described: tuple[str, ...]
    announced: int | None
    rows: int
    columns: int
    tiles: int
    spacing: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    position: Triple | None
    maker: str
    syntax: str
    cut: bool
    grey: bool
    inverted: bool


def require_dicom_extra() -> None:
    """Check that pydicom and dcm2niix are installed.

    Raises:
        ScanError: the extra is not installed, or pydicom is older than 3.0.2 (exit 69).
    """
    seen = []
    try:
        import pydicom

        version = tuple(int(part) for part in pydicom.__version__.split(".")[:3] if part.isdigit())
        seen += [] if version >= LOWEST_PYDICOM else [f"pydicom {pydicom.__version__}"]
    except ImportError:
        seen.append("no pydicom")
    try:
        import dcm2niix  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        seen.append("no dcm2niix")
    if seen:
        raise ScanError(
            "DICOM cannot be read here",
            expected="pydicom 3.0.2 or newer, and dcm2niix",
            seen=", ".join(seen),
            hint="pip install 'neuroflamingo[dicom]'",
            exit_code=69,
        )


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress pydicom's warnings and log: both repeat values of the header."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def read_images(file: Path) -> list[Image] | None:
    """Read the attributes of the images in a DICOM file.

    Returns:
        The images; empty for a file that is meant to hold none (a report, a directory); None for one that should hold
        some and cannot be read: damaged, cut off, empty, or deflated as a whole.
    """
    try:
        data, start = _read(file)
        if not data.get("Rows") or not data.get("Columns"):
            return None if _is_image(data) else []
        if "PerFrameFunctionalGroupsSequence" in data:
            common = _Facts(data, file, start)
            for shared in data.get("SharedFunctionalGroupsSequence") or ():
                common = common.under(shared)
            frames = data.PerFrameFunctionalGroupsSequence
            return [common.under(frame).image("enhanced", number) for number, frame in enumerate(frames)]
        facts = _Facts(data, file, start)
        return [facts.image("mosaic" if "MOSAIC" in facts.words("ImageType") else "classic")]
    except Exception:  # pydicom raises many types on damaged files, and their messages repeat the header
        return None


def _is_image(data: Any) -> bool:
    """True if the class of a data set is one of images, or is not stated."""
    from pydicom.uid import UID

    stated = data.get("SOPClassUID") or getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID")
    return stated is None or "Image Storage" in UID(str(stated)).name


def _read(file: Path) -> tuple[Any, int]:
    """Read a data set without its pixels, and the offset of these.

    Raises:
        Exception: of many types; ValueError for a file that is deflated as a whole: pydicom would decompress all of it,
            whatever its size, and dcm2niix cannot read it.
    """
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    with file.open("rb") as stream:
        prefixed = stream.read(132)[128:] == b"DICM"
    if prefixed and str(read_file_meta_info(file).get("TransferSyntaxUID", "")) == DEFLATED:
        raise ValueError("deflated")
    with file.open("rb") as stream:
        wanted: list[Any] = [*TAGS, MOSAIC_COUNT, MOSAIC_GROUP]
        data = dcmread(stream, stop_before_pixels=True, force=not prefixed, specific_tags=wanted)
        return data, stream.tell()


def _ends(file: Path, start: int) -> bool:
    """True if compressed pixels, a sequence of fragments that begins at `start`, reach their delimiter."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(start + 12)  # behind the element's tag, type and (undefined) length
        while len(head := stream.read(8)) == 8:
            if head[:4] != FRAGMENT:  # the delimiter, or a form that is not known here: dcm2niix decides
                return True
            if stream.tell() + int.from_bytes(head[4:], "little") > size:
                return False
            stream.seek(int.from_bytes(head[4:], "little"), 1)
    return False


class _Facts:
    """Values by keyword, from the functional groups of a frame or else from the data set."""

    def __init__(self, data: Any, file: Path, start: int, nearer: dict[str, Any] | None = None) -> None:
        self.data, self.file, self.start, self._nearer = data, file, start, nearer or {}

    def under(self, group: Any) -> _Facts:
        """Values with those of a functional group taking precedence."""
        found = dict(self._nearer)
        for sequence, keywords in FUNCTIONAL.items():
            items = group.get(sequence)
            if items:
                found |= {keyword: items[0].get(keyword) for keyword in keywords if keyword in items[0]}
        return _Facts(self.data, self.file, self.start, found)

    def get(self, keyword: str) -> Any:
        """Value of a keyword; None where it is missing, empty, or violates the standard."""
        try:
            value = self._nearer.get(keyword)
            value = self.data.get(keyword) if value is None else value
        except Exception:  # pydicom decodes at first use, and raises many types
            return None
        return None if value is None or value == "" else value

    def words(self, keyword: str) -> tuple[str, ...]:
        value = self.get(keyword)
        if value is None:
            return ()
        return tuple(str(word).upper() for word in ([value] if isinstance(value, str) else value))

    def word(self, keyword: str) -> str:
        return next(iter(self.words(keyword)), "")

    def numbers(self, *keywords: str, count: int) -> tuple[float, ...] | None:
        """First `count` numbers of a value; None where it is missing, too short or not finite."""
        for keyword in keywords:
            value = self.get(keyword)
            if value is None:
                continue
            one = isinstance(value, str) or not hasattr(value, "__iter__")
            try:
                found = tuple(float(v) for v in ([value] if one else value))
            except (TypeError, ValueError):
                continue
            if len(found) >= count and all(math.isfinite(v) for v in found):
                return found[:count]
        return None

    def number(self, *keywords: str) -> float | None:
        found = self.numbers(*keywords, count=1)
        return None if found is None else found[0]

    def image(self, form: Form, frame: int = 0) -> Image:
        """Attributes of one image."""
        data, rows, columns = self.data, int(self.data.Rows), int(self.data.Columns)
        types = self.words("FrameType") or self.words("ImageType")
        syntax = str(getattr(data, "file_meta", {}).get("TransferSyntaxUID", "")) or IMPLICIT
        part, colours = self.word("BodyPartExamined"), self.word("PhotometricInterpretation")
        samples, bits = int(data.get("SamplesPerPixel") or 1), int(data.get("BitsAllocated") or 16)
        tiles = self._tiles() if form == "mosaic" else 1
        across = math.isqrt(tiles - 1) + 1  # mosaics are square
        number, announced = self.number("SeriesNumber"), self.number("ImagesInAcquisition")
        position, spacing = self.numbers("ImagePositionPatient", count=3), self.numbers("PixelSpacing", count=2)
        return Image(
            file=self.file,
            frame=frame,
            order=int(self.number("TemporalPositionIndex", "InstanceNumber") or 0),
            study=str(data.get("StudyInstanceUID", "")),
            series=str(data.get("SeriesInstanceUID", "")),
            instance=str(data.get("SOPInstanceUID", "")),
            number=None if number is None else int(number),
            form=form,
            modality=self.word("Modality"),
            image_type=types,
            sequence=self._sequence(),
            variant=frozenset(self.words("SequenceVariant")),
            sequence_name=self.word("SequenceName") or self.word("PulseSequenceName"),
            three_d=self.word("MRAcquisitionType") == "3D",
            times=(
                self.number("RepetitionTime"),
                self.number("EffectiveEchoTime", "EchoTime"),
                self.number("InversionTimes", "InversionTime"),
            ),
            flip_degrees=self.number("FlipAngle"),
            angio=self.word("AngioFlag") == "Y" or self.word("TimeOfFlightContrast") == "YES",
            component=self._component(types),
            contrast=self.word("AcquisitionContrast"),
            b_value=self.number("DiffusionBValue"),
            head="HEAD" in part or not any(word in part for word in ELSEWHERE),
            agent=bool(self.get("ContrastBolusAgent")) or AGENT in self.described(),
            described=self.described(),
            announced=None if announced is None else int(announced),
            rows=rows // across,
            columns=columns // across,
            tiles=tiles,
            spacing=None if spacing is None or min(spacing) <= 0 else (spacing[0], spacing[1]),
            orientation=self.numbers("ImageOrientationPatient", count=6),
            position=None if position is None else (position[0], position[1], position[2]),
            maker=next((maker for maker in MAKERS if maker.upper() in self.word("Manufacturer")), "another"),
            syntax=syntax,
            cut=self._is_cut(syntax, rows * columns * samples * bits // 8),
            grey=samples == 1 and colours != "PALETTE COLOR",
            inverted=colours == "MONOCHROME1",
        )

    def described(self) -> tuple[str, ...]:
        """What the series' description says of the kind of image, in words of a closed list."""
        return described_by_text(str(self.get("SeriesDescription") or ""))

    def _is_cut(self, syntax: str, frame_bytes: int) -> bool:
        """True if the file is shorter than its pixels, as far as that is known without decompressing them."""
        if syntax in UNCOMPRESSED:
            frames = int(self.data.get("NumberOfFrames") or 1)
            return self.file.stat().st_size < self.start + frames * frame_bytes
        return syntax in COMPRESSED and not _ends(self.file, self.start)

    def _tiles(self) -> int:
        if not str(self.data.get(MOSAIC_GROUP).value if MOSAIC_GROUP in self.data else "").startswith("SIEMENS MR"):
            return 1
        value = self.data[MOSAIC_COUNT].value if MOSAIC_COUNT in self.data else 1
        tiles = int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)
        return tiles if 1 <= tiles <= 1024 else 1

    def _sequence(self) -> frozenset[str]:
        """ScanningSequence, or its equivalents for enhanced images."""
        found = set(self.words("ScanningSequence"))
        echo = self.word("EchoPulseSequence")
        found |= {"GR"} if echo in ("GRADIENT", "BOTH") else set()
        found |= {"SE"} if echo in ("SPIN", "BOTH") else set()
        found |= {"EP"} if self.word("EchoPlanarPulseSequence") == "YES" else set()
        found |= {"IR"} if self.word("InversionRecovery") == "YES" else set()
        return frozenset(found)

    def _component(self, types: tuple[str, ...]) -> str:
        labels = {self.word("ComplexImageComponent"), *types[2:]}
        for component, words in (
            ("phase", {"P", "PHASE", "PHASE MAP"}),
            ("real", {"R", "REAL"}),
            ("imaginary", {"I", "IMAGINARY"}),
        ):
            if labels & words:
                return component
        return "magnitude"
