"""What the verbs share: the kind of group they are in, and the options that several of them take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Quick:
    """An absent `--help` is False, not None: None would load pydantic, a tenth of a second, to check it."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.default = False
        return option


class Verbs(_Quick, TyperGroup):
    """A group that starts quickly."""


class Verb(_Quick, TyperCommand):
    """A command that starts quickly."""


LABELS = ("--participant-label", "--participant_label", "--session-label", "--session-id", "--task-id", "--run-id")


class OnDatasets(Verb):
    """A command whose labels may be listed as BIDS Apps take them: `INPUT --participant-label 01 02`.

    So only where INPUT goes first: behind a list of labels it could not be told from one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line in which one option may have several values."""
        return super().parse_args(ctx, _one_option_each(args))  # type: ignore[misc]


def _one_option_each(words: list[str]) -> list[str]:
    if not words or words[0].startswith("-"):
        return words
    found: list[str] = []
    option, values = "", 0
    for word in words:
        if word.startswith("-"):
            option, values = (word, 0) if word in LABELS else ("", 0)
        elif option:
            values += 1
            found += [option] if values > 1 else []
        found.append(word)
    return found


def taken_apart(filters: Mapping[str, Sequence[str] | None]) -> dict[str, tuple[str, ...]]:
    """Labels by entity, where several may be in one word: `01,02`."""
    return {
        entity: tuple(word for value in values or () for word in value.replace(",", " ").split())
        for entity, values in filters.items()
    }


Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
CardOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Of the encoder's card, such as slices=12; may come again."),
]
Tr = Annotated[float | None, typer.Option("--tr", help="Seconds between frames, where the files do not say.")]
Series = Annotated[
    int | None, typer.Option("--series", help="Of a DICOM input; check-scan lists them. Default: the one that fits.")
]
AtlasFile = Annotated[str | None, typer.Option("--atlas", help="Label image: a run's parcels.")]
ScalingFile = Annotated[str | None, typer.Option("--scaling", help="Scaling of parcels fitted on a training set.")]
XformName = Annotated[
    str, typer.Option("--xform", metavar="auto|sform|qform", help="Which affine of a NIfTI header is used.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Arrays are parcel series as measured: prepare them too.")]
TableRows = Annotated[
    str | None, typer.Option("--rows", metavar="frames|parcels", help="Lines of a parcel table, where both would fit.")
]
NoResample = Annotated[bool, typer.Option("--no-resample", help="Refuse what would have to be interpolated.")]
AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="Models and data named in the recipe may come from a hub.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda or cuda:N.")]
Model = Annotated[str, typer.Option("--model", help="Name of an embedded model, or a folder.")]
Nprocs = Annotated[int, typer.Option("--nprocs", help="Scans at a time; 0: one for each core.", min=0)]
Participants = Annotated[
    list[str] | None,
    typer.Option(*LABELS[:2], metavar="LABEL...", help="01 or sub-01; several after INPUT: 01 02, or 01,02."),
]
Sessions = Annotated[list[str] | None, typer.Option(*LABELS[2:4], metavar="LABEL...", help="Likewise.")]
Tasks = Annotated[list[str] | None, typer.Option(LABELS[4], metavar="LABEL...", help="Likewise.")]
Runs = Annotated[list[str] | None, typer.Option(LABELS[5], metavar="LABEL...", help="Likewise; 1 and 01 are the same.")]
BidsFilterFile = Annotated[
    str | None,
    typer.Option("--bids-filter-file", metavar="FILE.json", help="Other entities of a BIDS dataset, as for fMRIPrep."),
]
NumParts = Annotated[int | None, typer.Option("--num-parts", help="Job array: parts in all.", min=1)]
PartId = Annotated[int | None, typer.Option("--part-id", help="Job array: this part, from 1.", min=1)]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="Dask: tcp://host:port, or local; needs the extra cluster."),
]
Verify = Annotated[bool, typer.Option("--verify", help="Read all items that are there; damaged ones are made again.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, with estimates.")]


