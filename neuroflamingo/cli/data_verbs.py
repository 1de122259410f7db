"""The verbs of `data`; each does its work in a module that is loaded when it is called."""

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
    taken_apart,
)
from neuroflamingo_preprocessing.files import check_writable

if TYPE_CHECKING:
    from neuroflamingo.data.import_report import Conversion

data = group("Training data: check manifests, and make them of data sets that others keep otherwise.")

Manifest = Annotated[str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="The manifest to write.")]
Extract = Annotated[
    bool, typer.Option("--extract", help="Save images that are in a parquet table itself into --images.")
]
Images = Annotated[str, typer.Option("--images", help="The folder that images are named relative to.")]


@data.command("check")
def data_check(
    files: Annotated[list[str], typer.Argument(metavar="MANIFEST...", help="JSONL files of the training data.")],
    validation: Annotated[
        list[str] | None, typer.Option("--validation", help="A manifest of validation data; may be repeated.")
    ] = None,
    no_scans: Annotated[bool, typer.Option("--no-scans", help="Do not look whether the scans are there.")] = False,
    min_answer_words: Annotated[
        int, typer.Option("--min-answer-words", help="Count samples with shorter answers.", min=0)
    ] = 0,
    json: Json = False,
) -> None:
    """Say what manifests hold, and all that is wrong with them: faults of lines, duplicates, subjects in two splits.

    Nothing is written. Exit code 65 if a training would refuse them.
    """
    from neuroflamingo.data.check_manifest import check_data

    found = check_data(files, validation or (), check_scans=not no_scans, min_answer_words=min_answer_words)
    print(json_text.dumps(found.as_dict(), indent=2) if json else "\n".join(found.lines()))
    raise typer.Exit(0 if found.usable else 65)


@data.command("schema")
def data_schema() -> None:
    """Print the JSON schema of a manifest's line."""
    from neuroflamingo.data.manifest import manifest_schema

    print(json_text.dumps(manifest_schema(), indent=2))


@data.command("from-bids", cls=OnDatasets)
def data_from_bids(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A BIDS dataset, or a subject's folder in one.")],
    output: Manifest,
    reports: Annotated[
        str | None, typer.Option("--reports", help="Table of reports; default: participants.tsv of the dataset.")
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Of the reports' text.")] = "report",
    suffixes: Annotated[
        list[str] | None, typer.Option("--suffix", help="Kind of images, by default T1w; may be repeated.")
    ] = None,
    participants: Participants = None,
    sessions: Sessions = None,
    runs: Runs = None,
    bids_filter_file: BidsFilterFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Pairs: the scans of each session, with the report that a table has for it.

    The table (.tsv, .csv, .jsonl, .parquet) has participant_id, where there are several sessions session_id, and the
    reports. Scans are chosen as `prepare` does.
    """
    from neuroflamingo.data.bids_reports import from_bids

    convert = partial(
        from_bids,
        dataset,
        reports=reports,
        column=column,
        suffixes=suffixes or ("T1w",),
        filters=taken_apart({"sub": participants, "ses": sessions, "run": runs}),
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
    """Instructions with images, and text, of LLaVA's conversations."""
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
    split: Annotated[str | None, typer.Option("--split", help="Take the rows of this split only.")] = None,
    join: Annotated[
        bool, typer.Option("--join/--no-join", help="Rows of a case with the same question and answer are one sample.")
    ] = True,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Instructions with one or several images of MedPix ClinQA's questions; the case is the subject."""
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
    """Text of dolly's or alpaca's instructions."""
    from neuroflamingo.data.importers import from_dolly_alpaca

    _write(lambda: from_dolly_alpaca(file), output, overwrite=overwrite, as_json=json)


def _write(convert: Callable[[], Conversion], output: str, *, overwrite: bool, as_json: bool) -> None:
    """Convert, write the manifest, and say what is in it and what was left out."""
    check_writable(output, overwrite=overwrite)
    found = convert()
    path = found.write(output, overwrite=overwrite)
    told = {"manifest": str(path)} | found.as_dict()
    print(json_text.dumps(told, indent=2) if as_json else "\n".join([str(path), *found.lines()]))
