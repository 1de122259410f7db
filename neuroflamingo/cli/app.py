"""Declaration of the top-level commands and their options; each loads the module that does its work when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroflamingo.cli import show_version
from neuroflamingo.cli.data_verbs import data
from neuroflamingo.cli.encoder_verbs import encoders, models
from neuroflamingo.cli.options import (
    AllowDownload,
    AtlasFile,
    CardOptions,
    DenoisingOptions,
    Depth,
    Device,
    Frozen,
    Json,
    LoadingOptions,
    OnDatasets,
    Overwrite,
    PreparationOptions,
    Quiet,
    Raw,
    Series,
    Settings,
    TableRows,
    Tr,
    Verbs,
    WeightsOptions,
    XformName,
    preparation,
    takes_groups,
)
from neuroflamingo.cli.requests import (
    AuditRequest,
    EvaluateRequest,
    GenerateRequest,
    ReportRequest,
    ScoreRequest,
    TrainRequest,
)
from neuroflamingo.cli.store_options import StoreRequest

application = typer.Typer(
    name="neuroflamingo",
    cls=Verbs,
    help="OpenFlamingo for neuroimaging: brain scans in, verifiable report text out. "
    "Research use only, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rendering the help with rich alone would double the start-up time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
application.add_typer(encoders, name="encoders")
application.add_typer(models, name="models")
application.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        show_version()
        raise typer.Exit


@application.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """OpenFlamingo for neuroimaging: brain scans in, verifiable report text out.

    Research use only, not for diagnosis.
    """


@application.command()
@takes_groups
def report(*, context: typer.Context, request: ReportRequest) -> None:
    """Write a report page for each scan; the embedded model reads T1-weighted head scans.

    Without -o, NAME.report.html, NAME.report.json, NAME.report.txt and NAME.prov.json are written to the working
    directory. A prompt with several <image> tokens combines that many scans into one report.
    """
    from neuroflamingo.cli.report import report_scans

    raise typer.Exit(report_scans(request, command=("neuroflamingo", *context.obj)))


@application.command()
@takes_groups
def train(*, request: TrainRequest) -> None:
    """Train a model from a recipe; interrupted runs resume at the exact step.

    For several processes: `torchrun --nproc-per-node N -m neuroflamingo train ...` or `accelerate launch -m
    neuroflamingo train ...`. With --resume FOLDER the recipe may differ from the checkpoint's. On SIGTERM or SIGUSR1
    the run saves a checkpoint and exits with code 75.
    """
    from neuroflamingo.cli.train_evaluate import train_recipe

    raise typer.Exit(train_recipe(request))


@application.command()
@takes_groups
def evaluate(*, request: EvaluateRequest) -> None:
    """Score a model on painted cases with known findings, next to image-reliance controls, or on your own data."""
    from neuroflamingo.cli.train_evaluate import evaluate_model

    raise typer.Exit(evaluate_model(request))


@application.command()
@takes_groups
def score(*, request: ScoreRequest) -> None:
    """Score anybody's reports against reference reports by their findings, with word overlap beside.

    Rows have an id and a text (or known findings); folders hold one ID.txt per report. Nothing is sent anywhere.
    """
    from neuroflamingo.cli.score import score_files

    raise typer.Exit(score_files(request))


@application.command()
@takes_groups
def audit(*, request: AuditRequest) -> None:
    """Find out whether a model uses the scan: any model, as a command that takes a scan and prints a report.

    Each scan is shown as it is, under another name, empty and mirrored, and reports are held against other persons'.
    """
    from neuroflamingo.cli.audit import audit_model

    raise typer.Exit(audit_model(request))


@application.command()
@takes_groups
def generate(*, request: GenerateRequest) -> None:
    """Write a model's answers to the samples of a manifest: reports, or answers to questions, in batches.

    Scans are prepared by several processes. An interrupted run goes on where it was. The exit code is 1 if some scans
    could not be read.
    """
    from neuroflamingo.cli.generate import generate_answers

    raise typer.Exit(generate_answers(request))


@application.command()
def paint(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the scans, findings and reports.")],
    cases: Annotated[int, typer.Option("--cases", help="Number of cases.", min=1)] = 4,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the first case; the others count up from it.", min=0)
    ] = 0,
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads", help="Folder or BIDS dataset of healthy T1w heads to paint into (default: the template)."
        ),
    ] = None,
    outlines: Annotated[
        str | None,
        typer.Option("--outlines", help="Real lesions' masks in MNI space (folder or tar) for half of the infarcts."),
    ] = None,
    follow_up: Annotated[
        bool, typer.Option("--follow-up", help="Paint two scans of each head, with known change between them.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Paint scans with known findings: a NIfTI file, the findings as JSON and a report text per case."""
    from neuroflamingo.cli.train_evaluate import paint_scans

    paint_scans(
        cases, seed, output, heads=heads, outlines=outlines, follow_up=follow_up, overwrite=overwrite, quiet=quiet
    )


@application.command(cls=OnDatasets)
@takes_groups
def prepare(
    *,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A scan, a folder (also DICOM), a BIDS dataset or a manifest.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Store folder.")],
    encoder: Annotated[str, typer.Option("--encoder", help="Encoder name, see `encoders list`.")],
    options: CardOptions = None,
    request: StoreRequest,
    preparation_options: PreparationOptions,
    denoising: DenoisingOptions,
) -> None:
    """Preprocess scans for an encoder and save them to a store; rerun to process only missing scans.

    From a BIDS dataset (or a subject's folder in one) the T1w or bold images are used, one version of each; the
    selection is reported. A manifest is a .jsonl, .csv or .parquet file with one row per scan: `scan` (path relative to
    the manifest) and optionally `repetition_time` and `confounds` (the run's confounds table, also relative to the
    manifest, as in --confounds FILE). The store's log.jsonl has one line per scan, summary.json the totals. The exit
    code is 1 if some scans failed.
    """
    from neuroflamingo.cli.stores import prepare_scans

    code = prepare_scans(
        source,
        output,
        encoder=encoder,
        options=options or (),
        request=request,
        preparation_options=preparation_options | {"denoising": denoising},
    )
    raise typer.Exit(code)


