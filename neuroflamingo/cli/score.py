"""The command `score`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.progress import Progress, say
from neuroflamingo_preprocessing.files import check_writable, write_text_atomic
from neuroflamingo_preprocessing.software import installed_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from neuroflamingo.cli.requests import ScoreRequest
    from neuroflamingo.evaluation.label_lists import LabelList
    from neuroflamingo.evaluation.report_texts import Columns, NamedText
    from neuroflamingo.evaluation.text_scores import TextScores


@dataclass(frozen=True)
class _Shown:
    """What is shown of a scoring: the system, the one it is compared with, and the labels that were asked for."""

    scores: TextScores
    other: TextScores | None
    labels: LabelList | None

    @property
    def asked(self) -> Mapping[str, str] | None:
        return self.labels and self.labels.names


def score_files(request: ScoreRequest) -> int:
    """Score the reports of a file or folder, print a table or JSON, and write what else was asked for.

    Outputs that cannot be written are refused before anything is read.
    """
    for path in (request.csv, request.html):
        if path is not None:
            check_writable(path, overwrite=request.overwrite)
    from neuroflamingo.evaluation.label_lists import read_labels
    from neuroflamingo.evaluation.report_texts import Columns, Faults, read_references, stream_texts
    from neuroflamingo.evaluation.text_scores import score_texts

    labels = read_labels(request.labels) if request.labels else None
    own = Columns(request.prediction_id, request.prediction_text)
    with Progress(quiet=request.quiet) as progress:
        progress("reading the references")
        references = read_references(request.references, Columns(request.reference_id, request.reference_text))

        def scored(source: str, overlap: object = None) -> TextScores:
            progress(f"scoring {Path(source).name}")
            faults = Faults(Path(source).name)
            found = score_texts(
                references,
                stream_texts(source, "predictions", own, faults),
                words=request.words,
                allow_missing=request.allow_missing,
                resamples=request.resamples,
                faults=faults,
                overlap=overlap,  # type: ignore[arg-type]
                progress=progress.count,
            )
            found.about.update(_about(request, source))
            return found

        scores = scored(request.predictions)
        other = scored(request.against, scores.overlap) if request.against else None
        shown = _Shown(scores, other, labels)
        _write(request, own, references, shown)
    _print(request, shown)
    return 0


def _about(request: ScoreRequest, source: str) -> dict[str, str]:
    """Names of the files, without their folders, and the version that read them."""
    return {
        "references": Path(request.references).name,
        "reports": Path(source).name,
        "software": f"NeuroFlamingo {installed_version('neuroflamingo')}",
    }


def _write(
    request: ScoreRequest,
    own: Columns,
    references: Mapping[str, NamedText],
    shown: _Shown,
) -> None:
    scores = shown.scores
    if request.csv is not None:
        scores.write_csv(request.csv, overwrite=request.overwrite)
    if request.html is not None:
        from neuroflamingo.evaluation.score_page import score_page, worst

        wanted = {pair.id for pair in worst(scores)}
        texts = {one.id: one for one in _again(request.predictions, own) if one.id in wanted}
        page = score_page(
            scores, references, texts, title=Path(request.predictions).name, other=shown.other, asked=shown.asked
        )
        write_text_atomic(request.html, page, overwrite=request.overwrite)


def _again(source: str, columns: Columns) -> Iterator[NamedText]:
    """The reports once more: while they are scored none is kept, since the file may be larger than the memory."""
    from neuroflamingo.evaluation.report_texts import Faults, stream_texts

    return stream_texts(source, "predictions", columns, Faults(""))


def _print(request: ScoreRequest, shown: _Shown) -> None:
    if not request.json:
        say(score_words(shown.scores, shown.other, shown.asked))
        if shown.labels is not None and shown.labels.unknown:
            say(f"\nnote: labels that the reader does not know, not scored: {', '.join(shown.labels.unknown)}")
        return
    from neuroflamingo.evaluation.paired_test import differences

    out = shown.scores.to_json()
    if shown.labels is not None:
        out["asked"] = shown.scores.table_of(shown.labels.names).to_json() | {"unknown": list(shown.labels.unknown)}
    if shown.other is not None:
        apart = differences(shown.scores, shown.other)
        out["against"] = shown.other.to_json()
        out["differences"] = {
            name: None if one is None else {"value": one.value, "interval": one.interval, "p": one.p}
            for name, one in apart.items()
        }
    say(json.dumps(out, indent=2))


def score_words(scores: TextScores, other: TextScores | None = None, asked: Mapping[str, str] | None = None) -> str:
    """Tables of figures and classes, and notes."""
    from neuroflamingo.evaluation.score_page import figure_rows, label_rows

    parts = []
    for heads, rows in (figure_rows(scores, other), label_rows(scores, asked)):
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]))
    notes = [
        f"note{f' ({source})' if (source := one.about.get('reports')) else ''}: {note}"
        for one in filter(None, (scores, other))
        for note in one.notes
    ]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])
