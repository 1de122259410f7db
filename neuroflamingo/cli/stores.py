"""The commands `prepare`, `encode` and `fit-scaling`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.cli.dry_run import SHOWN, estimate, plan_in_words
from neuroflamingo.cli.errors import SOME_FAILED, say_error
from neuroflamingo.cli.show import card_options
from neuroflamingo.cli.store_options import StoreRequest
from neuroflamingo.progress import Progress, say
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.encoding.encoder_choice import EncoderChoice
    from neuroflamingo_preprocessing.stores.build import Summary


def prepare_scans(
    source: str,
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    preparation_options: dict[str, Any],
    request: StoreRequest,
) -> int:
    """Prepare scans and print a summary; return 1 if some failed, a single scan's own exit code if it failed."""
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.stores.build import prepare_into_store

    request.check()
    card = encoder_card(encoder, **card_options(options))
    preparation = Preparation.of(card.scan, **preparation_options)
    if request.dry_run:
        return _print_plan(estimate(source, output, card, request, preparation), request)
    with Progress(quiet=request.quiet) as progress:
        progress(f"preparing for {card.name}")
        done = prepare_into_store(source, output, card, preparation, **request.store_options(progress))
    return _print_summary(done, output, "prepared", request)


def encode_scans(
    scans: Sequence[str],
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    weights: Mapping[str, Any],
    preparation_options: dict[str, Any],
    device: str,
    dtype: str | None,
    overwrite: bool,
    request: StoreRequest,
) -> int:
    """Encode scans into a file or a store, depending on the output's name; return 1 if some of several failed."""
    from neuroflamingo.encoding.encoder_choice import EncoderChoice
    from neuroflamingo_encoders.tokens.files import check_token_target
    from neuroflamingo_preprocessing.preparation_options import Preparation

    if weights["init"] not in (None, "random"):
        raise UsageError(f"--init {weights['init']}", expected="random", seen=weights["init"])
    choice = EncoderChoice(encoder, card_options(options), **weights)
    if not _is_store(scans, output):
        check_token_target(output, overwrite=overwrite)
        if request.only_for_stores or dtype is not None:
            raise UsageError(
                f"{Path(output).name} is a single file, but an option that only applies to stores was given",
                expected="-o FOLDER without an extension",
                hint=f"-o {Path(output).stem}",
            )
        preparation = Preparation.of(choice.card.scan, **preparation_options)
        return _encode_to_file(
            scans, output, choice, preparation, device=device, overwrite=overwrite, quiet=request.quiet
        )
    if len(scans) != 1 or overwrite:
        raise UsageError(
            "a store takes one input" if len(scans) != 1 else "--overwrite is for token files",
            expected="a folder, a BIDS dataset, a manifest, a scan store or a scan",
            seen=f"{len(scans)} inputs",
            hint="name the scans in a manifest"
            if len(scans) != 1
            else "an existing store is resumed; delete the folder to start over",
        )
    return _encode_to_store(
        scans[0], output, choice, preparation_options, device=device, dtype=dtype or "float32", request=request
    )


def _is_store(scans: Sequence[str], output: str) -> bool:
    """True for an output without a token file's extension, or for an input of many scans."""
    from neuroflamingo_encoders.tokens.files import ENDINGS
    from neuroflamingo_preprocessing.inputs import MANIFESTS

    if Path(output).suffix in ENDINGS:
        return False
    many = any(Path(scan).is_dir() or Path(scan).suffix.lower() in MANIFESTS for scan in scans)
    return many or not Path(output).suffix or (Path(output) / "store.json").is_file()


def _encode_to_file(
    scans: Sequence[str],
    output: str,
    choice: EncoderChoice,
    preparation: Any,
    *,
    device: str,
    overwrite: bool,
    quiet: bool,
) -> int:
    from neuroflamingo.encoding.token_file import encode

    with Progress(quiet=quiet) as progress:
        progress(f"encoding with {choice.name}")
        done = encode(scans, output, choice, preparation, device=device, overwrite=overwrite, progress=progress.count)
    for name, failure in done.failures:
        say_error(f"{name}: {failure}")
    if done.failures:
        say_error(f"{len(done.failures)} of {len(scans)} scans could not be encoded")
    say(done.path)
    return SOME_FAILED if done.failures else 0


def _encode_to_store(
    source: str,
    output: str,
    choice: EncoderChoice,
    preparation_options: dict[str, Any],
    *,
    device: str,
    dtype: str,
    request: StoreRequest,
) -> int:
    from dataclasses import replace

    from neuroflamingo.encoding.token_store import encode_into_store
    from neuroflamingo_preprocessing.preparation_options import Preparation

    one_at_a_time = request.nprocs is None and request.scheduler is None  # each worker holds the encoder
    request = replace(request, nprocs=1) if one_at_a_time else request
    request.check()
    preparation = Preparation.of(choice.card.scan, **preparation_options)
    if request.dry_run:
        return _print_plan(estimate(source, output, choice.card, request, preparation, tokens=dtype), request)
    with Progress(quiet=request.quiet) as progress:
        progress(f"encoding with {choice.name}")
        done = encode_into_store(
            source, output, choice, preparation, device=device, dtype=dtype, **request.store_options(progress)
        )
    return _print_summary(done, output, "encoded", request)


def _print_plan(plan: Mapping[str, Any], request: StoreRequest) -> int:
    say(json.dumps(plan, indent=2) if request.json else plan_in_words(plan))
    return 0


def _print_summary(done: Summary, output: str, verb: str, request: StoreRequest) -> int:
    for note in () if request.quiet else done.notes:
        say(f"note: {note}", file=sys.stderr)
    for failure in done.failures[:SHOWN]:
        say_error(str(failure["error"]))
    if len(done.failures) > SHOWN:
        say_error(f"and {len(done.failures) - SHOWN} more: see {Path(output) / 'log.jsonl'}")
    if request.json:
        say(json.dumps(asdict(done), indent=2))
    else:
        damaged = f", {done.dropped} damaged ones dropped" if done.dropped else ""
        counts = f"{done.done} {verb}, {done.present} already present, {done.failed} failed{damaged}"
        say(f"{output}: {counts}; {done.seconds:.1f} s")
    if not done.failed:
        return 0
    return int(done.failures[0]["exit_code"]) if done.scans == 1 else SOME_FAILED


def fit_scaling_of(
    source: str,
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    preparation_options: dict[str, Any],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fit the parcel scaling and print what it was fitted on; return 1 if some runs failed."""
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_preprocessing.fit_scaling import fit_scaling
    from neuroflamingo_preprocessing.preparation_options import Preparation

    card = encoder_card(encoder, **card_options(options))
    preparation = Preparation.of(card.scan, **preparation_options)
    with Progress(quiet=quiet) as progress:
        progress(f"fitting the scaling of {card.name}")
        done = fit_scaling(source, output, card, preparation, overwrite=overwrite, progress=progress.count)
    for note in () if quiet else done.notes:
        say(f"note: {note}", file=sys.stderr)
    for name, error in done.failures[:SHOWN]:
        say_error(f"{name}: {error}")
    counts = {"runs": done.runs, "frames": done.frames, "parcels": done.parcels, "failed": len(done.failures)}
    if as_json:
        say(json.dumps({"output": output, "encoder": card.name} | counts, indent=2))
    else:
        say(f"{output}: " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    return SOME_FAILED if done.failures else 0
