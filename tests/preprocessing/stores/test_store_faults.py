"""Whatever happens while a store is written: items are whole or absent, and the next run ends with the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroflamingo_encoders.tokens.store import TokenStore
from neuroflamingo_preprocessing.drafts import TEMPORARY_PREFIX
from neuroflamingo_preprocessing.stores.items import ItemStore
from neuroflamingo_preprocessing.stores.scans import ScanStore
from tests.preprocessing.stores.store_faults import KINDS, TYPED

ROOT = Path(__file__).parents[3]
KILLED, TORN = -9, -25


def disturbed(folder: Path, fault: str, *kinds: str) -> dict[str, list[int]]:
    command = [sys.executable, "-m", "tests.preprocessing.stores.store_faults", str(folder), fault, *kinds]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def opened(folder: Path, kind: str) -> ItemStore[Any]:
    return TokenStore(folder) if kind == "tokens" else ScanStore(folder)


def check(folder: Path, kind: str, wanted: dict[str, bytes]) -> int:
    """Committed items are the undisturbed ones, and the next run makes all the rest; gives how many there were."""
    whole = 0
    if (folder / "store.json").exists():
        store = opened(folder, kind)
        for key in store:
            whole += 1
            assert store.fault(key, thorough=True) is None
            name = store[key].folder.relative_to(folder).as_posix()
            there = {p: b for p, b in content(folder).items() if p.startswith(name)}
            assert there == {p: b for p, b in wanted.items() if p.startswith(name)}
    KINDS["volume" if kind == "again" else kind](folder)
    assert content(folder) == wanted
    return whole


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory where there is such a folder: thousands of fsyncs cost a disk minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    base = tmp_path_factory.mktemp("undisturbed")
    for kind in KINDS:
        KINDS["volume" if kind == "again" else kind](base / kind)
    return {kind: content(base / kind) for kind in KINDS}


@pytest.mark.slow
def test_killed_before_every_step(place: Path, undisturbed: dict[str, dict[str, bytes]]) -> None:
    ends = disturbed(place, "kill", "volume", "series", "tokens", "again")
    moments = sum(len(codes) - 1 for codes in ends.values())
    assert moments >= 60 and all(set(codes[:-1]) == {KILLED} for codes in ends.values()), ends
    whole = [
        check(place / f"{kind}-{n}", kind, undisturbed[kind])
        for kind, codes in ends.items()
        for n in range(1, len(codes) + 1)
    ]
    assert {0, 1, 2} == set(whole)


@pytest.mark.slow
def test_ended_in_the_middle_of_a_write(place: Path, undisturbed: dict[str, dict[str, bytes]]) -> None:
    ends = disturbed(place, "torn", "volume", "tokens")
    assert all(len(codes) > 4 and set(codes[:-1]) == {TORN} for codes in ends.values()), ends
    for kind, codes in ends.items():
        for n in range(1, len(codes) + 1):
            check(place / f"{kind}-{n}", kind, undisturbed[kind])


@pytest.mark.slow
def test_killed_at_random_moments(place: Path, undisturbed: dict[str, dict[str, bytes]]) -> None:
    codes = disturbed(place, "random", "many")["many"]
    assert codes == [KILLED] * 20
    whole = {check(place / f"many-{n}", "many", undisturbed["many"]) for n in range(1, 21)}
    assert len(whole) > 2, "the moments were not spread over the run"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "too-large", "handles"])
def test_what_cannot_be_written_is_a_typed_error(
    place: Path, undisturbed: dict[str, dict[str, bytes]], fault: str
) -> None:
    ends = disturbed(place, fault, "tokens" if fault == "full" else "volume")
    assert all(len(codes) > 2 and set(codes[:-1]) == {TYPED} for codes in ends.values()), ends
    for kind, codes in ends.items():
        for n in range(1, len(codes) + 1):
            folder = place / f"{kind}-{n}"
            if fault != "handles":  # without one a folder cannot be listed, nor emptied: the next run sweeps it
                assert not list(folder.rglob(f"{TEMPORARY_PREFIX}*"))
            check(folder, kind, undisturbed[kind])


READ_ONLY = """
import os, sys
from pathlib import Path
from neuroflamingo_preprocessing.errors import OutputError
from tests.preprocessing.stores.store_faults import KINDS, about, key_of, numbers, scan_store
import zarr
folder = Path(sys.argv[1])
KINDS["volume"](folder)
zarr.open_array(folder / "items" / key_of(0)[:2] / key_of(0) / "tensor", mode="r")[...]
(folder / "index.parquet").unlink()
for place in (folder, *folder.rglob("*")):
    place.chmod(0o555 if place.is_dir() else 0o444)
if os.getuid() == 0:
    os.setuid(65534)
store = scan_store(folder)
assert list(store) == [key_of(0)] and store[key_of(0)].read().shape == (1, 1, 8, 9, 7)
assert store.index().num_rows == 1 and not (folder / "index.parquet").exists()
codes = []
for act in (
    lambda: store.put(key_of(1), [numbers(1, 3, 4)], ("parcel", "time"), about(1)),
    lambda: store.drop(key_of(0)),
    lambda: scan_store(folder / "inside"),
    lambda: KINDS["volume"](folder),
):
    try:
        act()
    except OutputError as error:
        codes.append(error.exit_code)
print(codes)
"""


def test_a_store_that_may_only_be_read(tmp_path: Path) -> None:
    above = [place for place in tmp_path.parents if "pytest-of-" in place.as_posix()]
    for place in (tmp_path, *above):  # for the user that the child becomes
        if place.owner() == tmp_path.owner() and os.getuid() == 0:
            place.chmod(0o755)
    answer = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(tmp_path / "s")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    for place in (tmp_path / "s").rglob("*"):
        place.chmod(0o755)
    assert answer.stdout.strip() == "[74, 74, 73, 73]", answer.stdout + answer.stderr
