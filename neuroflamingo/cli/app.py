"""The verbs. Each is declared here with its options and does its work in a module that is loaded when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroflamingo.cli.data_verbs import data
from neuroflamingo.cli.encoder_verbs import encoders, models
from neuroflamingo.cli.options import (
    AllowDownload,
    AtlasFile,
    CardOptions,
    Denoising,
    Device,
    Json,
    Model,
    Nprocs,
    OnDatasets,
    Overwrite,
    Preparing,
    Quiet,
    Raw,
    Series,
    Spreading,
    TableRows,
    Telling,
    Tr,
    Verbs,
    XformName,
    preparation,
    takes_groups,
)

application = typer.Typer(
    name="neuroflamingo",
    cls=Verbs,
    help="OpenFlamingo for neuroimaging: brain scans in, checkable report text out. "
    "Research use only, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # drawing the help with rich alone takes longer than the rest of the start
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
application.add_typer(encoders, name="encoders")
application.add_typer(models, name="models")
application.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"neuroflamingo {version('neuroflamingo')}")
        raise typer.Exit


@application.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version, then exit.")
    ] = False,
) -> None:
    """OpenFlamingo for neuroimaging: brain scans in, checkable report text out.

    Research use only, not for diagnosis.
    """


@application.command()
def report(
    context: typer.Context,
    scans: Annotated[
        list[str], typer.Argument(metavar="SCAN...", help="T1-weighted heads: NIfTI, DICOM folders or zips.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A file (its ending says the format), a folder, or - for JSON on standard output."
        ),
    ] = None,
    formats: Annotated[str | None, typer.Option("--format", help="Some of html,json,txt,prov.")] = None,
    model: Model = "tiny-t1w",
    series: Series = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text with one <image> for each scan of a report; default <image>.")
    ] = None,
    example: Annotated[
        list[str] | None, typer.Option("--example", help="SCAN=REPORT.txt shown before the scan; may be repeated.")
    ] = None,
    xform: XformName = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option("--seed", help="For sampling.", min=0)] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 is greedy; above it, sampling.", min=0.0)
    ] = 0.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest report in tokens.", min=1)] = 400,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a report page for each scan.

    Without -o, NAME.report.html, NAME.report.json, NAME.report.txt and NAME.prov.json go to the working directory. A
    prompt with several <image> takes as many scans for one report.
    """
    from neuroflamingo.cli.report import report_scans

    code = report_scans(
        scans,
        output=output,
        formats=formats,
        model=model,
        series=series,
        prompt=prompt,
        examples=example or [],
        xform=xform,
        device=device,
        seed=seed,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        overwrite=overwrite,
        quiet=quiet,
        command=("neuroflamingo", *context.obj),
    )
    raise typer.Exit(code)


@application.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="A recipe file, or the name of a shipped one.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY.KEY=VALUE overrides the recipe; may be repeated.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder of the run; default: runs/NAME.")] = None,
    resume: Annotated[str, typer.Option("--resume", help="auto, or the folder of a checkpoint.")] = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew; what is in the folder is removed.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show recipe, parameters, steps and memory; train nothing."),
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's toy twin, made by rule, on toy data.")] = False,
    allow_download: AllowDownload = False,
    quiet: Quiet = False,
) -> None:
    """Train by a recipe; an interrupted run goes on at the very step.

    Also under `torchrun --nproc-per-node N -m neuroflamingo train ...` or `accelerate launch -m neuroflamingo train`.
    With --resume FOLDER the recipe may differ from the checkpoint's. SIGTERM and SIGUSR1 save, then exit with 75.
    """
    from neuroflamingo.cli.train_evaluate import train_recipe

    train_recipe(
        config,
        settings or [],
        output=output,
        resume=False if restart else True if resume == "auto" else resume,
        dry_run=dry_run,
        tiny=tiny,
        allow_download=allow_download,
        quiet=quiet,
    )