def takes_groups(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Let a parameter that is annotated with a function stand for that function's options, in its place.

    The verb gets what the function makes of them.
    """
    known = inspect.signature(verb, eval_str=True)
    groups, own = {}, []
    for parameter in known.parameters.values():
        makes = getattr(parameter.annotation, "__metadata__", (None,))[0]
        if inspect.isfunction(makes):
            groups[parameter.name] = makes, inspect.signature(makes, eval_str=True).parameters
            own += groups[parameter.name][1].values()
        else:
            own.append(parameter)
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    @wraps(verb)
    def with_groups(**values: Any) -> Any:
        for name, (makes, options) in groups.items():
            values[name] = makes(**{option: values.pop(option) for option in options})
        return verb(**values)

    with_groups.__signature__ = known.replace(parameters=own)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in own}
    return with_groups


def preparation(
    tr: Tr = None,
    series: Series = None,
    atlas: AtlasFile = None,
    scaling: ScalingFile = None,
    xform: XformName = "auto",
    raw: Raw = False,
    rows: TableRows = None,
    no_resample: NoResample = False,
) -> dict[str, Any]:
    """What `Preparation.of` takes, but the denoising."""
    return {
        "repetition_time": tr,
        "series": series,
        "atlas": atlas,
        "scaling": scaling,
        "xform": xform,
        "raw": raw,
        "rows": rows,
        "may_resample": not no_resample,
    }


def spreading(
    scheduler: Scheduler = None,
    participants: Participants = None,
    sessions: Sessions = None,
    tasks: Tasks = None,
    runs: Runs = None,
    bids_filter_file: BidsFilterFile = None,
    num_parts: NumParts = None,
    part_id: PartId = None,
) -> dict[str, Any]:
    """Of `StoreRequest`: which scans of a dataset, and where they are worked on."""
    return {
        "scheduler": scheduler,
        "filters": {"sub": participants, "ses": sessions, "task": tasks, "run": runs},
        "filter_file": bids_filter_file,
        "parts": (part_id, num_parts),
    }


def telling(
    verify: Verify = False, dry_run: DryRun = False, json: Json = False, quiet: Quiet = False
) -> dict[str, Any]:
    """Of `StoreRequest`: what is looked at and what is said."""
    return {"verify": verify, "dry_run": dry_run, "as_json": json, "quiet": quiet}


def denoising(
    confounds: Annotated[
        str | None, typer.Option("--confounds", metavar="FILE.tsv|auto", help="auto: fMRIPrep's, beside each run.")
    ] = None,
    confound_strategy: Annotated[
        str | None,
        typer.Option("--confound-strategy", help="6p, 12p, 24p, 36p, acompcor, gsr, ..., columns, or none."),
    ] = None,
    high_pass: Annotated[float | None, typer.Option("--high-pass", help="Hz: slower changes are taken out.")] = None,
    low_pass: Annotated[float | None, typer.Option("--low-pass", help="Hz: faster changes are taken out.")] = None,
    detrend: Annotated[bool, typer.Option("--detrend", help="Take a straight line out.")] = False,
    drop_first: Annotated[int, typer.Option("--drop-first", help="Leave out so many frames first.", min=0)] = 0,
    frames: Annotated[
        str | None, typer.Option("--frames", metavar="FIRST:AFTER", help="Counted from 0; either may be left out.")
    ] = None,
    scrub_fd: Annotated[
        float | None, typer.Option("--scrub-fd", help="Leave out frames that moved more, in mm.")
    ] = None,
) -> Any:
    """What is done to the frames of runs, as a `Denoising`; None if nothing was said."""
    from neuroflamingo.cli.show import read_denoising

    return read_denoising(
        confound_strategy,
        frames,
        confounds=confounds,
        high_pass=high_pass,
        low_pass=low_pass,
        detrend=detrend,
        drop_first=drop_first,
        scrub_fd=scrub_fd,
    )


# Groups of options that verbs have in common, for `takes_groups`.
Preparing = Annotated[dict[str, Any], preparation]
Spreading = Annotated[dict[str, Any], spreading]
Telling = Annotated[dict[str, Any], telling]
Denoising = Annotated[Any, denoising]
