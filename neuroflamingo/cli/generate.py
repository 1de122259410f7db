"""The command `generate`, and `evaluate --data`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.cli.dry_run import SHOWN
from neuroflamingo.cli.errors import SOME_FAILED, say_error
from neuroflamingo.cli.outputs import make_folder
from neuroflamingo.progress import Progress, say

if TYPE_CHECKING:
    from neuroflamingo.cli.requests import EvaluateRequest, GenerateRequest
    from neuroflamingo.data.manifest_scores import ManifestEvaluation


def generate_answers(request: GenerateRequest) -> int:
    """Write the answers of a model to a manifest's samples and print the file; return 1 if some got none."""
    from neuroflamingo.data.manifest import read_manifest
    from neuroflamingo.data.manifest_answers import AnswerSettings, write_answers
    from neuroflamingo.inference.loaded_model import open_model

    samples = read_manifest([request.data])
    settings = AnswerSettings(
        template=request.template,
        batch=request.batch,
        max_new_tokens=request.max_new_tokens,
        processes=request.processes,
        scans=Path(request.scans) if request.scans else None,
        tokens=Path(request.tokens) if request.tokens else None,
        force=request.force,
    )
    with Progress(quiet=request.quiet) as progress:
        progress("loading the model")
        opened = open_model(request.model, device=request.device)
        progress(f"writing {len(samples)} answers")
        written = write_answers(
            opened, samples, {"own": request.output}, settings, overwrite=request.overwrite, progress=progress.count
        )
    found = written["own"]
    for name, why in list(found.failed.items())[:SHOWN]:
        say_error(f"no answer to {name}: {why}")
    say(request.output)
    return SOME_FAILED if found.failed else 0


def evaluate_data(request: EvaluateRequest, data: str) -> int:
    """Score a model on a manifest and print tables or JSON; return 1 if some samples got no answer."""
    from neuroflamingo.data.manifest import read_manifest
    from neuroflamingo.data.manifest_answers import AnswerSettings
    from neuroflamingo.data.manifest_scores import evaluate_manifest
    from neuroflamingo.inference.loaded_model import open_model

    samples = read_manifest([data])
    if request.log is not None:
        make_folder(Path(request.log))
    settings = AnswerSettings(request.template, request.batch, request.max_new_tokens)
    with Progress(quiet=request.quiet) as progress, tempfile.TemporaryDirectory(prefix="evaluate-") as spare:
        progress("loading the model")
        opened = open_model(request.model, device=request.device)
        progress(f"evaluating {opened.name} on {len(samples)} samples of {Path(data).name}")
        found = evaluate_manifest(opened, samples, request.log or spare, settings, progress=progress.count)
    found.about.update({"model": opened.name, "digest": opened.record.digest, "data": Path(data).name})
    if request.csv is not None:
        found.scores.write_csv(request.csv, overwrite=request.overwrite)
    say(json.dumps(found.to_json(), indent=2) if request.json else _tables(found))
    for name, why in list(found.failed.items())[:SHOWN]:
        say_error(f"no answer to {name}: {why}")
    return SOME_FAILED if found.failed else 0


def _tables(found: ManifestEvaluation) -> str:
    from neuroflamingo.cli.audit import audit_words
    from neuroflamingo.cli.score import score_words

    parts = [score_words(found.scores)]
    if found.questions:
        parts.append("\n".join(f"{name.replace('_', ' ')}: {value:.3f}" for name, value in found.questions.items()))
    parts.append(audit_words(found.reliance) if found.reliance else "reliance on scans: not known, one person only")
    return "\n\n".join(parts)
