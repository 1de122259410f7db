"""What each of the `bombs` costs: run as a script it opens each in a process of its own and says so as JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from tests.preprocessing.formats import bombs_of_tokens  # noqa: F401  (adds its own)
from tests.preprocessing.formats.bombs import BOMBS, Call, nifti, scan

LIMIT_BYTES = 3 * 2**30  # of address space above what the process has: keeps a failure from taking the machine along


def peak_bytes() -> int:
    """The most memory that this process ever held; a forked one begins with what its parent holds."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def cost(call: Call) -> dict[str, Any]:
    """Error and cost of one call, in this process."""
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = address_space + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before, started = held_bytes(), time.process_time()
    try:
        call()
        error = None
    except BaseException as caught:
        error = caught
    seconds = time.process_time() - started
    said: dict[str, Any] = {"error": type(error).__name__, "exit": getattr(error, "exit_code", None)}
    words = {key: getattr(error, key, None) for key in ("what", "expected", "seen", "hint")}
    return said | words | {"bytes": peak_bytes() - before, "seconds": seconds}


def cost_in_a_fork(call: Call) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(cost(call)).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return json.loads(told) if told else {"error": "killed", "exit": None}


def main(folder: Path) -> None:
    found = {}
    (folder / "good").mkdir()
    scan(folder / "good", nifti())()  # so that no bomb pays for what is loaded with the first scan
    for name, make in BOMBS.items():
        place = folder / name
        place.mkdir()
        found[name] = cost_in_a_fork(make(place))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
