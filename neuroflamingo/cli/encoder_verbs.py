"""Declaration of the `encoders` and `models` commands; each loads the module that does its work when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroflamingo.cli.options import CardOptions, Json, Overwrite, Quiet, Verb, Verbs


def group(help: str) -> typer.Typer:
    """Make a group of commands."""
    return typer.Typer(cls=Verbs, help=help, no_args_is_help=True, rich_markup_mode=None, add_completion=False)


encoders = group("List, check and create scan encoders.")
models = group("List, download, verify and convert model weights.")


@encoders.command("list", cls=Verb)
def encoders_list(json: Json = False) -> None:
    """List all installed encoders."""
    from neuroflamingo.cli.show import list_all_encoders

    list_all_encoders(as_json=json)


@encoders.command("card")
def encoders_card(
    name: Annotated[str, typer.Argument(help="Encoder name, see `encoders list`.")],
    options: CardOptions = None,
    json: Json = False,
) -> None:
    """Show an encoder's card: input, preprocessing, output, licence, citation and cost."""
    from neuroflamingo.cli.show import show_card

    show_card(name, options or (), as_json=json)


@models.command("list")
def models_list(json: Json = False) -> None:
    """List the embedded models and all encoder weights: source, licence, and whether they are installed."""
    from neuroflamingo.cli.weights import list_models_and_weights

    list_models_and_weights(as_json=json)


@models.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Encoder name, see `models list`.")],
    file: Annotated[str | None, typer.Option("--file", help="Fetch a different file of its repository.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Fetch from a different commit, tag or branch.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download an encoder's weights; interrupted downloads resume. The only command that always uses the network."""
    from neuroflamingo.cli.weights import fetch

    fetch(name, file=file, revision=revision, overwrite=overwrite, as_json=json, quiet=quiet)


@models.command("verify")
def models_verify(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|FILE]...", help="Default: all installed weights.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Encoder that the given files must belong to.")
    ] = None,
    json: Json = False,
) -> None:
    """Verify weight files: hash, header, tensor names and shapes, non-finite values; exit code 1 if any fails."""
    from neuroflamingo.cli.weights import verify

    raise typer.Exit(verify(what or [], encoder=encoder, as_json=json))


@models.command("convert")
def models_convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .ckpt, .pt, .pth.tar, .bin or .safetensors file.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="OUT.safetensors; default: in the encoder's weights folder."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Strip this encoder's prefixes, check tensor names and shapes.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Key in the file that holds the weights.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="Omit tensors whose names start with this prefix; repeatable.")
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Skip objects that are not weights (never executed).")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint's weights to safetensors. No code in the file is executed."""
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
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Encoder name, or package.module:Class.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Check every installed encoder, each in its own process.")
    ] = False,
    fixtures: Annotated[
        str | None, typer.Option("--fixtures", help="Folder of golden cases to compare against.")
    ] = None,
    seconds: Annotated[float, typer.Option("--time-limit", help="Seconds per encoder with --all.", min=1.0)] = 300.0,
    json: Json = False,
) -> None:
    """Check that an encoder meets the contract (eleven groups of checks, no weights needed); exit code 1 on failure."""
    from neuroflamingo.cli.check_encoders import check_encoders

    raise typer.Exit(check_encoders(name, every=every, fixtures=fixtures, seconds=seconds, as_json=json))


@encoders.command("new")
def encoders_new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens, such as my-encoder.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="Project folder; default: the name.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Create an encoder plug-in project that installs and passes `encoders check` out of the box."""
    from neuroflamingo.cli.check_encoders import new_encoder

    new_encoder(name, output, overwrite=overwrite)
