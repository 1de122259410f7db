"""Commands for encoder authors: `encoders check` and `encoders new`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

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
        say(f"\n{name}: {_counts(results)}" + ("" if _was_checked(results) else "; not checked"))
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
            say(f"{_verdict(found[-1]):<11} {name:<22} {_counts(results)}; {spent:.1f} s")
            for line in _notable(results):
                say(f"         {line}", flush=True)
    if as_json:
        say(json.dumps(found, indent=2))
    by_verdict = {word: [e["encoder"] for e in found if _verdict(e) == word] for word in _VERDICTS}
    if not as_json:
        others = [f"; {word}: {', '.join(names)}" for word, names in by_verdict.items() if names and word != "passed"]
        say(f"\n{len(by_verdict['passed'])} of {len(found)} encoders passed{''.join(others)}")
    return 1 if by_verdict["failed"] else 0


_VERDICTS = ("passed", "failed", "not checked")


def _verdict(entry: Mapping[str, Any]) -> str:
    return "failed" if not entry["fine"] else "passed" if entry["checked"] else "not checked"


def _was_checked(results: list[CheckResult]) -> bool:
    """Whether any check ran: none does where a library of an extra is missing."""
    return any(result.status != "not applicable" for result in results)


def _refuse_unknown(name: str) -> None:
    if ":" in name:
        sys.path.append(os.getcwd())  # so that the author's module need not be installed
        return
    from neuroflamingo_encoders.registry import encoder_card, list_encoders

    if name not in list_encoders():
        encoder_card(name)  # raises an error that names the nearest ones


def _notable(results: list[CheckResult]) -> Iterator[str]:
    told = ("failed", "expected failure") if _was_checked(results) else ("not applicable",)
    return (str(result) for result in results if result.status in told)


def _counts(results: list[CheckResult]) -> str:
    counts = Counter(result.status for result in results)
    return ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])


_ORDER = ("passed", "failed", "expected failure", "not applicable")


def _as_dict(name: str, results: list[CheckResult]) -> dict:
    return {
        "encoder": name,
        "fine": all(result.fine for result in results),
        "checked": _was_checked(results),
        "checks": [result.as_dict() for result in results],
    }


def new_encoder(name: str, output: str | None, *, overwrite: bool) -> None:
    """Write a new encoder project and print the next steps."""
    from neuroflamingo_encoders.scaffold import write_encoder_project

    folder = write_encoder_project(name, output, overwrite=overwrite)
    say(folder)
    say(f"next: pip install -e {folder}, then neuroflamingo encoders check {name}", file=sys.stderr)
