"""`Scan`: voxels, their position in world space, and their provenance."""

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
    """Provenance of a scan, without folders and free text of the header: both may name the patient.

    Attributes:
        file: file name without its folder; None for a scan made in memory.
        sha256: hash of the file on disk.
        header_sha256: hash of the header's bytes.
        header: the header fields that were used: format, sizes, stored type, units, codes and source of the affine.
        warnings: oddities that do not make the scan unusable.
    """

    file: str | None = None
    sha256: str | None = None
    header_sha256: str | None = None
    header: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class NativeSpace:
    """Voxel grid of a scan as stored, to which maps are resampled back.

    Attributes:
        shape: number of voxels along the stored axes.
        affine: stored voxel index to world, RAS+ millimetres.
        code: NIfTI code of the world space: 1 scanner, 2 aligned, 3 Talairach, 4 MNI152, 5 another template.
    """

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]
    code: int = 1


@dataclass(frozen=True)
class Scan:
    """One volume as stored, in its own orientation.

    Attributes:
        voxels: float32 `[x, y, z]`, finite, in the file's units after its scaling.
        affine: voxel index to world, RAS+ millimetres.
        modality: from the BIDS suffix of the file name, or the technique in a DICOM header; else `unknown`.
        provenance: see `Provenance`.
        geometry: changes of geometry made on reading (DICOM only).
        space: NIfTI code of the world space; 1 is the scanner's.

    Example:
        >>> import numpy as np
        >>> scan = Scan(np.zeros((64, 64, 30), np.float32), np.diag([3.0, 3.0, 5.0, 1.0]))
        >>> scan.spacing
        (3.0, 3.0, 5.0)
        >>> scan.native.shape
        (64, 64, 30)
    """

    voxels: Float32[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    modality: ScanModality = "unknown"
    provenance: Provenance = field(default_factory=Provenance)
    geometry: tuple[GeometryStep, ...] = ()
    space: int = 1

    @property
    def native(self) -> NativeSpace:
        """Voxel grid as stored."""
        x, y, z = self.voxels.shape
        return NativeSpace((x, y, z), self.affine, self.space)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the stored axes in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)
