"""Options of the larger verbs: one record each, from which `takes_groups` makes the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from neuroflamingo.cli.options import (
    AllowDownload,
    BatchSize,
    DenoisingOptions,
    Device,
    Force,
    Json,
    LoadingOptions,
    MaxNewTokens,
    Model,
    Overwrite,
    PreparationOptions,
    Quiet,
    Settings,
    Temperature,
    Template,
)


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """Options of `report`."""

    scans: Annotated[
        list[str], typer.Argument(metavar="SCAN...", help="Inputs of the model: NIfTI, DICOM, table, array or FASTA.")
    ]
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A file (its extension sets the format), a folder, or - for JSON on standard output."
        ),
    ] = None
    formats: Annotated[str | None, typer.Option("--format", help="Comma-separated: html,json,txt,prov.")] = None
    model: Model = "tiny-t1w"
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="SCAN", help="Earlier scan of the same head: the report says what changed."),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Prompt text with one <image> for each scan of a report; default: <image>."),
    ] = None
    examples: Annotated[
        list[str] | None,
        typer.Option("--example", help="Few-shot example SCAN=REPORT.txt, shown before the scan; repeatable."),
    ] = None
    loading: LoadingOptions
    seed: Annotated[int, typer.Option("--seed", help="Random seed for sampling.", min=0)] = 0
    temperature: Temperature = 0.0
    max_new_tokens: MaxNewTokens = 400
    preparation: PreparationOptions
    denoising: DenoisingOptions
    overwrite: Overwrite = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Options of `train`."""

    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="A recipe file, or a built-in recipe's name.")]
    settings: Settings = None
    output: Annotated[str | None, typer.Option("--output", "-o", help="Run folder; default: runs/NAME.")] = None
    resume: Annotated[str, typer.Option("--resume", help="auto (latest), or a checkpoint folder.")] = "auto"
    restart: Annotated[bool, typer.Option("--restart", help="Start over; the run folder is emptied.")] = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check all that training needs; show steps, memory, disk space; write nothing."),
    ] = False
    tiny: Annotated[bool, typer.Option("--tiny", help="Train a toy-sized twin of the recipe on toy data.")] = False
    allow_download: AllowDownload = False
    quiet: Quiet = False

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `neuroflamingo.training.train`."""
        resume = False if self.restart else True if self.resume == "auto" else self.resume
        return {
            "folder": self.output,
            "resume": resume,
            "allow_download": self.allow_download,
            "tiny": self.tiny,
            "quiet": self.quiet,
        }


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Options of `evaluate`."""

    model: Model = "tiny-t1w"
    scans: Annotated[
        str | None,
        typer.Option(
            "--scans", metavar="TRUTH.json", help="Score real scans with known findings instead, see docs/evaluate.md."
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="TEST.jsonl", help="Score a manifest of your own instead, see docs/score.md."),
    ] = None
    template: Template = "plain"
    batch: BatchSize = 8
    max_new_tokens: MaxNewTokens = 400
    longitudinal: Annotated[
        bool,
        typer.Option("--longitudinal", help="Painted pairs, baseline and follow-up: what is said to have changed."),
    ] = False
    versions: Annotated[
        bool,
        typer.Option(
            "--versions", help="With --scans: eight disturbed versions of each scan too (slices, noise, ...)."
        ),
    ] = False
    log: Annotated[
        str | None,
        typer.Option("--log", help="With --scans a file, with --data a folder: rerun to do only what is missing."),
    ] = None
    few_shot: Annotated[
        int | None,
        typer.Option(
            "--few-shot", metavar="K", help="Score reports that follow K examples, and their controls.", min=1
        ),
    ] = None
    cases: Annotated[
        int | None, typer.Option("--cases", help="Number of painted cases to score; default: 200.", min=2)
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the first case; default: start of the held-out range.")
    ] = None
    device: Device = "auto"
    anatomy: Annotated[
        str | None,
        typer.Option("--anatomy", help="A head's name, a T1w file or a folder to paint into; default: the template."),
    ] = None
    outlines: Annotated[
        str | None,
        typer.Option("--outlines", help="Real lesions' masks in MNI space (folder or tar) for infarcts."),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="FOLDER", help="Keep prepared painted scans here; a rerun goes on there."),
    ] = None
    json: Json = False
    csv: Annotated[str | None, typer.Option("--csv", help="Write one row per case or scan to this file.")] = None
    overwrite: Overwrite = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """Options of `audit`."""

    scans: Annotated[
        str, typer.Option("--scans", metavar="FOLDER|FILE", help="NIfTI or MGH scans, or a table with one scan a row.")
    ]
    command: Annotated[
        str | None,
        typer.Option(
            "--command", help="A program that prints the report: 'PROGRAM {scan}'; {reference}: see the docs."
        ),
    ] = None
    model: Annotated[str | None, typer.Option("--model", help="Instead: an embedded model, or a model folder.")] = None
    references: Annotated[
        str | None,
        typer.Option("--references", metavar="FILE|FOLDER", help="True reports, joined by id; default: the table's."),
    ] = None
    cases: Annotated[int | None, typer.Option("--cases", help="Take the first N scans only.", min=2)] = None
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for each report of a command.", min=1)] = 600.0
    texts: Annotated[
        str | None, typer.Option("--texts", metavar="FILE.jsonl", help="Write all reports on scans and controls here.")
    ] = None
    device: Device = "auto"
    json: Json = False
    overwrite: Overwrite = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """Options of `generate`."""

    data: Annotated[str, typer.Option("--data", metavar="MANIFEST.jsonl", help="Samples, as `train` takes them.")]
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="An answer a line; rerun to go on.")
    ]
    model: Model = "tiny-t1w"
    template: Template = "plain"
    batch: BatchSize = 8
    max_new_tokens: MaxNewTokens = 400
    processes: Annotated[
        int | None, typer.Option("--processes", help="Processes that prepare scans; default: one a core.", min=1)
    ] = None
    scans: Annotated[str | None, typer.Option("--scans", help="Store of prepared scans, as data.scans.")] = None
    tokens: Annotated[str | None, typer.Option("--tokens", help="Store of tokens, as data.tokens.")] = None
    device: Device = "auto"
    force: Force = False
    overwrite: Overwrite = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Options of `score`."""

    references: Annotated[
        str, typer.Option("--references", metavar="FILE|FOLDER", help="True reports: JSONL, CSV, ..., or ID.txt files.")
    ]
    predictions: Annotated[
        str, typer.Option("--predictions", metavar="FILE|FOLDER", help="Reports to score, joined by their ids.")
    ]
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="FILE|FOLDER", help="Another system's reports: a paired test is added."),
    ] = None
    reference_id: Annotated[str | None, typer.Option("--reference-id", help="Column of the references' ids.")] = None
    reference_text: Annotated[str | None, typer.Option("--reference-text", help="Column of the references' texts.")] = (
        None
    )
    prediction_id: Annotated[str | None, typer.Option("--prediction-id", help="Column of the reports' ids.")] = None
    prediction_text: Annotated[str | None, typer.Option("--prediction-text", help="Column of the reports' texts.")] = (
        None
    )
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="FILE", help="Labels of a data set, one a line, to be scored as a table."),
    ] = None
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="A missing report counts as an empty one; one without reference is left out."
        ),
    ] = False
    words: Annotated[
        bool, typer.Option("--words/--no-words", help="Count BLEU, ROUGE-L, METEOR and CIDEr too, for comparison.")
    ] = True
    resamples: Annotated[
        int, typer.Option("--resamples", help="Draws for the 95 % intervals and the test.", min=100, max=100_000)
    ] = 1000
    json: Json = False
    csv: Annotated[str | None, typer.Option("--csv", help="Write one row per case to this file.")] = None
    html: Annotated[str | None, typer.Option("--html", help="Write a page with all cases, worst first.")] = None
    overwrite: Overwrite = False
    quiet: Quiet = False
