"""`run_dcm2niix`: convert a DICOM series to NIfTI with dcm2niix, in a process and a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.dicom.attributes import silenced
from neuroflamingo_preprocessing.formats.nifti.read_nifti import parse_header

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.dicom.series import Series
    from neuroflamingo_preprocessing.geometry import Affine

TIMEOUT_SECONDS = 900
OPTIONS = (  # explicit, so that no defaults file applies: no header values in file names, no rotation, no cropping
    *("-g", "i", "-b", "y", "-ba", "y", "-z", "n", "-f", "%s", "-x", "i", "-i", "n", "-d", "0", "-w", "2", "-c", ""),
    *("-m", "y"),  # one volume, though its numbers differ a little from slice to slice: it was grouped here
)


def run_dcm2niix(series: Series, place: Path) -> Path:
    """Convert the files of one series, renamed to numbers, to one volume or run.

    Args:
        series: the series.
        place: an empty folder, which holds the result.

    Returns:
        Path of the NIfTI file.

    Raises:
        ScanError: dcm2niix cannot be started (exit 69), does not finish in time (75), or gives other files (65).
    """
    import dcm2niix  # type: ignore[import-untyped]

    inputs, outputs = place / "given", place / "got"
    inputs.mkdir()
    outputs.mkdir()
    for number, file in enumerate(series.files):
        _link(file, inputs / f"{number:06d}.dcm")
    try:
        ended = subprocess.run(
            [dcm2niix.bin, *OPTIONS, "-o", str(outputs), str(inputs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # it repeats header values, so nothing of it is shown
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_SECONDS,
            env={**os.environ, "HOME": str(place)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _failed(series, f"dcm2niix did not finish within {TIMEOUT_SECONDS} s", 75) from None
    except OSError as error:
        raise _failed(series, f"dcm2niix does not start here ({error.strerror})", 69) from None
    shutil.rmtree(inputs)
    found = [file for file in sorted(outputs.glob("*.nii")) if not ("_Eq_" in file.name or "_Tilt_" in file.name)]
    if ended.returncode and not found:
        raise _failed(series, f"dcm2niix ended with code {ended.returncode}")
    return _settle(_pick(found, series), place, series)


def _link(file: Path, target: Path) -> None:
    """Link a file under another name; a file without preamble gets one, because dcm2niix would skip it."""
    with file.open("rb") as stream:
        head = stream.read(132)
    if head[128:] != b"DICM":
        _with_preamble(file, target, head[:2] == b"\x02\0")
        return
    try:
        target.symlink_to(file.resolve())
    except OSError:  # no links on this system
        shutil.copyfile(file, target)


def _with_preamble(file: Path, target: Path, has_meta: bool) -> None:
    if has_meta:
        target.write_bytes(bytes(128) + b"DICM" + file.read_bytes())
        return
    from pydicom import dcmread
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        with silenced():
            data = dcmread(file, force=True)
            data.file_meta = FileMetaDataset()
            implicit = data.original_encoding[0]
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            data.save_as(target, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        raise ScanError(
            "a DICOM file without preamble cannot be read to its end",
            expected="elements of a DICOM image",
            seen=type(error).__name__,
            hint="export the series again, as DICOM files with their preamble",
        ) from error


def _pick(found: list[Path], series: Series) -> Path:
    """Choose the output with the sizes, the echo and the component of the series."""
    fitting = []
    for file in found:
        shape, _ = sizes_and_affine(file, series)
        echo = _sidecar(file).get("EchoTime")
        same_echo = series.echo_time is None or echo is None or abs(1000 * echo - series.echo_time) < 0.05
        component = next((c for c, mark in _MARKS.items() if file.stem.endswith(mark)), "magnitude")
        if sorted(shape[:3]) == sorted(series.sizes) and same_echo and component == series.component:
            fitting.append(file)
    if len(fitting) != 1:
        raise _failed(series, f"dcm2niix made {len(found)} volumes of it, {len(fitting)} of them of the right size")
    return fitting[0]


_MARKS = {"phase": "_ph", "real": "_real", "imaginary": "_imaginary"}


def _sidecar(file: Path) -> dict[str, Any]:
    side = file.with_suffix(".json")
    try:
        metadata = json.loads(side.read_text(encoding="utf-8", errors="replace")) if side.is_file() else {}
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _settle(file: Path, place: Path, series: Series) -> Path:
    """Rename the file as the series is named in records; of the sidecar only the repetition time is kept."""
    seconds = _sidecar(file).get("RepetitionTime")
    target = place / series.name
    file.rename(target)
    if isinstance(seconds, int | float):
        (place / f"{series.name}.json").write_text(json.dumps({"RepetitionTime": seconds}), encoding="utf-8")
    shutil.rmtree(place / "got")
    return target


def sizes_and_affine(file: Path, series: Series) -> tuple[tuple[int, ...], Affine]:
    """Sizes and affine of a converted file; the rest of its header is checked by `read_nifti`."""
    with file.open("rb") as stream:
        header = parse_header(stream.read(544), series.name)
    return tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]), np.asarray(header.get_best_affine())


def _failed(series: Series, why: str, exit_code: int | None = None) -> ScanError:
    return ScanError(
        f"{series.name} cannot be converted",
        expected="one volume or run",
        seen=f"{why}; {series.describe()}",
        hint="export the series again, uncompressed if there is a choice",
        exit_code=exit_code,
    )
