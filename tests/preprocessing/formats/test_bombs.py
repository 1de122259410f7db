"""Small files that claim or become gigabytes: refused with a typed error, for little memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.preprocessing.formats import bomb_costs, bombs

EXTRA_BYTES = 256 * 2**20
CPU_SECONDS = 2.0  # of the processor, not of the clock
MAY_BE_READ = ("extension_of_2_gb",)  # the voxels are where the header says; what an extension claims is not looked at

pytestmark = pytest.mark.slow  # for what all its tests wait for


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each costs, measured in a process of its own; the files are made by its parent."""
    folder = tmp_path_factory.mktemp("bombs")
    done = subprocess.run(
        [sys.executable, "-m", bomb_costs.__name__, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_bombs_cost_little(name: str, found: dict[str, dict[str, Any]]) -> None:
    one = found[name]
    if not (name in MAY_BE_READ and one["error"] == "NoneType"):
        assert one["error"] in ("ScanError", "ModelError") and one["exit"] == 65, one
        assert one["what"] and one["expected"] and one["seen"], one
        assert len(one["seen"]) < 1000 and "/" + name + "/" not in json.dumps(one), one
    assert one["bytes"] < EXTRA_BYTES, one
    assert one["seconds"] < CPU_SECONDS, one


def test_there_are_enough_of_them_and_they_are_small(tmp_path: Path) -> None:
    assert len(bombs.BOMBS) >= 20
    sizes = {}
    for name in ("nifti_claims_2_tb", "nifti_gz_becomes_10_gb", "zarr_json_claims_800_tb"):
        (tmp_path / name).mkdir()
        bombs.BOMBS[name](tmp_path / name)
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).rglob("*") if file.is_file())
    assert sizes["nifti_claims_2_tb"] < 55_000 and sizes["nifti_gz_becomes_10_gb"] < 12_000_000
    assert sizes["zarr_json_claims_800_tb"] < 5_000
