"""Attention evidence of sentences: the statements that get an overlay, their peaks, and the pictures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.report.evidence import locate, words_of
from neuroflamingo.report.native_overlay import native_view
from neuroflamingo.report.pictures import canvas_of, picture_of_alignment, picture_of_attention, picture_of_slices
from neuroflamingo.report.records import Evidence, Picture, Statement
from neuroflamingo.report.time_pictures import picture_of_carpet, pictures_of_array, pictures_of_run
from neuroflamingo_preprocessing.prepared_input import ArrayView, RunView, SeriesView, VolumeView

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


def trace(statements: Sequence[Statement], generated: GeneratedText) -> tuple[tuple[Statement, ...], tuple[Trace, ...]]:
    """Add evidence to the sentences of FINDINGS that state findings (of IMPRESSION, if FINDINGS states none).

    A report without findings gets one overlay for its whole FINDINGS section, with the id `all`, so that the reader can
    see the model's attention there too.
    """
    if generated.attention is None or generated.positions is None or not len(generated.attention):
        return tuple(statements), ()
    traces = {}
    for statement in _worth_showing(statements, generated.text):
        found = _trace_one(statement, generated.attention, generated.positions, generated.boundaries)
        if found is not None:
            traces[statement.id] = (statement, found)
    out = [
        statement.model_copy(update={"evidence": traces[statement.id][1].evidence})
        if statement.id in traces
        else statement
        for statement in statements
    ]
    if WHOLE in traces:
        whole, found = traces[WHOLE]
        out.insert(0, whole.model_copy(update={"evidence": found.evidence}))
    return tuple(out), tuple(found for _, found in traces.values())


def draw(views: Sequence[View | None], traces: Sequence[Trace], generated: GeneratedText) -> tuple[Picture, ...]:
    """Draw all pictures of a report: the input, and on volumes the attention of the model."""
    pictures: list[Picture] = []
    canvases = {}
    for number, view in enumerate(views):
        if isinstance(view, VolumeView):
            canvases[number] = canvas_of(view.prepared.tensor[0], view.prepared.affine)
            pictures += picture_of_slices(canvases[number], number)
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
    return tuple(pictures)


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
    statement: Statement, attention: np.ndarray, positions: np.ndarray, boundaries: Sequence[int]
) -> Trace | None:
    words = words_of(boundaries, statement.start, statement.end)[: len(attention)]
    if not words.any():
        return None
    by_scan = attention[words].mean(0)
    scan = int(np.argmax(by_scan.sum(-1)))
    evidence = locate(by_scan[scan], positions, scan, statement.findings)
    return None if evidence is None else Trace(statement.id, by_scan[scan], evidence)
