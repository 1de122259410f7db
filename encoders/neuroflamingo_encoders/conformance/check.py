"""`check_encoder`: the conformance kit, eleven groups of named checks without weights, on a CPU.

Group 11 needs a language model: `neuroflamingo.encoder_check.check_encoder` adds it. The kit checks behaviour only;
whether the tokens are useful, only training can tell.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from neuroflamingo_encoders.conformance import declared, determinism, preparation, token_order, weight_loading
from neuroflamingo_encoders.conformance.subject import Check, Failure, NotApplicable, Source, Subject
from neuroflamingo_preprocessing.errors import UsageError, did_you_mean

__all__ = ["GROUPS", "Check", "CheckResult", "Failure", "NotApplicable", "Subject", "check_encoder", "failures"]

Status = Literal["passed", "failed", "expected failure", "not applicable"]

GROUPS = {
    1: "card",
    2: "shapes",
    3: "determinism",
    4: "batch",
    5: "order",
    6: "loading",
    7: "freezing",
    8: "preparation",
    9: "dtype and device",
    10: "parity",
    11: "end to end",
}
"""Numbers and names of the groups."""

CHECKS: tuple[Check, ...] = (
    *declared.CHECKS,
    *determinism.CHECKS,
    *token_order.CHECKS,
    *weight_loading.CHECKS,
    *preparation.CHECKS,
)


def _not_here(subject: Subject) -> str:
    raise NotApplicable("needs a language model: use neuroflamingo.encoder_check")


END_TO_END = Check("end_to_end", 11, _not_here)
"""Placeholder for group 11 if the caller gives no checks of it."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        name: `group.check`, stable, so that expected failures can name it.
        group: 1 to 11, see `GROUPS`.
        status: only `failed` is a fault.
        message: what was seen, or the reason.
        seconds: duration.
    """

    name: str
    group: int
    status: Status
    message: str
    seconds: float = field(default=0.0, compare=False)

    @property
    def fine(self) -> bool:
        """Whether the check did not fail (skipped and expected failures count as fine)."""
        return self.status != "failed"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        return f"{self.status:<16} {self.name:<30} {' '.join(self.message.split())}"


def check_encoder(
    encoder: Source,
    *,
    fixtures: str | Path | None = None,
    expected_failures: Mapping[str, str] | None = None,
    extra: Iterable[Check] = (END_TO_END,),
) -> Iterator[CheckResult]:
    """Run all checks on an encoder and yield their results; an encoder that cannot be built gives one failed result.

    Args:
        encoder: a registered name, `package.module:Class`, a subclass of `BrainEncoder`, or a function that builds an
            instance. Large encoders are checked in the size of `BrainEncoder.tiny`.
        fixtures: folder of golden cases for group 10, see `weight_loading.golden_cases`.
        expected_failures: check name to reason, in addition to the encoder's own `known_deviations`. An expected
            failure that passes counts as failed.
        extra: further checks, run last.

    Raises:
        UsageError: an expected failure without a reason, or of an unknown check.
    """
    checks = (*CHECKS, *extra)
    expected = dict(expected_failures or {})
    _refuse_unknown(expected, checks)
    printed = io.StringIO()
    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(printed), _own_random_numbers():
            subject = Subject.of(encoder, fixtures)
            expected = dict(subject.type.known_deviations) | expected
        _refuse_unknown(expected, checks)
    except NotApplicable as reason:
        yield CheckResult("card.builds", 1, "not applicable", str(reason), time.perf_counter() - began)
        return
    except Exception as failure:
        spent = time.perf_counter() - began
        yield CheckResult("card.builds", 1, "failed", _words(failure), spent)
        return
    yield CheckResult("card.builds", 1, "passed", subject.describe(), time.perf_counter() - began)
    for check in checks:
        began = time.perf_counter()
        with contextlib.redirect_stdout(printed), _own_random_numbers():
            status, message = _run(check, subject)
        if check.name in expected and status in ("failed", "passed"):
            status, message = _as_expected(status, message, expected[check.name])
        yield CheckResult(check.name, check.group, status, message, time.perf_counter() - began)
    yield _silence(printed.getvalue())


def failures(results: Iterable[CheckResult]) -> list[str]:
    """Failed results, one line each.

    `assert not failures(check_encoder(MyEncoder))` is a complete test.
    """
    return [str(result) for result in results if not result.fine]


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Use the same random numbers in every run, without changing the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _run(check: Check, subject: Subject) -> tuple[Status, str]:
    try:
        return "passed", check.run(subject) or ""
    except NotApplicable as reason:
        return "not applicable", str(reason)
    except Failure as failure:
        return "failed", str(failure)
    except Exception as failure:  # an encoder may raise anything
        return "failed", _words(failure)


def _words(failure: BaseException) -> str:
    return f"raises {type(failure).__name__}: {failure}"


def _as_expected(status: Status, message: str, reason: str) -> tuple[Status, str]:
    if status == "failed":
        return "expected failure", f"{reason} ({message})"
    return "failed", f"passes, but was expected to fail ({reason}): take it off the list"


def _silence(printed: str) -> CheckResult:
    """Check that nothing was printed: standard output is for JSON and reports of the program."""
    if printed:
        first = printed.strip().splitlines() or ["an empty line"]
        return CheckResult("device.silence", 9, "failed", f"prints to standard output: {first[0]!r}")
    return CheckResult("device.silence", 9, "passed", "nothing was printed")


def _refuse_unknown(expected: Mapping[str, str], checks: Iterable[Check]) -> None:
    known = [check.name for check in checks]
    for name, reason in expected.items():
        if name not in known:
            raise UsageError(
                f"there is no check named '{name}' to expect a failure of",
                expected=f"one of: {', '.join(known)}",
                hint=did_you_mean(name, known, 1, 0.4),
            )
        if not reason.strip():
            raise UsageError(
                f"the expected failure of '{name}' has no reason",
                expected="why it fails and why that is acceptable",
                hint=f"expected_failures={{'{name}': 'because ...'}}",
            )
