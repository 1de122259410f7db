"""Checks of many encoders, each in its own process with a time limit, so that a crash does not affect the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from neuroflamingo.encoder_check.end_to_end import check_encoder
from neuroflamingo_encoders.conformance.check import CheckResult

SECONDS = 300.0
"""Time limit for the checks of one encoder."""


def check_isolated(
    names: Iterable[str], *, seconds: float = SECONDS, fixtures: str | None = None
) -> Iterator[tuple[str, list[CheckResult]]]:
    """Yield the name and results of each encoder, in order.

    Args:
        names: registered names, or `package.module:Class`.
        seconds: time limit after which an encoder's process is ended; results up to then are kept.
        fixtures: see `check_encoder`.
    """
    context: Any = multiprocessing.get_context(_start_method())
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["neuroflamingo.encoder_check"])  # torch is imported once, not for each
    for name in names:
        yield name, _check_in_process(context, name, seconds, fixtures)


def _start_method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _check_in_process(context: Any, name: str, seconds: float, fixtures: str | None) -> list[CheckResult]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, name, fixtures), daemon=True)
    process.start()
    sender.close()
    deadline, results, end = time.monotonic() + seconds, [], f"did not finish within {seconds:g} s"
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            found = receiver.recv()
            if found is None:
                return results
            results.append(found)
    except EOFError:
        process.join(5)
        end = f"its process ended with exit code {process.exitcode}"
    finally:
        _end(process)
        receiver.close()
    last = f"after {results[-1].name}" if results else "before the first check"
    return [*results, CheckResult("device.isolation", 9, "failed", f"{end}, {last}", seconds)]


def _end(process: Any) -> None:
    """End the process and its children; it leads its own process group."""
    if process.is_alive() and hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    elif process.is_alive():
        process.kill()
    process.join(5)
    process.close()


def _work(sender: Connection, name: str, fixtures: str | None) -> None:
    """Run the checks in the child process and send each result; standard output is redirected to standard error."""
    if hasattr(os, "setsid"):
        os.setsid()
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    for result in check_encoder(name, fixtures=fixtures):
        sender.send(result)
    sender.send(None)
    sender.close()
