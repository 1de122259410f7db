"""Read `Scan` and `Run` from DICOM: dcm2niix converts, and its result is verified against the DICOM headers."""

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

from neuroflamingo_preprocessing.errors import ScanError, noting
from neuroflamingo_preprocessing.files import sha256_of, sha256_of_text
from neuroflamingo_preprocessing.formats.dicom.archive import dicom_files, is_dicom_file, is_dicom_input, walk
from neuroflamingo_preprocessing.formats.dicom.attributes import COMPRESSED, read_images, require_dicom_extra, silenced
from neuroflamingo_preprocessing.formats.dicom.conversion import run_dcm2niix, sizes_and_affine
from neuroflamingo_preprocessing.formats.dicom.series import Series, group_series
from neuroflamingo_preprocessing.formats.dicom.series_selection import choose_series
from neuroflamingo_preprocessing.formats.dicom.verification import flips_between, misplaced, verify_contents
from neuroflamingo_preprocessing.formats.nifti.header import MAX_VOXELS
from neuroflamingo_preprocessing.formats.nifti.read_nifti import read_nifti
from neuroflamingo_preprocessing.formats.nifti.run import Run, read_nifti_run
from neuroflamingo_preprocessing.geometry import Affine, GeometryStep, apply, as_rows, corners

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.scan import Provenance, Scan, ScanModality

ScanKind = Literal["T1w", "bold"]
MAX_BYTES = 2**34
"""Largest size of all voxels of a series."""
TRIED = 5
"""Files of a folder that are tried for the examination it belongs to: the first ones may be damaged, or reports."""
OFF_SHARE = 0.25
"""Largest distance, in voxels, of a corner of the converted volume from its position by the headers."""
MODALITIES: dict[str, ScanModality] = {"T1w": "T1w", "T2w": "T2w", "FLAIR": "FLAIR", "bold": "bold", "dwi": "dwi"}


@dataclass(frozen=True)
class ConvertedSeries:
    """Series converted by dcm2niix.

    Attributes:
        file: the NIfTI file, with its sidecar beside it.
        series: the series.
        remarks: warnings about the choice of the series.
        sha256: hash of the sorted hashes of the series' files, independent of their names and order.
        affine: voxel index to RAS mm by the headers, in the file's voxel order; None for a mosaic.
        sheared: True if the file's affine is wrong because of a gantry tilt; the voxels need `straighten`.
    """

    file: Path
    series: Series
    remarks: tuple[str, ...]
    sha256: str
    affine: Affine | None
    sheared: bool

    def provenance(self, of_file: Provenance) -> Provenance:
        """Provenance of the series, from that of its NIfTI file."""
        series = self.series
        facts = {
            "format": f"DICOM ({series.form})",
            "series": str(series.number),
            "kind": series.kind + (f", {series.part}" if series.part else ""),
            "images": f"{series.slices} slices, {series.volumes} volumes, {len(series.files)} files",
            "compression": COMPRESSED.get(series.syntax, "none"),
            "maker": series.maker,
            "converted by": f"dcm2niix {version('dcm2niix')}",
        }
        facts |= {key: value for key, value in of_file.header.items() if key != "format"}
        return replace(
            of_file, file=series.name, sha256=self.sha256, header=facts, warnings=(*self.remarks, *of_file.warnings)
        )

    def log(self, stored: Affine, shape: tuple[int, ...]) -> tuple[GeometryStep, ...]:
        """Entry for the geometry log: the change of voxel order by the conversion."""
        series = self.series
        if series.affine is None:
            return ()
        return (
            GeometryStep(
                name="DICOM conversion",
                before=as_rows(series.affine),
                after=as_rows(stored),
                interpolation="none",
                reason=f"the images of {series.name} stacked by dcm2niix {version('dcm2niix')}; positions and contents "
                "verified against the images",
                shape_before=shape,
                shape_after=shape,
            ),
        )


