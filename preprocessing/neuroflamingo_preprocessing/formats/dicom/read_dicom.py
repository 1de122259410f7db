"""DICOM to `Scan` and `Run`: headers first, dcm2niix for the voxels, and its affine held against the headers'."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.files import sha256_of, sha256_of_text
from neuroflamingo_preprocessing.formats.dicom.archive import dicom_files, is_dicom_file, is_dicom_input, walk
from neuroflamingo_preprocessing.formats.dicom.attributes import COMPRESSED, read_images, require_dicom_extra, silenced
from neuroflamingo_preprocessing.formats.dicom.conversion import run_dcm2niix, sizes_and_affine
from neuroflamingo_preprocessing.formats.dicom.series import Series, group_series
from neuroflamingo_preprocessing.formats.dicom.series_selection import choose_series
from neuroflamingo_preprocessing.formats.dicom.verification import flips_between, hold_contents, misplaced
from neuroflamingo_preprocessing.formats.nifti.header import MAX_VOXELS
from neuroflamingo_preprocessing.formats.nifti.read_nifti import read_nifti
from neuroflamingo_preprocessing.formats.nifti.run import Run, read_nifti_run
from neuroflamingo_preprocessing.geometry import Affine, GeometryStep, apply, as_rows, corners

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.scan import Provenance, Scan, ScanModality

Wanted = Literal["T1w", "bold"]
MAX_BYTES = 2**34
"""Of all voxels of a series."""
OFF_SHARE = 0.25
"""Of a voxel: how far a corner may lie from where the headers put it."""
MODALITIES: dict[str, ScanModality] = {"T1w": "T1w", "T2w": "T2w", "FLAIR": "FLAIR", "bold": "bold", "dwi": "dwi"}


@dataclass(frozen=True)
class ConvertedSeries:
    """A series as dcm2niix gave it.

    Attributes:
        file: the NIfTI file, with its sidecar beside it.
        series: which one.
        remarks: on the choice.
        sha256: over the sorted hashes of the series' files: neither their names nor their order count.
        affine: voxel index to RAS mm as the headers say it, in the file's voxel order; None for a mosaic.
        leans: the file's affine is wrong because the slices lean (a tilted gantry); `straighten` the voxels.
    """

    file: Path
    series: Series
    remarks: tuple[str, ...]
    sha256: str
    affine: Affine | None
    leans: bool

    def provenance(self, of_file: Provenance) -> Provenance:
        """The record of the NIfTI file, turned into one of the series."""
        one = self.series
        facts = {
            "format": f"DICOM ({one.form})",
            "series": str(one.number),
            "kind": one.kind + (f", {one.part}" if one.part else ""),
            "images": f"{one.slices} slices, {one.volumes} volumes, {len(one.files)} files",
            "compression": COMPRESSED.get(one.syntax, "none"),
            "maker": one.maker,
            "converted by": f"dcm2niix {version('dcm2niix')}",
        }
        facts |= {key: value for key, value in of_file.header.items() if key != "format"}
        return replace(
            of_file, file=one.name, sha256=self.sha256, header=facts, warnings=(*self.remarks, *of_file.warnings)
        )

    def log(self, stored: Affine, shape: tuple[int, ...]) -> tuple[GeometryStep, ...]:
        """What conversion did to the order of the voxels."""
        one = self.series
        if one.affine is None:
            return ()
        return (
            GeometryStep(
                name="DICOM conversion",
                before=as_rows(one.affine),
                after=as_rows(stored),
                interpolation="none",
                reason=f"the images of {one.name} stacked by dcm2niix {version('dcm2niix')}; places and contents held "
                "against the images",
                shape_before=shape,
                shape_after=shape,
            ),
        )


class Examination:
    """The series of a DICOM input, while it is open; see `open_dicom`."""

    def __init__(self, series: list[Series]) -> None:
        self.series = series

    def kind(self, number: int | None = None) -> Literal["volume", "run"]:
        """What `--series`, or else the chooser, would take."""
        chosen = [one for one in self.series if one.number == number] or self.series
        if any(one.volumes == 1 and (number is not None or one.kind == "T1w") for one in chosen):
            return "volume"
        return (
            "run" if any(one.volumes > 1 and (number is not None or one.kind == "bold") for one in chosen) else "volume"
        )

    def digest(self, wanted: Wanted, number: int | None = None) -> str:
        """The hash of the series that would be taken.

        Raises:
            UsageError, ScanError: see `choose_series`.
        """
        return _digest(choose_series(self.series, wanted, number)[0])

    def scan(self, number: int | None = None, series_sha256: str | None = None) -> Scan:
        """The T1-weighted volume, or the series of that number.

        Args:
            number: of the series.
            series_sha256: of `digest`, where that was taken before: the files are not hashed again.

        Raises:
            UsageError, ScanError: see `choose_series` and `read_scan`.
        """
        with tempfile.TemporaryDirectory(prefix="neuroflamingo-dicom-") as place:
            done = self._convert("T1w", number, Path(place), series_sha256)
            scan = read_nifti(done.file)
        provenance, steps = done.provenance(scan.provenance), done.log(scan.affine, scan.voxels.shape)
        scan = replace(scan, provenance=provenance, modality=MODALITIES.get(done.series.kind, "unknown"))
        if done.leans:
            assert done.affine is not None
            voxels, affine = straighten(scan.voxels, done.affine)
            told = (
                f"the slices lean by {done.series.tilt_degrees:.1f} degrees (a tilted gantry); they were straightened"
            )
            step = GeometryStep(
                name="gantry tilt removed",
                before=as_rows(done.affine),
                after=as_rows(affine),
                interpolation="linear",
                reason=f"the slices lean by {done.series.tilt_degrees:.1f} degrees: each was shifted within its plane",
                shape_before=scan.voxels.shape,
                shape_after=voxels.shape,
            )
            provenance = replace(provenance, warnings=(*provenance.warnings, told))
            steps = (*done.log(done.affine, scan.voxels.shape), step)
            scan = replace(scan, voxels=voxels, affine=affine, provenance=provenance)
        return replace(scan, geometry=steps)

    def run(
        self, number: int | None = None, repetition_time: float | None = None, series_sha256: str | None = None
    ) -> Run:
        """The fMRI run, or the series of that number; its NIfTI file is deleted when the run is no longer used.

        Args:
            number: of the series.
            repetition_time: in seconds, see `read_run`.
            series_sha256: see `scan`.

        Raises:
            UsageError, ScanError: see `choose_series` and `read_run`.
        """
        place = _Kept()
        done = self._convert("bold", number, place.path, series_sha256)
        if done.leans:
            raise misplaced(done.series.name, f"slices that lean by {done.series.tilt_degrees:.1f} degrees")
        run = read_nifti_run(done.file, repetition_time)
        steps = done.log(run.affine, run.shape)
        return replace(run, provenance=done.provenance(run.provenance), geometry=steps, _kept=place)

    def _convert(self, wanted: Wanted, number: int | None, place: Path, sha256: str | None) -> ConvertedSeries:
        chosen, remarks = choose_series(self.series, wanted, number)
        _refuse_huge(chosen)
        file = run_dcm2niix(chosen, place)
        shape, stored = sizes_and_affine(file, chosen)
        if chosen.affine is not None and shape[:3] != chosen.sizes:
            raise misplaced(chosen.name, f"{shape} voxels")
        affine, leans = _hold_against(chosen, shape, stored)
        if hold_contents(file, chosen, stored):
            remarks.append(f"dcm2niix mixed up the slices of the volumes of {chosen.name}; they were put in order")
        return ConvertedSeries(file, chosen, tuple(remarks), sha256 or _digest(chosen), affine, leans)


@contextmanager
def open_dicom(path: str | Path) -> Iterator[Examination]:
    """Read the headers of a folder, a zip archive or a single DICOM file; archives stay unpacked while it is open.

    Raises:
        ScanError: the extra `dicom` is missing (exit 69); no DICOM images; an archive that is not unpacked (exit 65).
    """
    try:
        with dicom_files(Path(path)) as files:
            require_dicom_extra()
            yield Examination(_series_of(files))
    except OSError as error:  # its words hold names of folders and files
        raise ScanError(
            "a DICOM file cannot be read or converted",
            seen=error.strerror or type(error).__name__,
            hint="check permissions, and the space in the temporary folder (TMPDIR)",
            exit_code=74,
        ) from None


def _series_of(files: list[Path]) -> list[Series]:
    with silenced():
        series = group_series(image for file in files for image in read_images(file))
    if not series:
        raise ScanError(
            "the DICOM files hold no pictures that can be read",
            expected="an MR series",
            seen=f"{len(files)} file{'s' * (len(files) > 1)}",
            hint="export the images again: reports, key objects and lists alone are no scan",
        )
    return series


def examinations(folder: Path) -> list[Path]:
    """The DICOM inputs below a folder: for each examination the folder that holds all of it; each zip archive.

    One image of each folder is looked at; folders of examinations that lie in each other are one input.

    Raises:
        ScanError: the extra `dicom` is missing (exit 69).
    """
    firsts: dict[Path, Path] = {}
    archives = []
    for file in walk(folder):
        if file.suffix.lower() == ".zip" and is_dicom_input(file):
            archives.append(file)
        elif file.parent not in firsts and is_dicom_file(file) and file.name.upper() != "DICOMDIR":
            firsts[file.parent] = file
    if firsts or archives:
        require_dicom_extra()
    studies: dict[str, list[Path]] = {}
    with silenced():
        for parent, file in firsts.items():
            study = next((image.study for image in read_images(file)), "")
            studies.setdefault(study or str(parent), []).append(parent)
    places = sorted({Path(os.path.commonpath(parents)) for parents in studies.values()})
    outer = [place for place in places if not any(place.is_relative_to(other) for other in places if other != place)]
    return sorted([*outer, *archives])


def list_series(path: str | Path) -> list[Series]:
    """The series of a DICOM folder, zip archive or file, by number.

    Raises:
        ScanError: see `open_dicom`.
    """
    with open_dicom(path) as examination:
        return examination.series


def _digest(series: Series) -> str:
    return sha256_of_text("\n".join(sorted(map(sha256_of, series.files))))


def _refuse_huge(series: Series) -> None:
    voxels = series.rows * series.columns * series.slices
    if voxels > MAX_VOXELS or 2 * voxels * series.volumes > MAX_BYTES:
        raise ScanError(
            f"{series.name}: the headers claim {voxels:.3g} voxels in each of {series.volumes} volumes",
            expected=f"at most {MAX_VOXELS:.3g}",
            seen=series.describe(),
            hint="a whole head has a few million voxels: the headers are damaged",
        )


class _Kept:
    """A temporary folder that lives as long as this object does."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="neuroflamingo-dicom-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _hold_against(series: Series, shape: tuple[int, ...], stored: Affine) -> tuple[Affine | None, bool]:
    """The affine that the headers say, in the file's voxel order, and whether the file's differs because slices lean.

    dcm2niix writes a straight affine for a leaning stack of MR slices, some centimetres off, and says nothing.

    Raises:
        ScanError: the file puts the voxels elsewhere than the headers do.
    """
    if series.affine is None:
        return None, False
    said = series.affine @ flips_between(series.affine, stored, shape)
    ends = corners(tuple(shape[:3]))
    off = float(np.linalg.norm(apply(said, ends) - apply(stored, ends), axis=1).max())
    if off <= OFF_SHARE * np.linalg.norm(said[:3, :3], axis=0).min():
        return said, False
    if series.tilt_degrees < 0.05:
        raise misplaced(series.name, f"a corner {off:.1f} mm away from there")
    return said, True


