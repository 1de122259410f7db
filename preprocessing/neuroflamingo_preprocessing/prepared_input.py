"""What the one door gives: the tensors of an input, everything that is known of it, and what a person can look at."""

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
    """One tensor for an encoder.

    Attributes:
        tensor: the axes of the encoder's input; float32, but for the ids of a sequence, which are int64.
        about: plain data: name, hash of the input, geometry log, warnings, and which frames of a run these are.
    """

    tensor: NDArray[Any]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class QualityCheck:
    """One figure held against its threshold.

    Attributes:
        subject: what was measured, such as `alignment`.
        measure: the figure's name; empty where the subject says it.
        value: what was seen.
        at_least: below this a reader should look.
    """

    subject: str
    measure: str
    value: float
    at_least: float


@dataclass(frozen=True)
class VolumeView:
    """A volume as it came and as the encoder takes it."""

    scan: Scan
    prepared: Prepared


@dataclass(frozen=True)
class RunView:
    """A run: its mean volume on the encoder's grid, and how much each frame changed and moved.

    Attributes:
        mean: `[x, y, z]`, before the intensity steps.
        affine: of that grid, index to RAS mm.
        dvars: percent, one value for each frame but the first.
        displacement: framewise displacement in mm, where a table of confounds says it.
        repetition_time: seconds between frames; None where it is not known.
    """

    mean: Float32[np.ndarray, "x y z"]
    affine: Affine
    dvars: Float64[np.ndarray, " frame"]
    displacement: Float64[np.ndarray, " frame"] | None
    repetition_time: float | None


@dataclass(frozen=True)
class SeriesView:
    """A parcel series before the encoder's normalisation, `[parcel, frame]`."""

    series: Float32[np.ndarray, "parcel frame"]
    repetition_time: float | None


@dataclass(frozen=True)
class ArrayView:
    """A ready array with the names of its axes; where it lies in the world is not known."""

    values: NDArray[Any]
    axes: tuple[str, ...]


View = VolumeView | RunView | SeriesView | ArrayView


@dataclass(frozen=True)
class PreparedInput:
    """An input as an encoder takes it.

    Attributes:
        name: what messages and reports call it; no folder.
        windows: one tensor, or one for each window of a run.
        provenance: what was read.
        spacing: voxel size in mm along the stored axes; empty where there are no voxels.
        geometry: every change of geometry, in order.
        warnings: what was odd but usable, in reading and preparing.
        checks: figures with their thresholds.
        timings: seconds by part of the preparation, where they are counted.
        view: what a person can look at; None once it was left behind in a worker process.
        forced: what the user insisted on, for the top of a report.
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
        """The prepared volume, with its place in the template and the way back.

        Raises:
            TypeError: the input was no volume.
        """
        if not isinstance(self.view, VolumeView):
            raise TypeError(f"{self.name} was prepared as something else than one volume")
        return self.view.prepared