class Examination:
    """Series of a DICOM input, while it is open; see `open_dicom`."""

    def __init__(self, series: list[Series]) -> None:
        self.series = series

    def kind(self, number: int | None = None) -> Literal["volume", "run"]:
        """Kind of input that a series is, or, without a number, that the default choice would be."""
        chosen = [series for series in self.series if series.number == number] or self.series
        if any(series.volumes == 1 and (number is not None or series.kind == "T1w") for series in chosen):
            return "volume"
        return (
            "run"
            if any(series.volumes > 1 and (number is not None or series.kind == "bold") for series in chosen)
            else "volume"
        )

    def digest(self, kind: ScanKind, number: int | None = None) -> str:
        """Hash of the series that would be read.

        Raises:
            UsageError, ScanError: see `choose_series`.
        """
        return _digest(choose_series(self.series, kind, number)[0])

    def scan(self, number: int | None = None, series_sha256: str | None = None) -> Scan:
        """Read the T1-weighted volume, or the series of that number.

        Args:
            number: number of the series.
            series_sha256: result of `digest` if it is known; the files are not hashed again.

        Raises:
            UsageError, ScanError: see `choose_series` and `read_scan`.
        """
        with tempfile.TemporaryDirectory(prefix="neuroflamingo-dicom-") as place:
            done = self._convert("T1w", number, Path(place), series_sha256)
            scan = read_nifti(done.file)
        provenance, steps = done.provenance(scan.provenance), done.log(scan.affine, scan.voxels.shape)
        scan = replace(scan, provenance=provenance, modality=MODALITIES.get(done.series.kind, "unknown"))
        if done.sheared:
            assert done.affine is not None
            voxels, affine = straighten(scan.voxels, done.affine)
            warning = (
                f"the slices lean by {done.series.tilt_degrees:.1f} degrees (a tilted gantry); they were straightened"
            )
            step = GeometryStep(
                name="gantry tilt removed",
                before=as_rows(done.affine),
                after=as_rows(affine),
                interpolation="linear",
                reason=f"gantry tilt of {done.series.tilt_degrees:.1f} degrees: each slice was shifted in plane",
                shape_before=scan.voxels.shape,
                shape_after=voxels.shape,
            )
            provenance = replace(provenance, warnings=(*provenance.warnings, warning))
            steps = (*done.log(done.affine, scan.voxels.shape), step)
            scan = replace(scan, voxels=voxels, affine=affine, provenance=provenance)
        return replace(scan, geometry=steps)

    def run(
        self, number: int | None = None, repetition_time: float | None = None, series_sha256: str | None = None
    ) -> Run:
        """Read the fMRI run, or the series of that number; its NIfTI file is deleted when the run is no longer used.

        Args:
            number: number of the series.
            repetition_time: in seconds, see `read_run`.
            series_sha256: see `scan`.

        Raises:
            UsageError, ScanError: see `choose_series` and `read_run`.
        """
        place = _TemporaryFolder()
        done = self._convert("bold", number, place.path, series_sha256)
        if done.sheared:
            raise misplaced(done.series.name, f"slices tilted by {done.series.tilt_degrees:.1f} degrees")
        run = read_nifti_run(done.file, repetition_time)
        steps = done.log(run.affine, run.shape)
        return replace(run, provenance=done.provenance(run.provenance), geometry=steps, _kept=place)

    def _convert(self, kind: ScanKind, number: int | None, place: Path, sha256: str | None) -> ConvertedSeries:
        chosen, remarks = choose_series(self.series, kind, number)
        with noting(remarks):
            return self._converted(chosen, remarks, place, sha256)

    def _converted(self, chosen: Series, remarks: list[str], place: Path, sha256: str | None) -> ConvertedSeries:
        _refuse_huge(chosen)
        file = run_dcm2niix(chosen, place)
        shape, stored = sizes_and_affine(file, chosen)
        if chosen.affine is not None and shape[:3] != chosen.sizes:
            raise misplaced(chosen.name, f"{shape} voxels")
        affine, sheared = _verify_affine(chosen, shape, stored)
        if verify_contents(file, chosen, stored):
            remarks.append(f"dcm2niix mixed up the slices of the volumes of {chosen.name}; they were reordered")
        return ConvertedSeries(file, chosen, tuple(remarks), sha256 or _digest(chosen), affine, sheared)


