"""`PreparedInput`, the result of `prepare`: tensors, metadata, and views for the pictures of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from jaxtyping import Float32, Float64
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.geometry import Affine, GeometryStep
    from neuroflamingo_preprocessing.scan import Provenance, Scan
    from neuroflamingo_preprocessing.structural.prepare_volume import Prepared


@dataclass(frozen=True)
class PreparedWindow:
    """Window of an input: one tensor for an encoder.

    Attributes:
        tensor: axes of the encoder's input; float32, or int64 for the ids of a sequence.
        metadata: plain data: name, hash of the input, geometry log, warnings, and the frames of a run.
    """

    tensor: NDArray[Any]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class QualityCheck:
    """Quality measure and its threshold.

    Attributes:
        subject: subject of the check, such as `alignment`.
        measure: name of the measure; empty if the subject names it.
        value: measured value.
        at_least: threshold below which a reader should check the scan.
    """

    subject: str
    measure: str
    value: float
    at_least: float


@dataclass(frozen=True)
class VolumeView:
    """Volume before and after preparation."""

    scan: Scan
    prepared: Prepared


@dataclass(frozen=True)
class RunView:
    """Run: mean volume on the encoder's grid, and change and motion of each frame.

    Attributes:
        mean: `[x, y, z]`, before the intensity steps.
        affine: voxel index of that grid to RAS mm.
        dvars: in percent, one value for each frame except the first.
        displacement: framewise displacement in mm, from a confounds table.
        repetition_time: seconds between frames; None if unknown.
    """

    mean: Float32[np.ndarray, "x y z"]
    affine: Affine
    dvars: Float64[np.ndarray, " frame"]
    displacement: Float64[np.ndarray, " frame"] | None
    repetition_time: float | None


@dataclass(frozen=True)
class SeriesView:
    """Parcel series before the encoder's normalisation, `[parcel, frame]`."""

    series: Float32[np.ndarray, "parcel frame"]
    repetition_time: float | None


@dataclass(frozen=True)
class ArrayView:
    """Prepared array with the names of its axes; its position in world space is unknown."""

    values: NDArray[Any]
    axes: tuple[str, ...]


View = VolumeView | RunView | SeriesView | ArrayView


@dataclass(frozen=True)
class PreparedInput:
    """Input prepared for an encoder.

    Attributes:
        name: name in messages and reports, without folder.
        windows: one tensor, or one for each window of a run.
        provenance: provenance of the file.
        spacing: voxel size in mm along the stored axes; empty if there are no voxels.
        geometry: every change of geometry, in order.
        warnings: problems that do not make the input unusable.
        checks: quality measures with their thresholds.
        timings: seconds by part of the preparation, if measured.
        view: data for pictures; None for results of worker processes.
        forced: checks that the user overrode, for the top of a report.
    """

    name: str
    windows: tuple[PreparedWindow, ...]
    provenance: Provenance
    spacing: tuple[float, ...]
    geometry: tuple[GeometryStep, ...]
    warnings: tuple[str, ...]
    checks: tuple[QualityCheck, ...]
    timings: Mapping[str, float]
    view: View | None
    forced: tuple[str, ...] = ()

    @property
    def tensor(self) -> NDArray[Any]:
        """The tensor, or that of the first window."""
        return self.windows[0].tensor

    @property
    def volume(self) -> Prepared:
        """The prepared volume, with its transform to the template.

        Raises:
            TypeError: the input is not a volume.
        """
        if not isinstance(self.view, VolumeView):
            raise TypeError(f"{self.name} was not prepared as a volume")
        return self.view.prepared
