"""The core install alone, without any extra: reports and the demo work, what needs an extra says which one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from neuroflamingo_preprocessing.software import BIDS_EXTRA

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ABSENT = (*BIDS_EXTRA, "pydicom", "dask", "distributed", "tensorboard", "sacrebleu", "rouge_score", "open_clip")
RUN = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))  # importing them raises ImportError, as if they were not installed
from neuroflamingo.cli import main
sys.exit(main(sys.argv[1:]))
"""
DEMO = RUN.replace("from neuroflamingo.cli import main", "from neuroflamingo.demo import main")


def run(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False)


def names(lines: list[str]) -> set[str]:
    return {Requirement(line).name.lower().replace("-", "_") for line in lines}


def test_the_extra_is_no_part_of_the_core_and_is_in_those_that_need_it() -> None:
    extras = PROJECT["optional-dependencies"]
    assert names(extras["bids"]) == set(BIDS_EXTRA) and not names(PROJECT["dependencies"]) & set(ABSENT)
    for extra in ("train", "test", "cluster"):
        assert any("bids" in Requirement(line).extras for line in extras[extra]), extra


@pytest.mark.slow
def test_a_report_and_the_demo_need_no_extra(tmp_path: Path) -> None:
    done = run(DEMO, tmp_path, "--output", "demo")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "demo").glob("*.html"))) == 2


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["prepare", "series.npy", "-o", "store", "--encoder", "fc-baseline", "--option", "parcels=30"], "a store"),
        (["prepare", "table.parquet", "-o", "store", "--encoder", "vit3d"], "a parquet table"),
        (["prepare", "dataset", "-o", "store", "--encoder", "vit3d"], "a BIDS dataset"),
    ],
)
def test_what_needs_the_extra_says_so_before_any_work(words: list[str], what: str, tmp_path: Path) -> None:
    np.save(tmp_path / "series.npy", np.ones((30, 20), np.float32))
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    (tmp_path / "dataset" / "sub-01" / "anat").mkdir(parents=True)
    (tmp_path / "dataset" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (tmp_path / "dataset" / "sub-01" / "anat" / "sub-01_T1w.nii").write_bytes(b"x")
    done = run(RUN, tmp_path, *words)
    assert done.returncode == 69, done.stderr
    assert f"{what} cannot be handled here" in done.stderr and "pip install 'neuroflamingo[bids]'" in done.stderr
    assert not (tmp_path / "store").exists()
