"""Declaration of the `data` commands; each loads the module that does its work when it runs."""

from __future__ import annotations

import json as json_text
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from neuroflamingo.cli.encoder_verbs import group
from neuroflamingo.cli.options import (
    BidsFilterFile,
    Json,
    OnDatasets,
    Overwrite,
    Participants,
    Runs,
    Sessions,
    split_labels,
)
from neuroflamingo.progress import say
from neuroflamingo_preprocessing.files import check_writable

if TYPE_CHECKING:
    from neuroflamingo.data.import_report import Conversion

data = group("Check training manifests and create them from other dataset formats.")

Manifest = Annotated[str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Manifest file to write.")]
Extract = Annotated[bool, typer.Option("--extract", help="Extract images embedded in a parquet table to --images.")]
Images = Annotated[str, typer.Option("--images", help="Folder that image paths are relative to.")]


@data.command("check")
def data_check(
    files: Annotated[list[str], typer.Argument(metavar="MANIFEST...", help="Training manifests (JSONL).")],
    validation: Annotated[
        list[str] | None, typer.Option("--validation", help="Validation manifest; repeatable.")
    ] = None,
    no_scans: Annotated[bool, typer.Option("--no-scans", help="Do not check that the scan files exist.")] = False,
    min_answer_words: Annotated[
        int, typer.Option("--min-answer-words", help="Count samples with shorter answers as dropped.", min=0)
    ] = 0,
    json: Json = False,
) -> None:
    """Summarise manifests and list all errors: invalid lines, duplicates, subjects in both splits.

    Nothing is written. The exit code is 65 if training would refuse the data.
    """
    from neuroflamingo.data.check_manifest import check_data

    found = check_data(files, validation or (), check_scans=not no_scans, min_answer_words=min_answer_words)
    say(json_text.dumps(found.as_dict(), indent=2) if json else "\n".join(found.lines()))
    raise typer.Exit(0 if found.usable else 65)


@data.command("schema")
def data_schema() -> None:
    """Print the JSON schema of a manifest line."""
    from neuroflamingo.data.manifest import manifest_schema

    say(json_text.dumps(manifest_schema(), indent=2))


@data.command("from-bids", cls=OnDatasets)
def data_from_bids(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A BIDS dataset, or a subject's folder in one.")],
    output: Manifest,
    reports: Annotated[
        str | None, typer.Option("--reports", help="Table with the reports; default: the dataset's participants.tsv.")
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Column with the report text.")] = "report",
    suffixes: Annotated[
        list[str] | None, typer.Option("--suffix", help="BIDS suffix of the images, default T1w; repeatable.")
    ] = None,
    participants: Participants = None,
    sessions: Sessions = None,
    runs: Runs = None,
    bids_filter_file: BidsFilterFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Pair the scans of each session of a BIDS dataset with its report from a table.

    The table (.tsv, .csv, .jsonl, .parquet) has the columns participant_id, session_id (if there are several sessions)
    and the report text. Scans are selected as by `prepare`.
    """
    from neuroflamingo.data.bids_reports import from_bids

    convert = partial(
        from_bids,
        dataset,
        reports=reports,
        column=column,
        suffixes=suffixes or ("T1w",),
        filters=split_labels({"sub": participants, "ses": sessions, "run": runs}),
        filter_file=bids_filter_file,
    )
    _write(convert, output, overwrite=overwrite, as_json=json)


@data.command("from-llava")
def data_from_llava(
    file: Annotated[str, typer.Argument(metavar="FILE.json", help="A list of id, image and conversations.")],
    images: Images,
    output: Manifest,
    extract: Extract = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert conversations in LLaVA's format."""
    from neuroflamingo.data.importers import from_llava

    _write(lambda: from_llava(file, images, extract=extract), output, overwrite=overwrite, as_json=json)


@data.command("from-medpix-qa")
def data_from_medpix_qa(
    file: Annotated[
        str, typer.Argument(metavar="TABLE", help="CSV, parquet, JSON: image_id, case_id, question, answer, split.")
    ],
    images: Images,
    output: Manifest,
    extract: Extract = False,
    split: Annotated[str | None, typer.Option("--split", help="Use only rows of this split.")] = None,
    join: Annotated[
        bool,
        typer.Option("--join/--no-join", help="Merge a case's rows with equal question and answer into one sample."),
    ] = True,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert MedPix ClinQA questions to instructions with one or more images; each case is a subject."""
    from neuroflamingo.data.importers import from_medpix_qa

    convert = partial(from_medpix_qa, file, images, split=split, join=join, extract=extract)
    _write(convert, output, overwrite=overwrite, as_json=json)


@data.command("from-dolly-alpaca")
def data_from_dolly_alpaca(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON or JSONL of instructions and responses.")],
    output: Manifest,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert text-only instructions in Dolly's or Alpaca's format."""
    from neuroflamingo.data.importers import from_dolly_alpaca

    _write(lambda: from_dolly_alpaca(file), output, overwrite=overwrite, as_json=json)


def _write(convert: Callable[[], Conversion], output: str, *, overwrite: bool, as_json: bool) -> None:
    """Convert a dataset, write the manifest, and print what it holds and what was left out."""
    check_writable(output, overwrite=overwrite)
    found = convert()
    path = found.write(output, overwrite=overwrite)
    summary = {"manifest": str(path)} | found.as_dict()
    say(json_text.dumps(summary, indent=2) if as_json else "\n".join([str(path), *found.lines()]))
