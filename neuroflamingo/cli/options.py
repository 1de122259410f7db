"""Options and command classes shared by several commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import wraps
from operator import itemgetter
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from neuroflamingo.cli.usage_errors import no_such_command
from neuroflamingo_preprocessing.errors import UsageError


class _Quick:
    """Start-up shortcut: the default of `--help` is False, since typer would import pydantic (0.1 s) to check None."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.default = False
        return option


class Verbs(_Quick, TyperGroup):
    """A command group that starts quickly."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is named.

        Raises:
            UsageError: there is none of this name.
        """
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            raise no_such_command(name, ctx.command_path, self.commands)
        return super().resolve_command(ctx, args)


class Verb(_Quick, TyperCommand):
    """A command that starts quickly."""


LABELS = ("--participant-label", "--participant_label", "--session-label", "--session-id", "--task-id", "--run-id")


class OnDatasets(Verb):
    """A command that takes several labels per option, as BIDS Apps do: `INPUT --participant-label 01 02`.

    Only if INPUT comes first: after a list of labels it would look like one more label.
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


def split_labels(filters: Mapping[str, Sequence[str] | None]) -> dict[str, tuple[str, ...]]:
    """Split comma-separated labels (`01,02`), entity by entity."""
    return {
        entity: tuple(word for value in values or () for word in value.replace(",", " ").split())
        for entity, values in filters.items()
    }


Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
CardOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Encoder option, such as slices=12; repeatable."),
]
Tr = Annotated[float | None, typer.Option("--tr", help="Repetition time in seconds, if the files do not state it.")]
Series = Annotated[
    int | None,
    typer.Option("--series", help="DICOM series number (check-scan lists them); default: the one that matches."),
]
AtlasFile = Annotated[str | None, typer.Option("--atlas", help="Parcellation (label image) for parcel time series.")]
ScalingFile = Annotated[str | None, typer.Option("--scaling", help="Parcel scaling from `fit-scaling`.")]
XformName = Annotated[
    str, typer.Option("--xform", metavar="auto|sform|qform", help="Affine of the NIfTI header to use.")
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Treat arrays and tables as raw parcel time series and preprocess them.")
]
TableRows = Annotated[
    str | None,
    typer.Option("--rows", metavar="frames|parcels", help="What the rows of a parcel table are, if ambiguous."),
]
NoResample = Annotated[bool, typer.Option("--no-resample", help="Refuse runs that would need temporal interpolation.")]
AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="Allow downloading the models and data that the recipe names.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.")]
Model = Annotated[str, typer.Option("--model", help="Name of an embedded model, or a model folder.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY.KEY=VALUE overrides a recipe value; repeatable.")
]
Temperature = Annotated[float, typer.Option("--temperature", help="0: greedy decoding; above 0: sampling.", min=0.0)]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Maximum report length in tokens.", min=1)]
Template = Annotated[
    str, typer.Option("--template", help="Of conversations, as data.template: plain, question-answer, chat, ...")
]
BatchSize = Annotated[int, typer.Option("--batch", help="Samples that are written at a time.", min=1)]
Depth = Annotated[int | None, typer.Option("--depth", help="Maximum nesting level to show.", min=1)]
Frozen = Annotated[
    bool, typer.Option("--frozen", help="List every parameter as frozen or trained, with counts per parameter group.")
]
Participants = Annotated[
    list[str] | None,
    typer.Option(*LABELS[:2], metavar="LABEL...", help="Participants: 01 or sub-01; several as 01 02 or 01,02."),
]
Sessions = Annotated[list[str] | None, typer.Option(*LABELS[2:4], metavar="LABEL...", help="Sessions, likewise.")]
Runs = Annotated[
    list[str] | None, typer.Option(LABELS[5], metavar="LABEL...", help="Runs, likewise; 1 and 01 are the same.")
]
BidsFilterFile = Annotated[
    str | None,
    typer.Option("--bids-filter-file", metavar="FILE.json", help="BIDS filter file, as for fMRIPrep."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Use a scan or prompt that the model is not made for; the report says so at the top."),
]


def takes_groups(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Expand each parameter that is annotated with a group of options: a dataclass, or a function in `Annotated`.

    The command then receives the record, or the function's return value. Typer reads options from the signature of a
    command and knows no groups, so the wrapper shows it a flat signature (`__signature__`, and `__annotations__`, which
    typer evaluates instead) with the groups' options in the places of their parameters.
    """
    flat: list[inspect.Parameter] = []
    call = _expanded(verb, flat)

    @wraps(verb)
    def with_groups(**values: Any) -> Any:
        return call(values)

    with_groups.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return with_groups


