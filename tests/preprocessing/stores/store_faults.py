"""A warmed process that forks children to be disturbed while they write stores, one after the other.

    python -m tests.preprocessing.stores.store_faults FOLDER FAULT KIND...

It prints, as JSON, how each child of each kind ended: its exit code, negative for a signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.tokens.format import ScanTokens
from neuroflamingo_encoders.tokens.store import TokenStore
from neuroflamingo_preprocessing.errors import OutputError
from neuroflamingo_preprocessing.stores.item_index import write_index
from neuroflamingo_preprocessing.stores.items import item_key
from neuroflamingo_preprocessing.stores.scans import ScanStore

TYPED, OTHER = 3, 4
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CARD = precomputed_card(width=4)


def about(number: int) -> dict[str, Any]:
    return {
        "name": f"sub-{number:02}_T1w.nii.gz",
        "input": {"sha256": f"{number:064x}"},
        "warnings": ["odd"],
        "quality": {"coverage": 1.0},
    }


def scan_store(folder: Path) -> ScanStore:
    store = ScanStore.create(folder, encoder="vit3d", card_digest="0" * 64, spec_digest="1" * 64)
    store.sweep()
    return store


def key_of(number: int) -> str:
    return item_key(f"{number:064x}", "1" * 64, {})


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def volume(folder: Path) -> None:
    store = scan_store(folder)
    store.put(key_of(0), [numbers(0, 1, 8, 9, 7)], ("channel", "x", "y", "z"), about(0))
    write_index(store)


def series(folder: Path) -> None:
    store = scan_store(folder)
    for item in range(2):
        store.put(key_of(item), list(numbers(item, 3, 6, 5)), ("parcel", "time"), about(item))
    write_index(store)


def tokens(folder: Path) -> None:
    store = TokenStore.create(folder, card=CARD, weights="2" * 64, origin={"init": "random"})
    store.sweep()
    windows = [ScanTokens(numbers(n, 5 - n, 4), positions=numbers(n, 5 - n, 3)) for n in range(2)]
    store.put(key_of(0), windows, about(0))
    write_index(store)


def again(folder: Path) -> None:
    """An item is dropped and made again; `volume` ran here before."""
    store = scan_store(folder)
    store.drop(key_of(0))
    volume(folder)


def many(folder: Path) -> None:
    store = scan_store(folder)
    for item in range(8):
        store.put(key_of(item), [numbers(item, 1, 40, 40, 40)], ("channel", "x", "y", "z"), about(item))
    write_index(store)


KINDS: dict[str, Callable[[Path], None]] = {
    "volume": volume,
    "series": series,
    "tokens": tokens,
    "again": again,
    "many": many,
}


def at_step(root: Path, step: int, act: Callable[[], None], removals: bool) -> None:
    """Call `act` before the step with this number, and before all later ones.

    Steps are: opening a file of `root` for writing, making a folder, linking, renaming, fsync; and removing.
    """
    count = [0]
    home = str(root)

    def next_step() -> None:
        count[0] += 1
        if count[0] >= step:
            act()

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            written = bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool((flags or 0) & WRITES)
            if written and isinstance(path, str | os.PathLike) and str(path).startswith(home):
                next_step()
        elif event in ("os.remove", "os.rmdir"):
            if removals:
                next_step()
        elif event in ("os.mkdir", "os.link", "os.rename") and str(arguments[0]).startswith(home):
            next_step()

    true = os.fsync

    def fsync(handle: int) -> None:
        next_step()
        true(handle)

    os.fsync = fsync
    sys.addaudithook(heard)


def at_call(moment: int, act: Callable[[], None]) -> None:
    """Call `act` where so many functions have been entered or left: a moment of the work that no clock decides."""
    count = 0

    def heard(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == moment:
            act()

    sys.setprofile(heard)


def calls(kind: str, root: Path) -> int:
    """How many functions are entered and left by the main thread."""
    count = 0

    def heard(*_: Any) -> None:
        nonlocal count
        count += 1

    sys.setprofile(heard)
    try:
        KINDS[kind](root)
    finally:
        sys.setprofile(None)
    return count


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(28, "No space left on device")


def limited(which: int, soft: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (soft, hard))


def disturb(fault: str, root: Path, step: int) -> bool:
    """Prepare this child for its fault; whether there may be a next step."""
    if fault == "kill":
        at_step(root, step, kill, removals=True)
    elif fault == "full":
        at_step(root, step, full, removals=False)
    elif fault == "call":
        at_call(step, kill)
    elif fault == "torn":  # the kernel ends the child in the middle of a write
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limited(resource.RLIMIT_CORE, 0)
        limited(resource.RLIMIT_FSIZE, 397 * step)
    elif fault == "too-large":  # the kernel refuses the rest of a write
        limited(resource.RLIMIT_FSIZE, 397 * step)
    elif fault == "handles":
        limited(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + step - 2)


def child(fault: str, kind: str, root: Path, step: int) -> int:
    signal.alarm(600)
    disturb(fault, root, step)
    try:
        KINDS[kind](root)
    except OutputError as error:
        assert error.exit_code in (73, 74) and error.hint, error
        return TYPED
    except BaseException:
        traceback.print_exc()
        return OTHER
    return 0


def forked(fault: str, kind: str, root: Path, step: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = OTHER
        with contextlib.suppress(BaseException):
            code = child(fault, kind, root, step)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def all_steps(fault: str, kind: str, base: Path) -> list[int]:
    """Children that are disturbed at the first step, at the second, ..., until one is not."""
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        root = base / f"{kind}-{len(codes) + 1}"
        if kind == "again":
            forked("none", "volume", root, 0)
        codes.append(forked(fault, kind, root, len(codes) + 1))
        assert len(codes) < 200
    return codes


def random_moments(kind: str, base: Path) -> list[int]:
    """Twenty children that are ended at moments spread over their work."""
    last, rng = calls(kind, base / "whole"), random.Random(0)
    return [forked("call", kind, base / f"{kind}-{n}", rng.randrange(1, int(0.95 * last))) for n in range(1, 21)]


if __name__ == "__main__":
    place, what, *chosen = sys.argv[1:]
    for name, write in KINDS.items():  # all that is loaded or made at first use is there before the first fork
        write(Path(place) / "warm" / ("volume" if name == "again" else name))
    found = {
        name: random_moments(name, Path(place)) if what == "random" else all_steps(what, name, Path(place))
        for name in chosen
    }
    print(json.dumps(found))
