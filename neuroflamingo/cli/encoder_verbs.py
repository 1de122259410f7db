"""The verbs of `encoders` and `models`; each does its work in a module that is loaded when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroflamingo.cli.options import CardOptions, Json, Overwrite, Quiet, Verb, Verbs


def group(help: str) -> typer.Typer:
    """A group of verbs below the application."""
    return typer.Typer(cls=Verbs, help=help, no_args_is_help=True, rich_markup_mode=None, add_completion=False)


encoders = group("The encoders that turn scans into tokens.")
models = group("The weights of encoders: what is here, where it comes from, and on what terms.")


@encoders.command("list", cls=Verb)
def encoders_list(json: Json = False) -> None:
    """Name every encoder that is installed."""
    from neuroflamingo.cli.show import list_all_encoders

    list_all_encoders(as_json=json)


@encoders.command("card")
def encoders_card(
    name: Annotated[str, typer.Argument(help="as `encoders list` gives it")],
    options: CardOptions = None,
    json: Json = False,
) -> None:
    """Everything about one encoder: input, preparation, output, licence in words, citation, cost."""
    from neuroflamingo.cli.show import show_card

    show_card(name, options or (), as_json=json)


@models.command("list")
def models_list(json: Json = False) -> None:
    """Name the embedded models and every encoder's weights: source, licence, and whether they are here."""
    from neuroflamingo.cli.weights import list_models_and_weights

    list_models_and_weights(as_json=json)


@models.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of an encoder.")],
    file: Annotated[str | None, typer.Option("--file", help="Another file of its repository.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Another commit, tag or branch.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download an encoder's weights: the one command that uses the network. A broken download is gone on with."""
    from neuroflamingo.cli.weights import fetch

    fetch(name, file=file, revision=revision, overwrite=overwrite, as_json=json, quiet=quiet)


@models.command("verify")
def models_verify(
    what: Annotated[list[str] | None, typer.Argument(metavar="[NAME|FILE]...", help="Default: all here.")] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="Whose weights the files must be.")] = None,
    json: Json = False,
) -> None:
    """Check weight files: hash, header, names and shapes, numbers that are not finite. Exit code 1 if one is bad."""
    from neuroflamingo.cli.weights import verify

    raise typer.Exit(verify(what or [], encoder=encoder, as_json=json))


@models.command("convert")
def models_convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .ckpt, .pt, .pth.tar, .bin or .safetensors file.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="OUT.safetensors; default: the encoder's own folder.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Take its prefixes off and check names and shapes.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Where in the file the weights are.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="Leave out tensors whose names begin so; may be repeated.")
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Pass over objects that are not weights; none is ever run.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a checkpoint's weights as safetensors. Nothing in the file is run."""
    from neuroflamingo.cli.weights import convert

    convert(
        file,
        output,
        encoder=encoder,
        key=key,
        drop=drop or [],
        skip_unknown=skip_unknown,
        overwrite=overwrite,
        as_json=json,
    )


@encoders.command("check")
def encoders_check(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A name of `encoders list`, or package.module:Class.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every installed encoder, each in a process of its own.")
    ] = False,
    fixtures: Annotated[str | None, typer.Option("--fixtures", help="Folder of golden cases to compare with.")] = None,
    seconds: Annotated[float, typer.Option("--time-limit", help="Seconds for each encoder of --all.", min=1.0)] = 300.0,
    json: Json = False,
) -> None:
    """Check that an encoder keeps the contract: eleven groups of checks, without weights. Exit code 1 if one fails."""
    from neuroflamingo.cli.check_encoders import check_encoders

    raise typer.Exit(check_encoders(name, every=every, fixtures=fixtures, seconds=seconds, as_json=json))


@encoders.command("new")
def encoders_new(
    name: Annotated[str, typer.Argument(help="Small letters, digits and -, for instance my-encoder.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the project; default: the name.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the project of a new encoder: it installs, is listed and passes `encoders check` as it is."""
    from neuroflamingo.cli.check_encoders import new_encoder

    new_encoder(name, output, overwrite=overwrite)