@application.command("fit-scaling")
@takes_groups
def fit_scaling(
    *,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="fMRI runs: a file, a folder, a dataset or a manifest.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="JSON file to write, for --scaling.")],
    encoder: Annotated[str, typer.Option("--encoder", help="Encoder name, see `encoders list`.")],
    options: CardOptions = None,
    tr: Tr = None,
    atlas: AtlasFile = None,
    xform: XformName = "auto",
    raw: Raw = False,
    rows: TableRows = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    denoising: DenoisingOptions,
) -> None:
    """Fit the parcel scaling on a training set, for encoders such as BrainLM; pass it on with --scaling.

    Runs are selected and processed as by `prepare`: give the same atlas, confounds and filters. The exit code is 1 if
    some runs failed.
    """
    from neuroflamingo.cli.stores import fit_scaling_of

    code = fit_scaling_of(
        source,
        output,
        encoder=encoder,
        options=options or (),
        preparation_options=preparation(tr=tr, atlas=atlas, xform=xform, raw=raw, rows=rows) | {"denoising": denoising},
        overwrite=overwrite,
        as_json=json,
        quiet=quiet,
    )
    raise typer.Exit(code)


@application.command("check-scan")
@takes_groups
def check_scan(
    *,
    scans: Annotated[list[str], typer.Argument(metavar="SCAN...", help="NIfTI files, DICOM folders or zip archives.")],
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="Check against this encoder; default for volumes: the embedded model's."),
    ] = None,
    tr: Tr = None,
    series: Series = None,
    xform: XformName = "auto",
    json: Json = False,
    denoising: DenoisingOptions,
) -> None:
    """Show what each scan is, how it would be preprocessed, and any problems with it.

    Nothing is written. The exit code is 65 if any scan is unusable.
    """
    from neuroflamingo.cli.show import check_scans

    raise typer.Exit(check_scans(scans, encoder, tr, series, xform, denoising, as_json=json))


@application.command(cls=OnDatasets)
@takes_groups
def encode(
    *,
    scans: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Scans; for a store, one INPUT (see above).")],
    encoder: Annotated[str, typer.Option("--encoder", help="Encoder name, see `encoders list`.")],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="A .zarr, .npz or .safetensors file; without an extension, a store folder."
        ),
    ],
    options: CardOptions = None,
    weights: WeightsOptions,
    preparation_options: PreparationOptions,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Stores: float32 (default) or float16.")] = None,
    request: StoreRequest,
    denoising: DenoisingOptions,
) -> None:
    """Encode scans into patch tokens, saved with hashes, the geometry log and token positions.

    NIfTI and MGH files and DICOM folders or zip archives are preprocessed as the encoder requires: T1-weighted heads,
    fMRI runs in MNI space, and with --atlas the parcel time series of such runs. Arrays (.npy, .npz) and tables (.tsv,
    .csv) are used as they are, or, with --raw, preprocessed as parcel time series; a .ptseries.nii file is always
    preprocessed. A run yields its windows one after the other.

    A store (-o without an extension) takes one INPUT, as `prepare` does, or a store made by `prepare`; rerun to process
    only missing scans. The options from --dtype on are for stores.
    """
    from neuroflamingo.cli.stores import encode_scans

    code = encode_scans(
        scans,
        output,
        encoder=encoder,
        options=options or (),
        weights=weights,
        preparation_options=preparation_options | {"denoising": denoising},
        device=device,
        dtype=dtype,
        overwrite=overwrite,
        request=request,
    )
    raise typer.Exit(code)


@application.command("read-report")
def read_report(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Text files with a report each; - for stdin.")],
    json: Json = False,
    marked: Annotated[
        bool, typer.Option("--marked", help="Print the sentences, marked by what was read and what was not.")
    ] = False,
) -> None:
    """Read anyone's brain reports: findings with side, place, size and certainty, and how far they were understood.

    Reports in English; fixed rules, no model. With several files, --json prints one object a line.
    """
    from neuroflamingo.cli.read_report import read_reports

    read_reports(files, as_json=json, marked=marked)


@application.command()
@takes_groups
def inspect(
    *,
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_CONFIG", help="Name of an embedded model, a model folder, or a recipe.")
    ],
    depth: Depth = None,
    frozen: Frozen = False,
    settings: Settings = None,
    loading: LoadingOptions,
    allow_download: AllowDownload = False,
    json: Json = False,
) -> None:
    """Show a model's modules, the shapes of their weights, and which are frozen or trained.

    For a recipe, shows the model that it would train, including LoRA branches, without loading or allocating weights.
    With --device-map auto, shows instead where each layer of a saved model would be put, and how much goes where.
    """
    from neuroflamingo.cli.show import inspect_model

    what = {"depth": depth, "frozen": frozen, "loading": loading, "as_json": json}
    inspect_model(model, settings=settings or (), allow_download=allow_download, **what)


@application.command()
def doctor(json: Json = False) -> None:
    """Check the installation: versions, devices, caches, and anything missing."""
    from neuroflamingo.cli.show import examine

    raise typer.Exit(examine(as_json=json))
