"""The commands `train`, `evaluate` and `paint`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.cli.dry_run import SHOWN
from neuroflamingo.cli.errors import SOME_FAILED, say_error
from neuroflamingo.cli.outputs import make_folder
from neuroflamingo.progress import Progress, say
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.files import check_writable, write_bytes_atomic
from neuroflamingo_preprocessing.software import software

if TYPE_CHECKING:
    from neuroflamingo.cli.requests import EvaluateRequest, TrainRequest


def train_recipe(request: TrainRequest) -> int:
    """Train from a recipe and print the folder of the finished model; the trainer shows its own progress.

    With `--dry-run`, print what it would do and what it would stop at; return the exit code of that.
    """
    from neuroflamingo.recipe.find import find_config
    from neuroflamingo.recipe.read import load_any_recipe

    path, overrides = find_config(request.config), list(request.settings or ())
    load_any_recipe(path, overrides)  # so that its faults are reported before torch is imported
    if request.dry_run:
        return _rehearse(path, overrides, request)
    from neuroflamingo.training.run import train

    done = train(path, overrides, **request.keywords())
    if os.environ.get("RANK", "0") == "0":  # several processes, one line of output
        say(done)
    return 0


def _rehearse(path: Path, overrides: list[str], request: TrainRequest) -> int:
    from neuroflamingo.training.rehearsal import rehearse

    keywords = {name: value for name, value in request.keywords().items() if name != "quiet"}
    found = rehearse(path, overrides, **keywords)
    if os.environ.get("RANK", "0") == "0":
        if found.text:
            say(found.text)
        for fault in found.faults:
            say_error(str(fault))
    return found.faults[0].exit_code if found.faults else 0


def evaluate_model(request: EvaluateRequest) -> int:
    """Score a model and print a table or JSON; return 1 if some scans could not be prepared.

    An output that cannot be written is refused before the evaluation.

    Raises:
        UsageError: options of painted cases together with real scans, or the other way round.
    """
    _check_options(request)
    if request.csv is not None:
        check_writable(request.csv, overwrite=request.overwrite)
    if request.scans is not None:
        return _evaluate_scans(request, request.scans)
    if request.data is not None:
        from neuroflamingo.cli.generate import evaluate_data

        return evaluate_data(request, request.data)
    from neuroflamingo.evaluation.evaluate import TEST_SEED, evaluate
    from neuroflamingo.evaluation.evaluate_follow_ups import evaluate_follow_ups
    from neuroflamingo.evaluation.few_shot import evaluate_few_shot
    from neuroflamingo.inference.loaded_model import open_model
    from neuroflamingo.painting.heads import TEMPLATE

    cases = 200 if request.cases is None else request.cases
    with Progress(quiet=request.quiet) as progress:
        progress("loading the model")
        opened = open_model(request.model, device=request.device)
        progress(f"evaluating {opened.name} on {cases} painted {'pairs' if request.longitudinal else 'cases'}")
        score: Callable[..., Any] = evaluate_follow_ups if request.longitudinal else evaluate
        if request.few_shot is not None:
            score = partial(evaluate_few_shot, examples=request.few_shot)
        evaluation = score(
            opened.model,
            opened.processor,
            cases=cases,
            seed=TEST_SEED if request.seed is None else request.seed,
            anatomy=request.anatomy or TEMPLATE,
            outlines=request.outlines,
            keep=request.keep,
            progress=progress.count,
            metadata={"model": opened.name, "files": opened.record.files},
        )
    _write_csv(request, evaluation)
    say(json.dumps(evaluation.to_json(), indent=2) if request.json else evaluation.table())
    for number, why in evaluation.failed[:SHOWN]:
        say_error(f"the case of seed {number} was not prepared: {why}")
    return SOME_FAILED if evaluation.failed else 0


def _check_options(request: EvaluateRequest) -> None:
    painted = {
        "--cases": request.cases,
        "--seed": request.seed,
        "--anatomy": request.anatomy,
        "--outlines": request.outlines,
        "--longitudinal": request.longitudinal or None,
        "--few-shot": request.few_shot,
        "--keep": request.keep,
    }
    if request.scans and request.data:
        raise UsageError("--scans and --data are two evaluations", hint="run one after the other")
    real = {"--versions": request.versions or None}
    log = {"--log": request.log}
    other = painted if request.scans else painted | real if request.data else real | log
    given = [name for name, value in other.items() if value is not None]
    if given:
        what = "painted cases" if request.scans else "real scans (--scans TRUTH.json)"
        what = "painted cases or --scans" if request.data else what
        raise UsageError(f"{', '.join(given)}: only for {what}", hint=f"leave out {', '.join(given)}")
    if request.longitudinal and request.few_shot is not None:
        raise UsageError("--longitudinal and --few-shot are two evaluations", hint="run one after the other")


def _write_csv(request: EvaluateRequest, evaluation: Any) -> None:
    if request.csv is not None:
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "cases.csv"
            evaluation.write_csv(draft)
            write_bytes_atomic(request.csv, draft.read_bytes(), overwrite=request.overwrite)


def _evaluate_scans(request: EvaluateRequest, truth: str) -> int:
    """Score a model on real scans; return 1 if some T1-weighted ones were refused."""
    from neuroflamingo.evaluation.evaluate_scans import evaluate_scans
    from neuroflamingo.evaluation.truth_file import read_truth
    from neuroflamingo.inference.loaded_model import open_model
    from neuroflamingo.inference.pipeline import write_report

    if request.log is not None:
        check_writable(request.log, overwrite=True)
    read_truth(truth)  # its faults come before the model is loaded
    with Progress(quiet=request.quiet) as progress:
        progress("loading the model")
        opened = open_model(request.model, device=request.device)
        progress(f"evaluating {opened.name} on the scans of {Path(truth).name}")
        facts = {"model": opened.name, "digest": opened.record.digest, "software": software().model_dump(mode="json")}
        evaluation = evaluate_scans(
            truth,
            lambda scan: write_report(scan, model=opened, pictures=False),
            versions=request.versions,
            log=request.log,
            model=f"{opened.record.digest} {software().version} {software().git_commit}",
            progress=progress.count,
            about=facts | {"truth": Path(truth).name},
        )
    _write_csv(request, evaluation)
    say(json.dumps(evaluation.to_json(), indent=2) if request.json else evaluation.table())
    return SOME_FAILED if evaluation.refused else 0


def paint_scans(
    cases: int,
    seed: int,
    folder: str,
    *,
    heads: str | None,
    outlines: str | None,
    follow_up: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Paint cases into a folder and print the paths of their scans."""
    make_folder(Path(folder))
    check_writable(Path(folder) / "trial", overwrite=True)
    from neuroflamingo.painting.export import paint_cases
    from neuroflamingo.painting.heads import TEMPLATE
    from neuroflamingo.painting.real_heads import find_heads

    anatomy = TEMPLATE if heads is None else find_heads(heads)
    with Progress(quiet=quiet) as progress:
        progress(f"painting {cases} case{'s' if cases > 1 else ''}")
        paths = paint_cases(
            cases,
            seed,
            folder,
            anatomy=anatomy,
            outlines=outlines,
            follow_up=follow_up,
            overwrite=overwrite,
            progress=lambda done, total: progress.count("painted", done, total),
            warn=lambda sentence: say(f"warning: {sentence}", file=sys.stderr),
        )
    say("\n".join(map(str, paths)))
