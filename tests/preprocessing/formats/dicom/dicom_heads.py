"""DICOM series made for tests: a head with a bright ball on its left, cut into slices of any direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from neuroflamingo_preprocessing.scan import Scan

MARK_MM = np.array([-38.0, -22.0, 22.0])  # RAS: left, behind and above the middle
PLANES = {  # along a row, down a column, from slice to slice; LPS, as DICOM has it
    "axial": np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "sagittal": np.array([[0, 1.0, 0], [0, 0, -1], [-1, 0, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
}
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def oblique(degrees: float = 23.0) -> np.ndarray[Any, Any]:
    """Axial slices turned about an axis that is no axis of the body."""
    from scipy.spatial.transform import Rotation

    axis = np.array([0.6, -0.5, 0.62])
    return PLANES["axial"] @ Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix().T


@dataclass(frozen=True)
class Slab:
    """How a head is cut.

    Attributes:
        directions: three unit vectors, LPS, as rows: along a row, down a column, from slice to slice.
        columns, rows, slices: how many.
        spacing: along a row, down a column, between slices, mm.
        tilt: shift of each slice along the columns for each mm from slice to slice.
    """

    directions: Any = field(default_factory=lambda: PLANES["axial"])
    columns: int = 80
    rows: int = 96
    slices: int = 48
    spacing: tuple[float, float, float] = (2.5, 2.5, 3.5)
    tilt: float = 0.0

    @property
    def steps(self) -> np.ndarray[Any, Any]:
        """LPS mm from voxel to voxel, as columns: along a row, down a column, to the next slice."""
        steps = (self.directions * np.array(self.spacing)[:, None]).T.copy()
        steps[:, 2] += self.directions[1] * self.tilt * self.spacing[2]
        return steps

    @property
    def origin(self) -> np.ndarray[Any, Any]:
        """Centre of the first voxel, LPS: the middle of the slab is the middle of the world, nearly."""
        return np.array([1.5, -2.0, 3.0]) - self.steps @ ((np.array([self.columns, self.rows, self.slices]) - 1) / 2)

    def position(self, number: int) -> np.ndarray[Any, Any]:
        """ImagePositionPatient of a slice."""
        return self.origin + self.steps[:, 2] * number

    def head(self) -> np.ndarray[Any, Any]:
        """Voxels `[slice, row, column]`, uint16: an ellipsoid of 400 on 20, the ball of 1000, smooth shading."""
        k, j, i = np.indices((self.slices, self.rows, self.columns))
        ras = (np.stack([i, j, k], axis=-1) @ self.steps.T + self.origin) * LPS_TO_RAS
        brain = ((ras / np.array([68.0, 85.0, 62.0])) ** 2).sum(-1) < 1
        ball = np.linalg.norm(ras - MARK_MM, axis=-1) < 10
        shade = ras @ np.array([0.3, 0.2, 0.1])
        return np.where(ball, 1000, np.where(brain, 400 + shade, 20)).astype(np.uint16)


SMALL = Slab(columns=40, rows=48, slices=24, spacing=(5.0, 5.0, 6.5))
RUN = Slab(columns=32, rows=32, slices=12, spacing=(7.0, 7.0, 12.0))
MPRAGE: Mapping[str, Any] = {
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SP", "MP"],
    "MRAcquisitionType": "3D",
    "RepetitionTime": "2300",
    "EchoTime": "2.98",
    "InversionTime": "900",
    "FlipAngle": "9",
}
T2W: Mapping[str, Any] = {
    "ScanningSequence": "SE",
    "MRAcquisitionType": "2D",
    "RepetitionTime": "4500",
    "EchoTime": "95",
    "FlipAngle": "150",
}
FLAIR: Mapping[str, Any] = {**T2W, "ScanningSequence": ["SE", "IR"], "RepetitionTime": "9000", "InversionTime": "2500"}
EPI: Mapping[str, Any] = {
    "ScanningSequence": "EP",
    "MRAcquisitionType": "2D",
    "RepetitionTime": "1500",
    "EchoTime": "30",
    "FlipAngle": "70",
}


def instance(slab: Slab, number: int, tags: Mapping[str, Any], study: str, series: str) -> Dataset:
    """One classic MR slice, without its pixels."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = study, series
    data.FrameOfReferenceUID = study
    data.Modality, data.Manufacturer = "MR", "SIEMENS"
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data.PatientName, data.PatientID = "Nobody", "0"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20200102"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "101010"
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 1, 1, number + 1
    data.PatientPosition, data.MagneticFieldStrength = "HFS", "3"
    data.Rows, data.Columns = slab.rows, slab.columns
    data.PixelSpacing = [slab.spacing[1], slab.spacing[0]]
    data.SliceThickness = slab.spacing[2]
    data.ImageOrientationPatient = [f"{v:.9g}" for v in slab.directions[:2].ravel()]
    data.ImagePositionPatient = [f"{v:.9g}" for v in slab.position(number)]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def write_series(
    folder: Path,
    slab: Slab | None = None,
    tags: Mapping[str, Any] = MPRAGE,
    *,
    study: str | None = None,
    series: str | None = None,
    name: str = "IM{:04d}",
    skip: tuple[int, ...] = (),
    edit: Callable[[Dataset, int], None] | None = None,
    voxels: Any = None,
) -> Path:
    """Write a classic series, a file for each slice; `edit` may change each data set before it is written."""
    slab = slab or Slab()
    folder.mkdir(parents=True, exist_ok=True)
    head = slab.head() if voxels is None else voxels
    study, series = study or generate_uid(), series or generate_uid()
    for number in range(slab.slices):
        if number in skip:
            continue
        data = instance(slab, number, tags, study, series)
        data.PixelData = head[number].tobytes()
        if edit:
            edit(data, number)
        data.save_as(folder / name.format(number), enforce_file_format=True)
    return folder


