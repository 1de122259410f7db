"""Commands that only display something: `encoders list`, `encoders card`, `inspect`, `check-scan`, `doctor`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuroflamingo.progress import say
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo_encoders.card import EncoderCard
    from neuroflamingo_preprocessing.functional.denoising import Denoising


VOLUME_ENCODER = "tiny-t1w-cnn"
"""Default encoder of `check-scan` for volumes: that of the embedded model."""


def list_all_encoders(*, as_json: bool) -> None:
    """Print name, input and output of every installed encoder, from the cards alone."""
    from neuroflamingo_encoders.card_list import stored_rows

    rows = stored_rows() or _surveyed()
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    for row in rows:
        say(f"{row['name']}" + (f" ({row['modality']})" if "modality" in row else "") + f"\n  {row['summary']}")
        if "input" in row:
            count = row["tokens"] if isinstance(row["tokens"], int) else f"({row['tokens']})"
            say(f"  {row['input']} -> {count} tokens of width {row['width']}; {row['parameters']:,} weights")
            say(f"  weights: {row['weights']}; licence: {row['licence']}")
        for word in ("seen", "try", "remark"):
            if row.get(word):
                say(f"  {word}: {row[word]}")


def _surveyed() -> list[dict[str, Any]]:
    """Rows of the list if plug-ins are installed; a broken plug-in's row states its fault."""
    from neuroflamingo_encoders.card_list import listed
    from neuroflamingo_encoders.plugins import survey

    rows = []
    for entry in survey():
        fault = entry.fault
        wrong = {"name": entry.name, "summary": fault.what, "seen": fault.seen, "try": fault.hint} if fault else {}
        row = wrong if entry.card is None else listed(entry.card)
        rows.append(row | ({"remark": entry.remark} if entry.remark else {}))
    return rows


