"""`Run`: an fMRI run in a 4D NIfTI or MGH file, read in blocks of frames."""

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
    """Observer of the blocks of a run while they are read, such as `FrameWatch`."""

    def add(self, first: int, block: Float32[np.ndarray, "x y z frame"]) -> None:
        """Take a block; `first` is the index of its first frame."""


@dataclass(frozen=True)
class Run:
    """fMRI run on disk.

    Attributes:
        path: the file.
        shape: voxels along x, y, z as stored.
        frames: number of volumes.
        affine: voxel index to world, RAS+ millimetres.
        repetition_time: in seconds; None if it is not known.
        provenance: see `Provenance`.
        geometry: changes of geometry made on reading (DICOM only).
        times: time of each frame in seconds from the first one, where frames in between were left out; else None.
        displacement: framewise displacement in mm, where confounds are known; else None.
    """

    path: Path
    shape: tuple[int, int, int]
    frames: int
    affine: Float64[np.ndarray, "4 4"]
    repetition_time: float | None
    provenance: Provenance
    _header: CheckedHeader
    geometry: tuple[GeometryStep, ...] = ()
    _kept: object = None  # holds a temporary file, which is removed together with the run
    times: Float64[np.ndarray, " frame"] | None = None
    displacement: Float64[np.ndarray, " frame"] | None = None

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return self.provenance.file or "the run"

    def blocks(
        self, frames: int | None = None, watch: BlockWatch | None = None
    ) -> Iterator[tuple[int, Float32[np.ndarray, "x y z frame"]]]:
        """Read blocks of volumes in order, each with the index of its first frame; the file is read once, sequentially.

        Voxels are scaled once to float32, in Fortran order (each frame is contiguous); non-finite ones are NaN.

        Args:
            frames: number per block; None: as many as fit in 16 MB.
            watch: sees every block as stored.

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
    """Stream of the decompressed bytes; errors of the file system and of the compression become typed ones."""
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


def _repetition_time(
    header: Any, path: Path, user_seconds: float | None, warnings: list[str]
) -> tuple[float | None, str]:
    """Repetition time in seconds, and its source in words."""
    if user_seconds is not None:
        return _plausible(user_seconds, path.name, "--tr"), "the user"
    in_sidecar = _in_sidecar(path)
    seen = _in_header(header)
    if in_sidecar is None:
        if seen is None:
            return None, "nowhere"
        if int(header["xyzt_units"]) & 0x38 not in TIME_UNIT:
            stated_as = float(header["pixdim"][4])
            warnings.append(f"the header states no unit of time; its {stated_as:g} is read as {seen:g} s")
        return _plausible(seen, path.name, "the header"), "the header"
    stated, sidecar = _plausible(in_sidecar[0], path.name, in_sidecar[1]), in_sidecar[1]
    if seen is not None and abs(seen - stated) > SAME_SECONDS:
        warnings.append(
            f"the repetition time is {stated:g} s in {sidecar} and {seen:g} s in the header; the sidecar's is used, as "
            f"BIDS says (--tr {seen:g} takes the other)"
        )
    return stated, sidecar


def _in_header(header: Any) -> float | None:
    """Repetition time of the header in seconds; None if it is 0. Without a unit, values from 100 are milliseconds."""
    value = round(float(header["pixdim"][4]), 6)  # NIfTI-1 keeps it in single precision
    if not np.isfinite(value) or value <= 0:
        return None
    unit = TIME_UNIT.get(int(header["xyzt_units"]) & 0x38)
    return value * (unit or (1.0 if value < 100 else 1e-3))


def _in_sidecar(path: Path) -> tuple[float, str] | None:
    """Repetition time of the sidecars in seconds, and the name of the file that states it."""
    sidecar = read_sidecar(path)
    seconds, name = sidecar.values.get("RepetitionTime"), sidecar.sources.get("RepetitionTime", "")
    try:
        return None if seconds is None else (float(seconds), name)
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
    """Open a 4D NIfTI or MGH file; see `read_run`.

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
    """Sizes that the header of a NIfTI or MGH file claims; see `claimed_sizes`.

    Raises:
        ScanError: no such header.
    """
    with _opened(path) as stream:
        head = stream.read(HEAD_BYTES)
    if is_mgh(path.name):
        return mgh_sizes(head, path.name)
    dim = [int(n) for n in parse_header(head, path.name)["dim"]]
    return tuple(dim[1 : max(0, min(dim[0], 7)) + 1])
