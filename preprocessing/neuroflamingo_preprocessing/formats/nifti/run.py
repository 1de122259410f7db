"""`read_run`: a 4D NIfTI file as an fMRI run that is read in blocks of frames; header first, as for single volumes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from isal import igzip

from neuroflamingo_preprocessing.bids.sidecars import SAME_SECONDS, read_sidecar
from neuroflamingo_preprocessing.errors import ScanError, not_readable
from neuroflamingo_preprocessing.formats.mgh import is_mgh, mgh_sizes, mgh_time
from neuroflamingo_preprocessing.formats.nifti.read_nifti import BROKEN_STREAM, HEAD_BYTES, checked_head, parse_header
from neuroflamingo_preprocessing.formats.nifti.voxels import read_voxels, refuse_excess, refuse_short, truncated
from neuroflamingo_preprocessing.scan import Provenance

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

    from neuroflamingo_preprocessing.formats.nifti.header import CheckedHeader
    from neuroflamingo_preprocessing.formats.nifti.xform import Xform
    from neuroflamingo_preprocessing.geometry import GeometryStep

BLOCK_BYTES = 2**24  # of float32 voxels: some 4 frames at 2 mm; the C library reuses blocks up to twice this size
TIME_UNIT = {8: 1.0, 16: 1e-3, 24: 1e-6}
PLAUSIBLE_SECONDS = (0.05, 30.0)


class BlockWatch(Protocol):
    """What is shown every block of a run while it is read, such as `FrameWatch`."""

    def add(self, first: int, block: Float32[np.ndarray, "x y z frame"]) -> None:
        """Take a block, whose first frame has the number `first`."""


@dataclass(frozen=True)
class Run:
    """An fMRI run on disk.

    Attributes:
        path: the file.
        shape: voxels along x, y, z as stored.
        frames: how many volumes.
        affine: voxel index to world, RAS+ millimetres.
        repetition_time: seconds between frames; None if nothing says.
        provenance: see there.
        geometry: what reading did to the geometry (DICOM only).
        times: seconds of each frame from the first one, where frames in between were left out; else None.
        displacement: framewise displacement in mm, where a table of confounds says it.
    """

    path: Path
    shape: tuple[int, int, int]
    frames: int
    affine: Float64[np.ndarray, "4 4"]
    repetition_time: float | None
    provenance: Provenance
    _header: CheckedHeader
    geometry: tuple[GeometryStep, ...] = ()
    _kept: object = None  # of a temporary file: it goes when this goes
    times: Float64[np.ndarray, " frame"] | None = None
    displacement: Float64[np.ndarray, " frame"] | None = None

    @property
    def name(self) -> str:
        """What messages call the run."""
        return self.provenance.file or "the run"

    def blocks(
        self, frames: int | None = None, watch: BlockWatch | None = None
    ) -> Iterator[tuple[int, Float32[np.ndarray, "x y z frame"]]]:
        """Blocks of volumes in order, each with the number of its first frame; the file is read once, from its start.

        Voxels are scaled once to float32, Fortran order (each frame is contiguous); those that are no numbers are NaN.

        Args:
            frames: per block; None: as many as fit 16 MB.
            watch: is shown every block as it is stored.

        Raises:
            ScanError: the file is shorter or longer than its header says, or its compression is damaged.
        """
        header = self._header
        stored, voxels = header.data_bytes // header.frame_bytes, int(np.prod(self.shape))
        count = frames or max(1, BLOCK_BYTES // (4 * voxels))
        with _voxel_stream(self.path, header) as stream:
            for first in range(0, stored, count):
                number = min(count, stored - first)
                flat = np.empty(number * voxels, np.float32)
                if not np.isfinite(read_voxels(stream, header, flat, self.name, first * voxels)).all():
                    flat[~np.isfinite(flat)] = np.nan
                block = flat.reshape((*self.shape, number), order="F")
                if watch is not None:
                    watch.add(first, block)
                yield first, block
            refuse_excess(stream, header, self.name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file's bytes, decompressed; errors of the file system and of the compression are ours."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield igzip.GzipFile(fileobj=raw) if packed else raw
    except BROKEN_STREAM as error:
        raise truncated(path.name, str(error)) from error
    except OSError as error:
        raise not_readable(path, error) from error


@contextmanager
def _voxel_stream(path: Path, header: CheckedHeader) -> Iterator[Any]:
    with _opened(path) as stream:
        stream.seek(header.offset)
        yield stream


def _repetition_time(header: Any, path: Path, given: float | None, warnings: list[str]) -> tuple[float | None, str]:
    """Seconds and where they come from."""
    if given is not None:
        return _plausible(given, path.name, "--tr"), "the user"
    said = _in_sidecar(path)
    seen = _in_header(header)
    if said is None:
        if seen is None:
            return None, "nowhere"
        if int(header["xyzt_units"]) & 0x38 not in TIME_UNIT:
            stated_as = float(header["pixdim"][4])
            warnings.append(f"the header states no unit of time; its {stated_as:g} is taken as {seen:g} s")
        return _plausible(seen, path.name, "the header"), "the header"
    stated, sidecar = _plausible(said[0], path.name, said[1]), said[1]
    if seen is not None and abs(seen - stated) > SAME_SECONDS:
        raise ScanError(
            f"{path.name}: sidecar and header state two repetition times",
            expected="one",
            seen=f"{stated:g} s in {sidecar}, {seen:g} s in the header",
            hint=f"find out which is right, then --tr {stated:g} or --tr {seen:g}",
        )
    return stated, sidecar


def _in_header(header: Any) -> float | None:
    """Seconds; None where the header leaves it at 0. Without a unit, hundreds are milliseconds."""
    value = round(float(header["pixdim"][4]), 6)  # NIfTI-1 keeps it in single precision
    if not np.isfinite(value) or value <= 0:
        return None
    unit = TIME_UNIT.get(int(header["xyzt_units"]) & 0x38)
    return value * (unit or (1.0 if value < 100 else 1e-3))


def _in_sidecar(path: Path) -> tuple[float, str] | None:
    """Seconds, and the name of the sidecar that says so."""
    sidecar = read_sidecar(path)
    said, name = sidecar.values.get("RepetitionTime"), sidecar.said_by.get("RepetitionTime", "")
    try:
        return None if said is None else (float(said), name)
    except (ValueError, TypeError, OverflowError) as error:
        raise ScanError(
            f"{name} cannot be read",
            expected="a BIDS sidecar: RepetitionTime in seconds",
            seen=str(error)[:200],
            hint="correct or remove it, or give --tr",
        ) from error


def _plausible(seconds: float, name: str, source: str) -> float:
    low, high = PLAUSIBLE_SECONDS
    if not low <= seconds <= high:  # NaN too
        raise ScanError(
            f"{name}: {source} states an impossible repetition time",
            expected=f"{low} to {high:g} s",
            seen=f"{seconds:g} s",
            hint="give the right one in seconds: --tr",
        )
    return seconds


def read_nifti_run(path: Path, repetition_time: float | None = None, xform: Xform = "auto") -> Run:
    """Read the header of a 4D NIfTI or MGH file; see `read_run`.

    Raises:
        ScanError: see `read_run`.
    """
    with path.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    with _opened(path) as stream:
        head, packed = stream.read(HEAD_BYTES), isinstance(stream, igzip.GzipFile)
        checked = checked_head(head, path.name, run=True, xform=xform)
        refuse_short(path, packed, checked)
        header = mgh_time(stream, checked) if checked.footer else parse_header(head, path.name)
    warnings = list(checked.warnings)
    seconds, source = _repetition_time(header, path, repetition_time, warnings)
    facts = checked.facts | {"repetition time": "not stated" if seconds is None else f"{seconds:g} s, from {source}"}
    provenance = Provenance(
        file=path.name,
        sha256=digest,
        header_sha256=hashlib.sha256(head[: checked.header_bytes]).hexdigest(),
        header=facts,
        warnings=tuple(warnings),
    )
    return Run(path, checked.shape, checked.frames, checked.affine, seconds, provenance, checked)


def nifti_sizes(path: Path) -> tuple[int, ...]:
    """The sizes that the header of a NIfTI or MGH file claims; see `claimed_sizes`.

    Raises:
        ScanError: no header of either.
    """
    with _opened(path) as stream:
        head = stream.read(HEAD_BYTES)
    if is_mgh(path.name):
        return mgh_sizes(head, path.name)
    dim = [int(n) for n in parse_header(head, path.name)["dim"]]
    return tuple(dim[1 : max(0, min(dim[0], 7)) + 1])
