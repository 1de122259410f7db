"""Attention evidence of sentences: the statements that get an overlay, their peaks, and the pictures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.report.evidence import locate, same_peaks, words_of
from neuroflamingo.report.native_overlay import native_view
from neuroflamingo.report.pictures import (
    Canvas,
    canvas_of,
    picture_of_alignment,
    picture_of_attention,
    picture_of_example,
    picture_of_slices,
)
from neuroflamingo.report.records import Evidence, Picture, Statement
from neuroflamingo.report.time_pictures import picture_of_carpet, pictures_of_array, pictures_of_run
from neuroflamingo_preprocessing.geometry import apply
from neuroflamingo_preprocessing.prepared_input import ArrayView, RunView, SeriesView, VolumeView
from neuroflamingo_preprocessing.structural.template import grid_affine, load_template

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo.report.records import GeneratedText
from neuroflamingo_preprocessing.prepared_input import View

WHOLE = "all"


@dataclass(frozen=True)
class Trace:
    """Attention of one statement, on the scan that received most of it."""

    statement: str
    weights: Float[np.ndarray, " token"]
    evidence: Evidence


def trace(
    statements: Sequence[Statement], generated: GeneratedText, views: Sequence[View | None] = ()
) -> tuple[tuple[Statement, ...], tuple[Trace, ...]]:
    """Add evidence to the sentences of FINDINGS that state findings (of IMPRESSION, if FINDINGS states none).

    A report without findings gets one overlay for its whole FINDINGS section, with the id `all`, so that the reader can
    see the model's attention there too.

    Args:
        statements: of the report.
        generated: the text with its attention.
        views: of the report's scans, for where their brains lie.
    """
    if generated.attention is None or generated.positions is None or not len(generated.attention):
        return tuple(statements), ()
    brains = [brain_points(view) for view in views]
    traces: dict[str, tuple[Statement, Trace]] = {}
    for statement in _worth_showing(statements, generated.text):
        found = _trace_one(statement, generated.attention, generated.positions, generated.boundaries, brains)
        if found is not None:
            traces[statement.id] = (statement, found)
    evidence = same_peaks({name: found.evidence for name, (_, found) in traces.items()})
    traces = {name: (one, replace(found, evidence=evidence[name])) for name, (one, found) in traces.items()}
    out = [
        statement.model_copy(update={"evidence": evidence[statement.id]}) if statement.id in evidence else statement
        for statement in statements
    ]
    if WHOLE in traces:
        out.insert(0, traces[WHOLE][0].model_copy(update={"evidence": evidence[WHOLE]}))
    return tuple(out), tuple(found for _, found in traces.values())


def brain_points(view: View | None) -> Float[np.ndarray, "point 3"] | None:
    """Voxels of a volume's brain in the world of its tokens, mm: of its own brain, else of the template's.

    None if the input is no volume in a template's space.
    """
    if not isinstance(view, VolumeView) or view.prepared.template is None:
        return None
    if view.prepared.brain is None:
        return apply(grid_affine(), np.argwhere(load_template().grid_mask))
    order = np.abs(view.prepared.affine[:3, :3]).argmax(0).argsort()  # the mask has x, y and z in this order
    return apply(view.prepared.affine[:, [*order, 3]], np.argwhere(view.prepared.brain))


def draw(
    views: Sequence[View | None],
    traces: Sequence[Trace],
    generated: GeneratedText,
    examples: Sequence[View | None] = (),
) -> tuple[Picture, ...]:
    """Draw all pictures of a report: the input, on volumes the attention of the model, and the examples' scans.

    Several volumes on one grid are drawn at the same places, so that they can be compared slice by slice.
    """
    pictures: list[Picture] = []
    canvases = {number: _canvas(view) for number, view in enumerate(views) if isinstance(view, VolumeView)}
    extent = common_extent(list(canvases.values()))
    for number, view in enumerate(views):
        if isinstance(view, VolumeView):
            pictures += picture_of_slices(canvases[number], number, extent=extent)
            if view.prepared.template is not None:
                pictures += picture_of_alignment(*native_view(view.scan, view.prepared), number)
        elif isinstance(view, RunView):
            pictures += pictures_of_run(view, number)
        elif isinstance(view, SeriesView):
            pictures.append(picture_of_carpet(view, number))
        elif isinstance(view, ArrayView):
            pictures += pictures_of_array(view, number)
    for found in traces:
        if found.evidence.scan in canvases and generated.positions is not None:
            canvas = canvases[found.evidence.scan]
            weights, positions = found.weights, generated.positions
            pictures += picture_of_attention(canvas, weights, positions, found.evidence, found.statement)
    for number, view in enumerate(examples):
        if isinstance(view, VolumeView):
            pictures += picture_of_example(_canvas(view), number)
    return tuple(pictures)


def _canvas(view: VolumeView) -> Canvas:
    return canvas_of(view.prepared.tensor[0], view.prepared.affine)


def common_extent(canvases: Sequence[Canvas]) -> Float[np.ndarray, "x y z"] | None:
    """Where any of several volumes shows something; None if they do not lie on one grid."""
    if not canvases or any(one.grey.shape != canvases[0].grey.shape for one in canvases):
        return None
    if any(not np.allclose(one.affine, canvases[0].affine) for one in canvases):
        return None
    return np.max([one.grey for one in canvases], axis=0)


def _worth_showing(statements: Sequence[Statement], text: str) -> list[Statement]:
    for section in ("findings", "impression"):
        stating = [item for item in statements if item.section == section and item.findings]
        if stating:
            return stating
    body = [item for item in statements if item.section == "findings"]
    if not body:
        return []
    start, end = min(item.start for item in body), max(item.end for item in body)
    return [Statement(id=WHOLE, section="findings", start=start, end=end, text=text[start:end])]


def _trace_one(
    statement: Statement,
    attention: np.ndarray,
    positions: np.ndarray,
    boundaries: Sequence[int],
    brains: Sequence[np.ndarray | None],
) -> Trace | None:
    words = words_of(boundaries, statement.start, statement.end)[: len(attention)]
    if not words.any():
        return None
    by_scan = attention[words].mean(0)
    scan = int(np.argmax(by_scan.sum(-1)))
    brain = brains[scan] if scan < len(brains) else None
    evidence = locate(by_scan[scan], positions, scan, statement.findings, brain)
    return None if evidence is None else Trace(statement.id, by_scan[scan], evidence)
