"""Pictures of inputs that are not one volume: motion and mean of a run, the carpet of a parcel series, ready arrays."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo.report.pictures import canvas_of, picture_of_slices
from neuroflamingo.report.records import Picture, PictureKind

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import NDArray

    from neuroflamingo_preprocessing.prepared_input import ArrayView, RunView, SeriesView

_WIDE, _LOW, _HIGH = 9.0, 2.2, 3.6
"""Inches of the drawings, at 100 dots an inch."""
_MOST_TILES = 12


def pictures_of_run(view: RunView, scan: int) -> tuple[Picture, ...]:
    """The mean volume in three planes, and how much the frames changed and moved."""
    mean = picture_of_slices(canvas_of(view.mean, view.affine), scan, kind="mean")
    return (*mean, picture_of_motion(view, scan))


def picture_of_motion(view: RunView, scan: int) -> Picture:
    """DVARS of each frame and, where confounds say it, framewise displacement, over time."""
    figure, (axes,) = _figure(_LOW)
    seconds = view.repetition_time or 1.0
    axes.plot(seconds * np.arange(1, len(view.dvars) + 1), view.dvars, color="#cd3c19", linewidth=1)
    axes.set_ylabel("DVARS (%)")
    axes.set_xlabel("seconds" if view.repetition_time else "frame")
    words = f"DVARS over {len(view.dvars) + 1} frames, median {np.median(view.dvars):.2g} %" if len(view.dvars) else ""
    if view.displacement is not None and len(view.displacement):
        moved = axes.twinx()
        moved.plot(seconds * np.arange(len(view.displacement)), view.displacement, color="#1f6f8b", linewidth=1)
        moved.set_ylabel("displacement (mm)")
        words += f"; framewise displacement at most {view.displacement.max():.2g} mm"
    return _finished(figure, "motion", scan, words or "Motion of a run of one frame")


def picture_of_carpet(view: SeriesView, scan: int) -> Picture:
    """Draw a carpet plot: a row per parcel, a column per frame, each parcel z-scored."""
    centred = view.series - view.series.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    values = centred / np.where(spread > 0, spread, 1)
    figure, (axes,) = _figure(_HIGH)
    parcels, frames = values.shape
    last = frames * (view.repetition_time or 1.0)
    axes.imshow(
        values, aspect="auto", cmap="gray", vmin=-2, vmax=2, interpolation="nearest", extent=(0, last, parcels, 0)
    )
    axes.set_ylabel("parcel")
    axes.set_xlabel("seconds" if view.repetition_time else "frame")
    return _finished(figure, "carpet", scan, f"Carpet plot of {parcels} parcels over {frames} frames, z scores")


def pictures_of_array(view: ArrayView, scan: int) -> tuple[Picture, ...]:
    """Slices of a ready array as it was given, or a curve where it has one axis; its place in the world is unknown."""
    planes = _planes(view)
    if planes is None:
        return ()
    figure, all_axes = _figure(_LOW, len(planes))
    for axes, plane in zip(all_axes, planes, strict=True):
        axes.imshow(plane.T, cmap="gray", origin="lower")
        axes.set_axis_off()
    shape = " x ".join(str(size) for size in view.values.shape)
    return (_finished(figure, "array", scan, f"{len(planes)} planes of the array as given, {shape}"),)


def _planes(view: ArrayView) -> list[Float[np.ndarray, "across up"]] | None:
    """Planes along z, of the first channel and frame; the array itself, if it is a picture; None without x and y."""
    names = list(view.axes)
    if not {"x", "y"} <= set(names):
        return None
    first: Any = tuple(slice(None) if name in ("x", "y", "z") else 0 for name in names)
    values, left = view.values[first], [name for name in names if name in ("x", "y", "z")]
    values = np.moveaxis(values, [left.index(name) for name in sorted(left)], range(len(left)))
    if values.ndim == 2:
        return [values]
    chosen = np.unique(np.linspace(0, values.shape[2] - 1, min(_MOST_TILES, values.shape[2])).round().astype(int))
    return [values[:, :, index] for index in chosen]


def _figure(height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # without pyplot: no display is looked for

    figure = Figure(figsize=(_WIDE, height), dpi=100, layout="constrained")
    axes: NDArray[Any] = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def _finished(figure: Any, kind: PictureKind, scan: int, alt: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    width, height = (int(size) for size in figure.canvas.get_width_height())
    return Picture(
        kind=kind,
        plane=None,
        scan=scan,
        position_mm=None,
        media_type="image/png",
        data=buffer.getvalue(),
        width=width,
        height=height,
        alt=alt,
    )