@application.command()
def evaluate(
    model: Model = "tiny-t1w",
    cases: Annotated[int, typer.Option("--cases", help="Painted cases to score.", min=2)] = 200,
    seed: Annotated[
        int | None, typer.Option("--seed", help="First seed of the cases; default: the held-out range.")
    ] = None,
    device: Device = "auto",
    anatomy: Annotated[str, typer.Option("--anatomy", help="Head the cases are painted on.")] = "icbm2009a",
    json: Json = False,
    csv: Annotated[str | None, typer.Option("--csv", help="Write one line a case to this file.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on painted cases with known truth, with the image-reliance controls beside it."""
    from neuroflamingo.cli.train_evaluate import evaluate_model

    evaluate_model(
        model, cases, seed, device=device, anatomy=anatomy, as_json=json, csv=csv, overwrite=overwrite, quiet=quiet
    )


@application.command()
def paint(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the scans, truths and texts.")],
    cases: Annotated[int, typer.Option("--cases", help="How many.", min=1)] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first case; the next follow.", min=0)] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Paint scans whose findings are known: NIfTI, the truth as JSON, and a report text for each."""
    from neuroflamingo.cli.train_evaluate import paint_scans

    paint_scans(cases, seed, output, overwrite=overwrite, quiet=quiet)


@application.command(cls=OnDatasets)
@takes_groups
def prepare(
    *,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A scan, a folder (DICOM too), a BIDS dataset or a manifest.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the store.")],
    encoder: Annotated[str, typer.Option("--encoder", help="As `encoders list` gives it.")],
    options: CardOptions = None,
    nprocs: Nprocs = 0,
    spreading: Spreading,
    preparing: Preparing,
    telling: Telling,
    cleaning: Denoising,
) -> None:
    """Prepare scans as an encoder's card says, into a store; run again, it does what is missing.

    Of a BIDS dataset, or of a subject's folder in one, the T1w or bold images are taken, one version of each; what was
    chosen or left out is said. A manifest is .jsonl, .csv or .parquet with a line a scan: `scan` (relative to the
    manifest) and, if wanted, `repetition_time`, and `confounds`: the table of that run (relative to the manifest), as
    --confounds FILE says it for one run. In the store, log.jsonl has a line for each scan and summary.json the whole.
    Exit code 1 if some scans failed.
    """
    from neuroflamingo.cli.store_options import StoreRequest
    from neuroflamingo.cli.stores import prepare_scans

    code = prepare_scans(
        source,
        output,
        encoder=encoder,
        options=options or (),
        asked=StoreRequest(processes=nprocs, **spreading, **telling),
        preparation=preparing | {"cleaning": cleaning},
    )
    raise typer.Exit(code)


@application.command("fit-scaling")
@takes_groups
def fit_scaling(
    *,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Runs: a file, a folder, a dataset or a manifest.")],
    output: Annotated[str, typer.Option("--output", "-o", help="JSON file, for --scaling.")],
    encoder: Annotated[str, typer.Option("--encoder", help="As `encoders list` gives it.")],
    options: CardOptions = None,
    tr: Tr = None,
    atlas: AtlasFile = None,
    xform: XformName = "auto",
    raw: Raw = False,
    rows: TableRows = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    cleaning: Denoising,
) -> None:
    """Fit the scaling of parcels on a training set, for encoders such as BrainLM; use it with --scaling.

    Runs are taken as `prepare` takes them: with the same atlas, confounds and filters. Exit code 1 if some failed.
    """
    from neuroflamingo.cli.stores import fit_scaling_of

    code = fit_scaling_of(
        source,
        output,
        encoder=encoder,
        options=options or (),
        preparation=preparation(tr=tr, atlas=atlas, xform=xform, raw=raw, rows=rows) | {"cleaning": cleaning},
        overwrite=overwrite,
        as_json=json,
        quiet=quiet,
    )
    raise typer.Exit(code)


@application.command("check-scan")
@takes_groups
def check_scan(
    *,
    scans: Annotated[list[str], typer.Argument(metavar="SCAN...", help="NIfTI files, DICOM folders or zips.")],
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Check for this one; default: the embedded model's, for volumes.")
    ] = None,
    tr: Tr = None,
    series: Series = None,
    xform: XformName = "auto",
    json: Json = False,
    cleaning: Denoising,
) -> None:
    """Say what each scan is, what would be done to it, and what is wrong with it.

    Nothing is written. The exit code is 65 if one of them cannot be used.
    """
    from neuroflamingo.cli.show import check_scans

    raise typer.Exit(check_scans(scans, encoder, tr, series, xform, cleaning, as_json=json))


@application.command(cls=OnDatasets)
@takes_groups
def encode(
    *,
    scans: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Scans; for a store, one INPUT. See below.")],
    encoder: Annotated[str, typer.Option("--encoder", help="As `encoders list` gives it.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="tokens.zarr, .npz or .safetensors; without an ending, a store.")
    ],
    options: CardOptions = None,
    weights: Annotated[str | None, typer.Option("--weights", help="A safetensors file.")] = None,
    init: Annotated[str | None, typer.Option("--init", help="random: an untrained encoder, on purpose.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of --init random.", min=0)] = 0,
    preparing: Preparing,
    table: Annotated[
        str | None, typer.Option("--table", help="Parcels' coordinates or gradients, for encoders that need them.")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Store: float32 (default) or float16.")] = None,
    nprocs: Annotated[int | None, typer.Option("--nprocs", help="Store: scans at a time, by default 1.", min=0)] = None,
    spreading: Spreading,
    telling: Telling,
    cleaning: Denoising,
) -> None:
    """Write the patch tokens of scans, with hashes, the geometry log and the tokens' places.

    NIfTI and MGH files and DICOM folders or zips are prepared as the encoder's card says: T1-weighted heads, fMRI runs
    in MNI space, and with --atlas the parcel series of such runs. Arrays (.npy, .npz) and tables (.tsv, .csv) are taken
    as they are, or as parcel series to be prepared with --raw; .ptseries.nii always is such a series. A run gives its
    windows one after the other.

    Into a store (-o without an ending) go the tokens of one INPUT as `prepare` takes it, or of a store that `prepare`
    made; run again, it does what is missing. The options from --dtype on are for stores.
    """
    from neuroflamingo.cli.store_options import StoreRequest
    from neuroflamingo.cli.stores import encode_scans

    code = encode_scans(
        scans,
        output,
        encoder=encoder,
        options=options or (),
        weights={"weights": weights, "init": init, "seed": seed, "table": table},
        preparation=preparing | {"cleaning": cleaning},
        device=device,
        dtype=dtype,
        overwrite=overwrite,
        asked=StoreRequest(processes=nprocs, **spreading, **telling),
    )
    raise typer.Exit(code)


@application.command()
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_CONFIG", help="Name of an embedded model, a folder, or a recipe.")
    ],
    depth: Annotated[int | None, typer.Option("--depth", help="Show this many levels.", min=1)] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="List every parameter, frozen or trained, with counts by group.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY.KEY=VALUE overrides the recipe; may be repeated.")
    ] = None,
    allow_download: AllowDownload = False,
    json: Json = False,
) -> None:
    """Show a model's modules, the shapes of their weights, and which are frozen or trained.

    Of a recipe, what it would train, low-rank branches too: from the architecture alone, in no memory, at any size.
    """
    from neuroflamingo.cli.show import inspect_model

    inspect_model(
        model,
        settings=settings or (),
        depth=depth,
        frozen=frozen,
        allow_download=allow_download,
        as_json=json,
    )


@application.command()
def doctor(json: Json = False) -> None:
    """Show versions, devices and caches, and say what is missing."""
    from neuroflamingo.cli.show import examine

    raise typer.Exit(examine(as_json=json))
