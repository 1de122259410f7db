"""The command `score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.progress import Progress, say
from neuroflamingo_preprocessing.files import check_writable, write_text_atomic
from neuroflamingo_preprocessing.software import installed_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from neuroflamingo.cli.requests import ScoreRequest
    from neuroflamingo.evaluation.report_texts import Columns, NamedText
    from neuroflamingo.evaluation.text_scores import TextScores


def score_files(request: ScoreRequest) -> int:
    """Score the reports of a file or folder, print a table or JSON, and write what else was asked for.

    Outputs that cannot be written are refused before anything is read.
    """
    for path in (request.csv, request.html):
        if path is not None:
            check_writable(path, overwrite=request.overwrite)
    from neuroflamingo.evaluation.report_texts import Columns, Faults, read_references, stream_texts
    from neuroflamingo.evaluation.text_scores import score_texts

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
        _write(request, own, references, scores, other)
    _print(request, scores, other)
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
    scores: TextScores,
    other: TextScores | None,
) -> None:
    if request.csv is not None:
        scores.write_csv(request.csv, overwrite=request.overwrite)
    if request.html is not None:
        from neuroflamingo.evaluation.score_page import score_page, worst

        wanted = {pair.id for pair in worst(scores)}
        texts = {one.id: one for one in _again(request.predictions, own) if one.id in wanted}
        page = score_page(scores, references, texts, title=Path(request.predictions).name, other=other)
        write_text_atomic(request.html, page, overwrite=request.overwrite)


def _again(source: str, columns: Columns) -> Iterator[NamedText]:
    """The reports once more: while they are scored none is kept, since the file may be larger than the memory."""
    from neuroflamingo.evaluation.report_texts import Faults, stream_texts

    return stream_texts(source, "predictions", columns, Faults(""))


def _print(request: ScoreRequest, scores: TextScores, other: TextScores | None) -> None:
    if request.json:
        from neuroflamingo.evaluation.paired_test import differences

        out = scores.to_json()
        if other is not None:
            apart = differences(scores, other)
            out["against"] = other.to_json()
            out["differences"] = {
                name: None if one is None else {"value": one.value, "interval": one.interval, "p": one.p}
                for name, one in apart.items()
            }
        say(json.dumps(out, indent=2))
        return
    say(score_words(scores, other))


def score_words(scores: TextScores, other: TextScores | None = None) -> str:
    """Tables of figures and classes, and notes."""
    from neuroflamingo.evaluation.score_page import figure_rows, label_rows

    parts = []
    for heads, rows in (figure_rows(scores, other), label_rows(scores)):
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]))
    notes = [
        f"note{f' ({source})' if (source := one.about.get('reports')) else ''}: {note}"
        for one in filter(None, (scores, other))
        for note in one.notes
    ]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])