def card_options(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse `--option key=value` arguments for an encoder's card; values are YAML, as in a recipe.

    Raises:
        UsageError: not an assignment, or a key given twice.
    """
    from neuroflamingo.recipe.plain_yaml import parse_yaml

    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.isidentifier() or key in options:
            raise UsageError(
                f"--option {assignment} {'is given twice' if key in options else 'is not an assignment'}",
                expected="--option key=value, each key once",
                seen=assignment,
            )
        try:
            options[key] = parse_yaml(value)
        except ValueError as error:
            raise UsageError(
                f"--option {key} has an invalid value", expected="a number, a word, true or false", seen=value[:200]
            ) from error
    return options


def show_card(name: str, options: Sequence[str] = (), *, as_json: bool) -> None:
    """Print an encoder's card."""
    from neuroflamingo_encoders.registry import encoder_card

    card = encoder_card(name, **card_options(options))
    if as_json:
        say(json.dumps(card.model_dump(mode="json") | {"digest": card.digest}, indent=2))
        return
    for heading, words in _card_lines(card):
        say(f"{heading:<14}{words}")


def _card_lines(card: EncoderCard) -> list[tuple[str, str]]:
    """Heading and text of each line; continuation lines have an empty heading."""
    from neuroflamingo_encoders.card_list import where_in_words
    from neuroflamingo_encoders.weights.cache import permits

    scan, output, rate = card.scan, card.output, card.scan.repetition_time
    lines = [("name", f"{card.name}, version {card.version}"), ("summary", card.summary)]
    lines += [("options", ", ".join(f"{key}={value}" for key, value in card.options))] if card.options else []
    if card.commit:
        lines += [("matches", f"{card.repository} at {card.commit}")]
    else:
        lines += [("after", card.repository or "own design")]
    lines += [(head, words) for head, words in (("paper", card.paper), ("cite", card.citation)) if words]
    lines += [("input", scan.describe())]
    lines += [("space", f"{scan.template}, {scan.spacing_mm} mm")] if scan.template and scan.spacing_mm else []
    lines += [("time", f"{rate.seconds} s within {rate.tolerance} s, else {rate.policy}")] if rate else []
    if scan.parcellation:
        lines += [("parcels", f"{scan.parcellation.identifier}, {scan.parcellation.row_order}")]
    steps = [step.name + (f" {dict(step.constants)}" if step.constants else "") for step in scan.steps]
    lines += [("" if i else "preparation", f"{i + 1}. {step}") for i, step in enumerate(steps)]
    demands = [f"{d.what} ({d.level.replace('_', ' ')}){': ' + d.note if d.note else ''}" for d in card.demands]
    lines += [("" if i else "demands", words) for i, words in enumerate(demands)]
    norm = "after the last norm" if output.normalised else "without a last norm"
    token_class = "" if output.cls == "none" else f", class token {output.cls}"
    lines += [
        ("output", f"{output.tokens} tokens of width {output.width}, {' '.join(output.order)}{token_class}, {norm}")
    ]
    lines += [
        ("weights", where_in_words(card.weights, card.cost.parameters)),
        ("licence", f"{card.weights.licence}: {permits(card.weights)}"),
    ]
    spent = [f"{card.cost.parameters:,} weights"]
    spent += [f"{card.cost.gflop:g} GFLOP a scan"] if card.cost.gflop else []
    spent += [f"{card.cost.cpu_seconds:g} s on one core"] if card.cost.cpu_seconds else []
    return [*lines, ("cost", ", ".join(spent)), ("digest", card.digest)]


def inspect_model(
    name: str,
    *,
    settings: Sequence[str] = (),
    depth: int | None,
    frozen: bool,
    loading: Mapping[str, Any],
    allow_download: bool = False,
    as_json: bool,
) -> None:
    """Print the module tree of a model or recipe, or all its parameters, or where a model's layers would be put."""
    from neuroflamingo.model.summary import as_lines, count_groups, frozen_lines, inspect_module, parameter_rows

    if loading["device_map"] is not None:
        _show_places(name, loading, as_json=as_json)
        return
    model = _model_or_recipe(name, settings, allow_download)
    part = inspect_module(model, name)
    if frozen:
        rows = parameter_rows(model)
        listed = {"parameters": [row.as_dict() for row in rows], "groups": count_groups(rows)}
        say(json.dumps(listed, indent=2) if as_json else "\n".join(frozen_lines(rows)))
        return
    if as_json:
        say(json.dumps(part.as_dict(), indent=2))
        return
    say("\n".join(as_lines(part, depth)))
    say(f"\n{part.parameters:,} weights, {part.trained:,} trained, {part.parameters - part.trained:,} frozen")


def _show_places(name: str, loading: Mapping[str, Any], *, as_json: bool) -> None:
    """Print on which device each part of a saved model would be, and how much each device would hold."""
    import torch

    from neuroflamingo.checkpoints.device_map import place_bytes, place_layers
    from neuroflamingo.checkpoints.local_models import find_model
    from neuroflamingo.device import pick_device
    from neuroflamingo.model.folder import check_folder

    folder = check_folder(find_model(name))
    places = place_layers(folder, loading["device_map"], pick_device(loading["device"]), loading["max_memory"])
    sizes = place_bytes(folder, places, torch.float32)
    held = {str(place): 0 for place in [*places.values(), "cpu", "disk"]}
    for part, place in places.items():
        held[str(place)] += sizes[part]
    if as_json:
        say(json.dumps({"hf_device_map": places, "bytes": sizes, "held": held}, indent=2))
        return
    width = max(map(len, places))
    for part, place in places.items():
        say(f"{part:<{width}}  {place!s:<6}  {_megabytes(sizes[part])}")
    say("")
    for place, size in held.items():
        say(f"{'all on ' + place:<{width}}  {'':<6}  {_megabytes(size)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:>12,.1f} MB"


def _model_or_recipe(name: str, settings: Sequence[str], allow_download: bool) -> NeuroFlamingo:
    """Load a model with its weights, or build a recipe's model without allocating memory."""
    from neuroflamingo.checkpoints.local_models import list_models
    from neuroflamingo.recipe.find import find_config, list_configs

    is_recipe_file = name.endswith((".yaml", ".yml")) or (name in list_configs() and name not in list_models())
    if not is_recipe_file:
        if settings or allow_download:
            raise UsageError(f"{name} is a model", expected="a recipe, for --set and --allow-download", seen=name)
        from neuroflamingo.checkpoints.load_model import load

        return load(name, device="cpu")[0]
    from neuroflamingo.recipe.read import load_recipe
    from neuroflamingo.training.assembly import build

    recipe = load_recipe(find_config(name), list(settings))
    return build(recipe, meta=True, allow_download=allow_download)[0]


def check_scans(
    scans: Sequence[str],
    encoder: str | None,
    repetition_time: float | None,
    series: int | None,
    xform: str,
    denoising: Denoising | None = None,
    *,
    as_json: bool,
) -> int:
    """Print the check of each scan; return 65 if any is unusable."""
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_preprocessing.check import as_lines, check_scan

    card, volume_card = encoder_card(encoder) if encoder else None, encoder_card(VOLUME_ENCODER)
    found = [
        check_scan(scan, card, repetition_time, series, denoising, xform=xform, volume_card=volume_card)
        for scan in scans
    ]
    if as_json:
        say(json.dumps([one.as_dict() for one in found], indent=2))
    else:
        say("\n\n".join("\n".join(as_lines(one)) for one in found))
    return 0 if all(one.usable for one in found) else 65


def read_denoising(strategy: str | None, frames: str | None, **others: Any) -> Denoising | None:
    """Build the denoising settings from command-line options; None if no option was given.

    Raises:
        UsageError: contradictory options, or `--frames` is not a range.
    """
    from neuroflamingo_preprocessing.functional.confounds import parse_strategy
    from neuroflamingo_preprocessing.functional.denoising import Denoising

    return Denoising(strategy=parse_strategy(strategy), frames=_range(frames), **others) or None


def _range(text: str | None) -> tuple[int, int | None] | None:
    if text is None:
        return None
    first, colon, after = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(first or 0), int(after) if after else None
    except ValueError:
        raise UsageError(
            "--frames is not a range", expected="FIRST:AFTER, counted from 0, such as 5:205 or 5:", seen=text
        ) from None


def examine(*, as_json: bool) -> int:
    """Print the environment checks; return 1 if anything is missing."""
    from neuroflamingo.cli import environment

    checks = environment.examine()
    say(json.dumps(environment.as_dict(checks), indent=2) if as_json else "\n".join(environment.as_lines(checks)))
    return 0 if environment.healthy(checks) else 1
