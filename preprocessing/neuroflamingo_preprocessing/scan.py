"""`Scan`: voxels with their place in the world, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

    from neuroflamingo_preprocessing.geometry import GeometryStep

ScanModality = Literal["T1w", "T2w", "FLAIR", "bold", "dwi", "unknown"]


@dataclass(frozen=True)
class Provenance:
    """What was read, for the report. No folder and no free text of the header: both may name the patient.

    Attributes:
        file: file name without its folder; None for a scan made in memory.
        sha256: hash of the file as it lies on disk.
        header_sha256: hash of the header's bytes.
        header: the facts that were used: format, sizes, stored type, units, codes and source of the affine.
        warnings: what was odd but usable.
    """

    file: str | None = None
    sha256: str | None = None
    header_sha256: str | None = None
    header: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class NativeSpace:
    """Where a scan's voxels lie as they were stored: what a map needs to go back there.

    Attributes:
        shape: voxels along the stored axes.
        affine: stored voxel index to world, RAS+ millimetres.
        code: NIfTI's name of that world: 1 scanner, 2 aligned, 3 Talairach, 4 MNI152, 5 another template.
    """

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]
    code: int = 1


@dataclass(frozen=True)
class Scan:
    """One volume as stored, in its own orientation.

    Attributes:
        voxels: float32 `[x, y, z]`, finite, in the file's own units after its scaling.
        affine: voxel index to world, RAS+ millimetres.
        modality: what the file's name says by the BIDS suffix, or a DICOM header by its technique; else `unknown`.
        provenance: see there.
        geometry: what reading did to the geometry (DICOM only).
        space: NIfTI's name of the world that the affine leads to; 1 is the scanner's.
    """

    voxels: Float32[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    modality: ScanModality = "unknown"
    provenance: Provenance = field(default_factory=Provenance)
    geometry: tuple[GeometryStep, ...] = ()
    space: int = 1

    @property
    def native(self) -> NativeSpace:
        """Its own voxels' place."""
        x, y, z = self.voxels.shape
        return NativeSpace((x, y, z), self.affine, self.space)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the stored axes in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)