def _expanded(build: Callable[..., Any], flat: list[inspect.Parameter]) -> Callable[[Mapping[str, Any]], Any]:
    """Append the options of a function or dataclass to `flat`; return what calls it with the parsed values."""
    parts: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    for name, parameter in inspect.signature(build, eval_str=True).parameters.items():
        annotation = parameter.annotation
        group = annotation if is_dataclass(annotation) else getattr(annotation, "__metadata__", (None,))[0]
        if is_dataclass(group) or inspect.isfunction(group):
            parts[name] = _expanded(group, flat)  # type: ignore[arg-type]
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            parts[name] = itemgetter(name)
    return lambda values: build(**{name: part(values) for name, part in parts.items()})


def preparation(
    tr: Tr = None,
    series: Series = None,
    atlas: AtlasFile = None,
    scaling: ScalingFile = None,
    xform: XformName = "auto",
    raw: Raw = False,
    rows: TableRows = None,
    no_resample: NoResample = False,
    force: Force = False,
) -> dict[str, Any]:
    """Arguments of `Preparation.of`, except the denoising."""
    return {
        "repetition_time": tr,
        "series": series,
        "atlas": atlas,
        "scaling": scaling,
        "xform": xform,
        "raw": raw,
        "rows": rows,
        "may_resample": not no_resample,
        "force": force,
    }


def parse_room(assignments: Sequence[str]) -> dict[int | str, str] | None:
    """`PLACE=SIZE` items, such as `0=20GiB` or `cpu=60GiB`, as a dictionary; None if there are none.

    Raises:
        UsageError: not an assignment.
    """
    room: dict[int | str, str] = {}
    for item in assignments:
        place, equals, size = item.partition("=")
        if not equals or not place or not size:
            raise UsageError(
                f"--max-memory {item} is not an assignment",
                expected="PLACE=SIZE, where PLACE is a GPU's number, cpu or disk",
                seen=item,
                hint="--max-memory 0=20GiB --max-memory cpu=60GiB",
            )
        room[int(place) if place.isdigit() else place] = size
    return room or None


def loading(
    device: Device = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            "--device-map", metavar="auto", help="For models larger than the GPU: GPUs first, then memory, then disk."
        ),
    ] = None,
    max_memory: Annotated[
        list[str] | None,
        typer.Option("--max-memory", metavar="PLACE=SIZE", help="For --device-map: 0=20GiB, cpu=60GiB; repeatable."),
    ] = None,
    offload_folder: Annotated[
        str | None, typer.Option("--offload-folder", help="For --device-map: folder for what goes to the disk.")
    ] = None,
) -> dict[str, Any]:
    """Arguments of `model_folder`: where a model is put.

    Raises:
        UsageError: limits or a folder without a device map.
    """
    if device_map is None and (max_memory or offload_folder):
        raise UsageError(
            "--max-memory and --offload-folder are for --device-map",
            expected="--device-map auto",
            seen="no --device-map",
        )
    room = parse_room(max_memory or ())
    return {"device": device, "device_map": device_map, "max_memory": room, "offload_folder": offload_folder}


def weights(
    weights: Annotated[str | None, typer.Option("--weights", help="Encoder weights, a safetensors file.")] = None,
    init: Annotated[str | None, typer.Option("--init", help="random: use an untrained encoder deliberately.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed for --init random.", min=0)] = 0,
    table: Annotated[
        str | None, typer.Option("--table", help="Parcel coordinates or gradients, for encoders that need them.")
    ] = None,
) -> dict[str, Any]:
    """Arguments of `EncoderChoice`, except the encoder and its card's options."""
    return {"weights": weights, "init": init, "seed": seed, "table": table}


def denoising(
    confounds: Annotated[
        str | None,
        typer.Option(
            "--confounds", metavar="FILE.tsv|auto", help="Confounds table; auto: fMRIPrep's, next to each run."
        ),
    ] = None,
    confound_strategy: Annotated[
        str | None,
        typer.Option("--confound-strategy", help="6p, 12p, 24p, 36p, acompcor, gsr, ..., column names, or none."),
    ] = None,
    high_pass: Annotated[float | None, typer.Option("--high-pass", help="High-pass cutoff in Hz.")] = None,
    low_pass: Annotated[float | None, typer.Option("--low-pass", help="Low-pass cutoff in Hz.")] = None,
    detrend: Annotated[bool, typer.Option("--detrend", help="Remove the linear trend.")] = False,
    drop_first: Annotated[
        int, typer.Option("--drop-first", help="Number of initial (dummy) frames to drop.", min=0)
    ] = 0,
    frames: Annotated[
        str | None,
        typer.Option("--frames", metavar="FIRST:AFTER", help="Frame range, counted from 0; either end is optional."),
    ] = None,
    scrub_fd: Annotated[
        float | None, typer.Option("--scrub-fd", help="Drop frames with a larger framewise displacement, in mm.")
    ] = None,
) -> Any:
    """Denoising of fMRI runs; None if no option asks for any."""
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


# Groups of options that several commands share, for `takes_groups`.
PreparationOptions = Annotated[dict[str, Any], preparation]
LoadingOptions = Annotated[dict[str, Any], loading]
WeightsOptions = Annotated[dict[str, Any], weights]
DenoisingOptions = Annotated[Any, denoising]
