"""`read_scan` and `read_run`: read a volume or a run of any supported file format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input, refuse_series, shown_name
from neuroflamingo_preprocessing.formats.dicom.read_dicom import open_dicom
from neuroflamingo_preprocessing.formats.itk import is_itk, itk_sizes, read_itk
from neuroflamingo_preprocessing.formats.nifti.pair import is_pair, pair_sizes, read_pair
from neuroflamingo_preprocessing.formats.nifti.read_nifti import modality_of, read_nifti, to_float
from neuroflamingo_preprocessing.formats.nifti.run import Run, nifti_sizes, read_nifti_run
from neuroflamingo_preprocessing.formats.nifti.xform import Xform, checked_xform, refuse_xform
from neuroflamingo_preprocessing.formats.zarr.metadata import is_zarr
from neuroflamingo_preprocessing.formats.zarr.read_zarr import read_zarr, zarr_sizes
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.user_files import check_input

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.spec import ScanSpec


def read_scan(
    path: str | Path, series: int | None = None, *, xform: Xform = "auto", series_sha256: str | None = None
) -> Scan:
    """Read one volume: NIfTI-1 or -2, FreeSurfer's MGH, NRRD, MetaImage, a zarr folder, or DICOM; see docs/formats.md.

    Any byte order and orientation. Voxels are read once in their stored type and scaled once to float32. The affine of
    a NIfTI header is the sform if its code is above 0, else the qform; the two are compared, and a difference gives a
    warning or an error. DICOM is a folder, a zip archive or one enhanced file; see `read_dicom.open_dicom`.

    Args:
        path: file or folder of the scan; for zarr see `read_zarr`.
        series: number of a DICOM series; None: the only T1-weighted volume.
        xform: `sform` or `qform` uses that one, even where the other puts left on the other side (with a warning).
        series_sha256: hash of the DICOM series if it is known, see `Examination.digest`; it is not hashed again.

    Raises:
        NotFoundError: no such file (exit 66).
        UsageError: no such `xform`; a series of a file that is not DICOM, or a series that does not exist.
        ScanError: not a NIfTI file, truncated, or a header or voxels that cannot be a whole head (exit 65).

    Example:
        >>> import nibabel, numpy as np
        >>> voxels = np.random.default_rng(0).integers(0, 1000, (64, 64, 48), dtype=np.int16)
        >>> image = nibabel.Nifti1Image(voxels, np.diag([-3.0, 3.0, 4.0, 1.0]))
        >>> image.to_filename("sub-01_T1w.nii.gz")
        >>> scan = read_scan("sub-01_T1w.nii.gz")
        >>> scan.voxels.dtype, scan.modality, scan.spacing
        (dtype('float32'), 'T1w', (3.0, 3.0, 4.0))
        >>> scan.provenance.header["orientation"]
        'LAS'
    """
    path, xform = Path(path), checked_xform(xform)
    check_input(path)
    if is_dicom_input(path):
        refuse_xform(shown_name(path), xform, "DICOM")
        with open_dicom(path) as examination:
            return examination.scan(series, series_sha256)
    refuse_series(path, series)
    if is_zarr(path):
        stored, checked, provenance = read_zarr(path, xform)
        voxels, warnings = to_float(stored, checked, path.name)
        provenance = replace(provenance, warnings=(*provenance.warnings, *warnings))
        return Scan(voxels, checked.affine, modality_of(path.name), provenance, space=checked.code)
    if is_itk(path):
        return read_itk(path, xform)
    return read_pair(path, xform) if is_pair(path) else read_nifti(path, xform)


def read_run(
    path: str | Path,
    repetition_time: float | None = None,
    series: int | None = None,
    *,
    xform: Xform = "auto",
    series_sha256: str | None = None,
) -> Run:
    """Open a 4D NIfTI or MGH file: header and repetition time are read here, voxels by `Run.blocks`.

    A DICOM folder or zip archive is converted first: its only fMRI run, or the series of that number.

    The repetition time is the one given here, else that of the sidecars (`NAME.json` beside the file, and in a BIDS
    dataset all that apply; see `read_sidecar`), else that of the header. Where sidecar and header differ, the sidecar's
    is taken, as BIDS says, with a warning.

    Args:
        path: file or folder of the run.
        repetition_time: in seconds.
        series: number of a DICOM series; None: the only fMRI run.
        xform, series_sha256: see `read_scan`.

    Raises:
        NotFoundError: no such file (exit 66).
        UsageError: no such `xform`.
        ScanError: not a NIfTI file, not a time series, an untrustworthy header (exit 65).
    """
    path, xform = Path(path), checked_xform(xform)
    check_input(path, "a 4D .nii or .nii.gz file")
    if is_dicom_input(path):
        refuse_xform(shown_name(path), xform, "DICOM")
        with open_dicom(path) as examination:
            return examination.run(series, repetition_time, series_sha256)
    refuse_series(path, series)
    if is_zarr(path):
        raise ScanError(
            f"{path.name}: runs are not read from zarr",
            expected="a 4D .nii, .nii.gz, .mgh or .mgz file",
            seen="a zarr folder",
            hint="write the run as .nii.gz",
        )
    if is_itk(path) or is_pair(path):
        raise ScanError(
            f"{path.name}: runs are not read from files of this kind",
            expected="a 4D .nii, .nii.gz, .mgh or .mgz file",
            seen=path.suffix,
            hint="save the run as .nii.gz",
        )
    return read_nifti_run(path, repetition_time, xform)


def channel_files(path: Path, spec: ScanSpec) -> list[Path]:
    """The files of an encoder's further channels: beside the first one's, with their suffix in place of its own.

    `sub-01_T2w.nii.gz` for `sub-01_T1w.nii.gz`; empty for an encoder of one channel, and for a file that does not have
    the first channel's suffix.

    Args:
        path: of the first channel.
        spec: `card.scan` of the encoder.
    """
    if len(spec.channels) < 2 or is_dicom_input(path):
        return []
    first, *further = spec.channels
    before, suffix, ending = path.name.rpartition(f"_{first}")
    return [path.with_name(f"{before}_{other}{ending}") for other in further] if suffix else []


def read_channels(path: str | Path, spec: ScanSpec, xform: Xform = "auto") -> list[Scan]:
    """Read the further channels of an encoder, see `channel_files`; empty for an encoder of one channel.

    Raises:
        UsageError: the file's name does not say that it is the first channel (exit 2).
        NotFoundError: no such file beside it (exit 66).
        ScanError: see `read_scan`.
    """
    path = Path(path)
    if len(spec.channels) < 2:
        return []
    files = channel_files(path, spec)
    if not files:
        raise UsageError(
            f"the further channels of {path.name} cannot be found by its name",
            expected=f"a file NAME_{spec.channels[0]}.nii.gz, and beside it NAME_{spec.channels[1]}.nii.gz",
            seen=shown_name(path),
            hint="name both files so, or give a ready array with all channels",
        )
    for file in files:
        if not file.exists():
            raise NotFoundError(
                f"there is no {file.name} beside {path.name}",
                expected=f"a file for each channel: {', '.join(spec.channels)}",
                hint="put it there, registered to the first one",
            )
    return [read_scan(file, xform=xform) for file in files]


def is_run(path: str | Path) -> bool:
    """True if the header of a scan claims more than one volume; see `claimed_sizes`."""
    return any(n > 1 for n in claimed_sizes(path)[3:])


def claimed_sizes(path: str | Path) -> tuple[int, ...]:
    """Sizes that a header claims, x, y and z first, unchecked.

    Raises:
        NotFoundError, ScanError: no such file, or not a scan.
    """
    path = Path(path)
    check_input(path)
    if is_zarr(path):
        return zarr_sizes(path)
    if is_itk(path):
        return itk_sizes(path)
    return pair_sizes(path) if is_pair(path) else nifti_sizes(path)