@contextmanager
def open_dicom(path: str | Path) -> Iterator[Examination]:
    """Open a folder, a zip archive or a single DICOM file and read its headers; archives stay unpacked while open.

    Raises:
        ScanError: the extra `dicom` is missing (exit 69); no DICOM images; an archive that is not unpacked (exit 65).
    """
    try:
        with dicom_files(Path(path)) as files:
            require_dicom_extra()
            yield Examination(_series_of(files))
    except OSError as error:  # its message holds names of folders and files
        raise ScanError(
            "a DICOM file cannot be read or converted",
            seen=error.strerror or type(error).__name__,
            hint="check permissions, and the space in the temporary folder (TMPDIR)",
            exit_code=74,
        ) from None


def _series_of(files: list[Path]) -> list[Series]:
    with silenced():
        read = [read_images(file) for file in files]
        series = group_series(image for images in read for image in images or ())
    lost = read.count(None)
    if not series:
        raise ScanError(
            "the DICOM files hold no readable images",
            expected="an MR series",
            seen=f"{len(files)} file{'s' * (len(files) > 1)}" + (f", {lost} of them damaged or empty" if lost else ""),
            hint="export the images again: reports, key objects and DICOMDIR alone are not a scan",
        )
    if lost:
        warning = (
            f"{lost} DICOM file{'s are' if lost > 1 else ' is'} damaged, cut off or empty, so slices may be missing at "
            "an end of the series: copy it again"
        )
        series = [replace(one, warnings=(*one.warnings, warning)) for one in series]
    return series


def examinations(folder: Path) -> list[Path]:
    """Find the DICOM inputs below a folder: the folder of each examination, and each zip archive.

    Images of each folder are read until one says which examination it belongs to; examinations in nested folders count
    as one input.

    Raises:
        ScanError: the extra `dicom` is missing (exit 69).
    """
    firsts: dict[Path, list[Path]] = {}
    archives = []
    for file in walk(folder):
        if file.suffix.lower() == ".zip" and is_dicom_input(file):
            archives.append(file)
        elif len(firsts.get(file.parent, ())) < TRIED and file.name.upper() != "DICOMDIR" and is_dicom_file(file):
            firsts.setdefault(file.parent, []).append(file)
    if firsts or archives:
        require_dicom_extra()
    studies: dict[str, list[Path]] = {}
    with silenced():
        for parent, files in firsts.items():
            study = next((image.study for file in files for image in read_images(file) or ()), "")
            studies.setdefault(study or str(parent), []).append(parent)
    places = sorted({Path(os.path.commonpath(parents)) for parents in studies.values()})
    outer = [place for place in places if not any(place.is_relative_to(other) for other in places if other != place)]
    return sorted([*outer, *archives])


def list_series(path: str | Path) -> list[Series]:
    """List the series of a DICOM folder, zip archive or file, by number.

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


class _TemporaryFolder:
    """Temporary folder that exists as long as this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="neuroflamingo-dicom-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _verify_affine(series: Series, shape: tuple[int, ...], stored: Affine) -> tuple[Affine | None, bool]:
    """Affine by the headers, in the file's voxel order, and whether the file's affine differs because of a tilt.

    dcm2niix writes an affine without shear for a tilted stack of MR slices, centimetres off, without a warning.

    Raises:
        ScanError: the file puts the voxels elsewhere than the headers do.
    """
    if series.affine is None:
        return None, False
    expected = series.affine @ flips_between(series.affine, stored, shape)
    ends = corners(tuple(shape[:3]))
    off = float(np.linalg.norm(apply(expected, ends) - apply(stored, ends), axis=1).max())
    if off <= OFF_SHARE * np.linalg.norm(expected[:3, :3], axis=0).min():
        return expected, False
    if series.tilt_degrees < 0.05:
        raise misplaced(series.name, f"a corner {off:.1f} mm away from there")
    return expected, True


def straighten(voxels: NDArray[np.float32], leaning: Affine) -> tuple[NDArray[np.float32], Affine]:
    """Remove a gantry tilt: shift each slice (the last axis) in plane until the stack is a box. Linear interpolation.

    dcm2niix can do this too, but for one of two opposite tilts its result is 2.3 mm (a voxel) off.

    Args:
        voxels: `[x, y, slice]`.
        leaning: voxel index to RAS mm, its third column not at right angles to the others.

    Returns:
        Voxels on a grid that holds the whole stack, with uncovered corners at the lowest value, and its affine.
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