def _item(**values: Any) -> Sequence:
    """A sequence of one item."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return Sequence([item])


def write_enhanced(
    file: Path,
    slab: Slab | None = None,
    *,
    volumes: int = 1,
    voxels: Any = None,
    echo_ms: float = 2.98,
    repetition_ms: float = 2300.0,
    contrast: str = "T1",
    planar: bool = False,
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write one enhanced MR file of `volumes` volumes, slice by slice, each frame with its functional groups."""
    slab = slab or Slab()
    head = np.stack([slab.head()] * volumes) if voxels is None else voxels
    data = instance(slab, 0, {}, generate_uid(), generate_uid())
    for name in ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient"):
        delattr(data, name)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedMRImageStorage
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.AcquisitionContrast, data.MRAcquisitionType = contrast, "2D" if planar else "3D"
    data.EchoPulseSequence, data.EchoPlanarPulseSequence = "GRADIENT", "YES" if planar else "NO"
    data.PulseSequenceName, data.ComplexImageComponent = "sequence", "MAGNITUDE"
    data.NumberOfFrames = volumes * slab.slices
    organisation = generate_uid()
    data.DimensionOrganizationSequence = _item(DimensionOrganizationUID=organisation)
    data.DimensionIndexSequence = Sequence(
        [
            _item(DimensionOrganizationUID=organisation, DimensionIndexPointer=tag, FunctionalGroupPointer=0x00209111)[
                0
            ]
            for tag in (0x00209056, 0x00209057, 0x00209128)
        ]
    )
    shared = _item(
        PixelMeasuresSequence=_item(
            PixelSpacing=[slab.spacing[1], slab.spacing[0]],
            SliceThickness=slab.spacing[2],
            SpacingBetweenSlices=slab.spacing[2],
        ),
        PlaneOrientationSequence=_item(ImageOrientationPatient=[f"{v:.9g}" for v in slab.directions[:2].ravel()]),
        MRTimingAndRelatedParametersSequence=_item(RepetitionTime=repetition_ms, FlipAngle=9.0, EchoTrainLength=1),
        MREchoSequence=_item(EffectiveEchoTime=echo_ms),
        PixelValueTransformationSequence=_item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US"),
    )
    data.SharedFunctionalGroupsSequence = shared
    frames = [(v, k) for v in range(volumes) for k in range(slab.slices)]
    data.PerFrameFunctionalGroupsSequence = Sequence([_frame(slab, volume, number) for volume, number in frames])
    data.PixelData = head.tobytes()
    if edit:
        edit(data)
    data.save_as(file, enforce_file_format=True)
    return file


