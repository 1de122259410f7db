"""The verbs `prepare`, `encode` and `fit-scaling`: scans to a store, to tokens, or to the scaling of parcels."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.cli.dry_run import SHOWN, estimate, plan_in_words
from neuroflamingo.cli.errors import say_error
from neuroflamingo.cli.show import card_options
from neuroflamingo.cli.store_options import StoreRequest
from neuroflamingo.progress import Progress
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.encoding.encoder_choice import EncoderChoice
    from neuroflamingo_preprocessing.stores.build import Summary

SOME_FAILED = 1


def prepare_scans(
    source: str, output: str, *, encoder: str, options: Sequence[str], preparation: dict[str, Any], asked: StoreRequest
) -> int:
    """Prepare and say what became of it; 1 if some scans failed, the scan's own code if there was one only."""
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.stores.build import prepare_into_store

    asked.check()
    card = encoder_card(encoder, **card_options(options))
    how = Preparation.of(card.scan, **preparation)
    if asked.dry_run:
        return _tell(estimate(source, output, card, asked, how), asked)
    with Progress(quiet=asked.quiet) as progress:
        progress(f"preparing for {card.name}")
        done = prepare_into_store(source, output, card, how, **asked.spread(progress))
    return _say(done, output, "prepared", asked)


def encode_scans(
    scans: Sequence[str],
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    weights: Mapping[str, Any],
    preparation: dict[str, Any],
    device: str,
    dtype: str | None,
    overwrite: bool,
    asked: StoreRequest,
) -> int:
    """Encode scans into one file or into a store, as the output's name says; 1 if some of several failed."""
    from neuroflamingo.encoding.encoder_choice import EncoderChoice
    from neuroflamingo_encoders.tokens.files import check_token_target
    from neuroflamingo_preprocessing.preparation_options import Preparation

    if weights["init"] not in (None, "random"):
        raise UsageError(f"--init {weights['init']}", expected="random", seen=weights["init"])
    choice = EncoderChoice(encoder, card_options(options), **weights)
    if not _is_store(scans, output):
        check_token_target(output, overwrite=overwrite)
        if asked.only_for_stores or dtype is not None:
            raise UsageError(
                f"{Path(output).name} is one file: what was asked is for stores",
                expected="-o FOLDER without an ending",
                hint=f"-o {Path(output).stem}",
            )
        how = Preparation.of(choice.card.scan, **preparation)
        return _encode_to_file(scans, output, choice, how, device=device, overwrite=overwrite, quiet=asked.quiet)
    if len(scans) != 1 or overwrite:
        raise UsageError(
            "a store takes one input" if len(scans) != 1 else "--overwrite is for token files",
            expected="a folder, a BIDS dataset, a manifest, a scan store or a scan",
            seen=f"{len(scans)} inputs",
            hint="name the scans in a manifest" if len(scans) != 1 else "a store is gone on with; remove it yourself",
        )
    return _encode_to_store(scans[0], output, choice, preparation, device=device, dtype=dtype or "float32", asked=asked)


def _is_store(scans: Sequence[str], output: str) -> bool:
    """An ending of a token file says a file; no ending, or an input of many scans, says a store."""
    from neuroflamingo_encoders.tokens.files import ENDINGS
    from neuroflamingo_preprocessing.inputs import MANIFESTS

    if Path(output).suffix in ENDINGS:
        return False
    many = any(Path(scan).is_dir() or Path(scan).suffix.lower() in MANIFESTS for scan in scans)
    return many or not Path(output).suffix or (Path(output) / "store.json").is_file()


def _encode_to_file(
    scans: Sequence[str], output: str, choice: EncoderChoice, how: Any, *, device: str, overwrite: bool, quiet: bool
) -> int:
    from neuroflamingo.encoding.token_file import encode

    with Progress(quiet=quiet) as progress:
        progress(f"encoding with {choice.name}")
        done = encode(scans, output, choice, how, device=device, overwrite=overwrite, progress=progress.count)
    for name, failure in done.failures:
        say_error(f"{name}: {failure}")
    if done.failures:
        say_error(f"{len(done.failures)} of {len(scans)} scans could not be encoded")
    print(done.path)
    return SOME_FAILED if done.failures else 0


def _encode_to_store(
    source: str,
    output: str,
    choice: EncoderChoice,
    preparation: dict[str, Any],
    *,
    device: str,
    dtype: str,
    asked: StoreRequest,
) -> int:
    from dataclasses import replace

    from neuroflamingo.encoding.token_store import encode_into_store
    from neuroflamingo_preprocessing.preparation_options import Preparation

    one_at_a_time = asked.processes is None and asked.scheduler is None  # each worker holds the encoder
    asked = replace(asked, processes=1) if one_at_a_time else asked
    asked.check()
    how = Preparation.of(choice.card.scan, **preparation)
    if asked.dry_run:
        return _tell(estimate(source, output, choice.card, asked, how, tokens=dtype), asked)
    with Progress(quiet=asked.quiet) as progress:
        progress(f"encoding with {choice.name}")
        done = encode_into_store(source, output, choice, how, device=device, dtype=dtype, **asked.spread(progress))
    return _say(done, output, "encoded", asked)


def _tell(plan: Mapping[str, Any], asked: StoreRequest) -> int:
    print(json.dumps(plan, indent=2) if asked.as_json else plan_in_words(plan))
    return 0


def _say(done: Summary, output: str, verb: str, asked: StoreRequest) -> int:
    for note in () if asked.quiet else done.notes:
        print(f"note: {note}", file=sys.stderr)
    for failure in done.failures[:SHOWN]:
        say_error(str(failure["error"]))
    if len(done.failures) > SHOWN:
        say_error(f"and {len(done.failures) - SHOWN} more: see {Path(output) / 'log.jsonl'}")
    if asked.as_json:
        print(json.dumps(asdict(done), indent=2))
    else:
        again = f", {done.dropped} damaged ones dropped" if done.dropped else ""
        counts = f"{done.done} {verb}, {done.present} were there, {done.failed} failed{again}"
        print(f"{output}: {counts}; {done.seconds:.1f} s")
    if not done.failed:
        return 0
    return int(done.failures[0]["exit_code"]) if done.scans == 1 else SOME_FAILED


def fit_scaling_of(
    source: str,
    output: str,
    *,
    encoder: str,
    options: Sequence[str],
    preparation: dict[str, Any],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fit and say what of; 1 if some runs failed."""
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_preprocessing.fit_scaling import fit_scaling
    from neuroflamingo_preprocessing.preparation_options import Preparation

    card = encoder_card(encoder, **card_options(options))
    how = Preparation.of(card.scan, **preparation)
    with Progress(quiet=quiet) as progress:
        progress(f"fitting the scaling of {card.name}")
        done = fit_scaling(source, output, card, how, overwrite=overwrite, progress=progress.count)
    for name, error in done.failures[:SHOWN]:
        say_error(f"{name}: {error}")
    counts = {"runs": done.runs, "frames": done.frames, "parcels": done.parcels, "failed": len(done.failures)}
    if as_json:
        print(json.dumps({"output": output, "encoder": card.name} | counts, indent=2))
    else:
        print(f"{output}: " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    return SOME_FAILED if done.failures else 0