def straighten(voxels: NDArray[np.float32], leaning: Affine) -> tuple[NDArray[np.float32], Affine]:
    """Shift each slice (the last axis) within its plane, so that the stack is a box. Linear interpolation.

    dcm2niix can do this too, but of two stacks that lean to opposite sides it puts one 2.3 mm (a voxel) off.

    Args:
        voxels: `[x, y, slice]`.
        leaning: voxel to RAS mm, the last column not at right angles to the others.

    Returns:
        Voxels on a grid that holds all of the stack, its uncovered corners at the lowest value, and its affine.
    """
    from scipy.ndimage import affine_transform

    along, down, step = leaning[:3, :3].T
    normal = np.cross(along, down)
    normal /= np.linalg.norm(normal)
    upright = normal * (step @ normal)
    aside = np.linalg.lstsq(np.stack([along, down], axis=1), step - upright, rcond=None)[0]
    ends = np.stack([np.zeros(2), aside * (voxels.shape[2] - 1)])
    low, high = np.floor(ends.min(axis=0) + 1e-6), np.ceil(ends.max(axis=0) - 1e-6)
    affine = leaning.copy()
    affine[:3, 2] = upright
    affine[:3, 3] += along * low[0] + down * low[1]
    shape = (*(int(n) for n in np.array(voxels.shape[:2]) + high - low), voxels.shape[2])
    back = np.linalg.inv(leaning) @ affine
    moved = affine_transform(
        voxels, back[:3, :3], back[:3, 3], output_shape=shape, order=1, mode="constant", cval=float(voxels.min())
    )
    return moved, affine