def _frame(slab: Slab, volume: int, number: int) -> Dataset:
    return _item(
        FrameContentSequence=_item(
            StackID="1",
            InStackPositionNumber=number + 1,
            TemporalPositionIndex=volume + 1,
            DimensionIndexValues=[1, number + 1, volume + 1],
        ),
        PlanePositionSequence=_item(ImagePositionPatient=[f"{v:.9g}" for v in slab.position(number)]),
        MRImageFrameTypeSequence=_item(
            FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], ComplexImageComponent="MAGNITUDE"
        ),
    )[0]


def write_mosaic(folder: Path, slab: Slab, volumes: int, *, voxels: Any = None, tags: Mapping[str, Any] = EPI) -> Path:
    """Write Siemens mosaics, a file for each volume, with the private elements that say how they are tiled."""
    folder.mkdir(parents=True, exist_ok=True)
    head = np.stack([slab.head()] * volumes) if voxels is None else voxels
    study, series = generate_uid(), generate_uid()
    across = int(np.ceil(np.sqrt(slab.slices)))
    for volume in range(volumes):
        data = instance(slab, volume, tags, study, series)
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        picture = np.zeros((across * slab.rows, across * slab.columns), np.uint16)
        for number, one in enumerate(head[volume]):
            row, column = divmod(number, across)
            picture[row * slab.rows :, column * slab.columns :][: slab.rows, : slab.columns] = one
        data.Rows, data.Columns = picture.shape
        # the place of a mosaic is that of a picture as large as the mosaic, centred on the first slice
        corner = slab.position(0)
        for axis, (count, full) in enumerate(((slab.columns, data.Columns), (slab.rows, data.Rows))):
            corner = corner - slab.directions[axis] * slab.spacing[axis] * (full - count) / 2
        data.ImagePositionPatient = [f"{v:.9g}" for v in corner]
        data.AcquisitionNumber = volume + 1
        data.AcquisitionTime = f"1010{10 + 1.5 * volume:09.6f}"
        block = data.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", slab.slices)
        normal = np.cross(slab.directions[0], slab.directions[1])
        csa = data.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        said = {"NumberOfImagesInMosaic": [f"{slab.slices}"], "SliceNormalVector": [f"{v:.8f}" for v in normal]}
        csa.add_new(0x10, "OB", _csa(said))
        data.PixelData = picture.tobytes()
        data.save_as(folder / f"{volume:03d}.dcm", enforce_file_format=True)
    return folder


def _csa(values: Mapping[str, list[str]]) -> bytes:
    """A Siemens CSA header of the second kind (`SV10`)."""
    import struct

    out = b"SV10\x04\x03\x02\x01" + struct.pack("<II", len(values), 77)
    for name, words in values.items():
        out += struct.pack("<64si4siii", name.encode(), len(words), b"FD\0\0", 4, 6, 77)
        for number in range(6):
            text = words[number].encode() + b"\0" if number < len(words) else b""
            out += struct.pack("<iiii", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return out


def place_of(voxels: Any, affine: Any) -> np.ndarray:
    """Where the middle of the bright ball lies, RAS mm."""
    return np.argwhere(voxels > 750).mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]


def assert_left_is_left(scan: Scan) -> None:
    found = place_of(scan.voxels, scan.affine)
    assert found[0] < -30
    assert np.linalg.norm(found - MARK_MM) < min(scan.spacing) / 2
