"""Commands for encoder authors: `encoders check` and `encoders new`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from neuroflamingo.progress import say
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo_encoders.conformance.check import CheckResult


def check_encoders(name: str | None, *, every: bool, fixtures: str | None, seconds: float, as_json: bool) -> int:
    """Check one encoder, or all of them in separate processes; return 1 if anything failed."""
    if (name is None) == (not every):
        raise UsageError(
            "no single choice of encoder",
            expected="either a name (or package.module:Class), or --all",
            seen="both" if every else "neither",
            hint="neuroflamingo encoders list",
        )
    if every:
        return _check_all(fixtures, seconds, as_json)
    assert name is not None
    _refuse_unknown(name)
    from neuroflamingo.encoder_check.end_to_end import check_encoder

    results = []
    for result in check_encoder(name, fixtures=fixtures):
        results.append(result)
        if not as_json:
            say(result, flush=True)
    if as_json:
        say(json.dumps([_as_dict(name, results)], indent=2))
    else:
        say(f"\n{name}: {_counts(results)}")
    return 0 if all(result.fine for result in results) else 1


def _check_all(fixtures: str | None, seconds: float, as_json: bool) -> int:
    """Print one line per encoder and one per check that failed or was expected to fail."""
    from neuroflamingo.encoder_check.isolation import check_isolated
    from neuroflamingo_encoders.registry import list_encoders

    found = []
    for name, results in check_isolated(list_encoders(), seconds=seconds, fixtures=fixtures):
        found.append(_as_dict(name, results))
        if not as_json:
            spent = sum(result.seconds for result in results)
            say(f"{'passed' if found[-1]['fine'] else 'failed':<8} {name:<22} {_counts(results)}; {spent:.1f} s")
            for line in _notable(results):
                say(f"         {line}", flush=True)
    if as_json:
        say(json.dumps(found, indent=2))
    failed = [entry["encoder"] for entry in found if not entry["fine"]]
    if not as_json:
        say(
            f"\n{len(found) - len(failed)} of {len(found)} encoders passed"
            + (f"; failed: {', '.join(failed)}" if failed else "")
        )
    return 1 if failed else 0


def _refuse_unknown(name: str) -> None:
    if ":" in name:
        sys.path.append(os.getcwd())  # so that the author's module need not be installed
        return
    from neuroflamingo_encoders.registry import encoder_card, list_encoders

    if name not in list_encoders():
        encoder_card(name)  # raises an error that names the nearest ones


def _notable(results: list[CheckResult]) -> Iterator[str]:
    return (str(result) for result in results if result.status in ("failed", "expected failure"))


def _counts(results: list[CheckResult]) -> str:
    counts = Counter(result.status for result in results)
    return ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])


_ORDER = ("passed", "failed", "expected failure", "not applicable")


def _as_dict(name: str, results: list[CheckResult]) -> dict:
    return {
        "encoder": name,
        "fine": all(result.fine for result in results),
        "checks": [result.as_dict() for result in results],
    }


def new_encoder(name: str, output: str | None, *, overwrite: bool) -> None:
    """Write a new encoder project and print the next steps."""
    from neuroflamingo_encoders.scaffold import write_encoder_project

    folder = write_encoder_project(name, output, overwrite=overwrite)
    say(folder)
    say(f"next: pip install -e {folder}, then neuroflamingo encoders check {name}", file=sys.stderr)
