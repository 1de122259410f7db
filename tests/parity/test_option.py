"""The option itself: other folders are checked, and a wrong number, an unknown kind or an empty folder fails."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
COPY = HERE / "openflamingo"
# One entry of each kind, the tensor in which one number is altered, and the test that has to see it.
WRONG = {
    "perceiver_frames_f3": ("output.latents", "test_perceiver.py::test_outputs_and_gradients"),
    "xattn_immediate_cached_media": ("grad.media", "test_gated_block.py::test_gradients"),
    "training_labels": ("output.labels_pair_data", "test_training_labels.py::test_labels"),
    "flamingo_opt_n1": ("output.logits", "test_whole_models.py::test_logits_and_loss"),
}


class Results:
    """A plugin that takes down the failed tests of a run and all that it reports."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.said: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
            self.said.append(report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.said.append(report.longreprtext)


def run(*arguments: str) -> tuple[int, Results]:
    """Run pytest anew in this process, without this file; its exit code and its results."""
    results = Results()
    off = [word for name in ("cacheprovider", "xdist", "zarr", "anyio") for word in ("-p", f"no:{name}")]
    code = pytest.main(["-q", *off, f"--ignore={Path(__file__)}", *arguments], plugins=[results])
    return int(code), results


def write(folder: Path) -> None:
    """Each entry of `WRONG` twice, intact and with one number altered, and one entry of an unknown kind."""
    index = json.loads((COPY / "index.json").read_text(encoding="utf-8"))
    intact = [entry for entry in index["fixtures"] if entry["name"] in WRONG]
    altered = copy.deepcopy(intact)
    for entry, wrong in zip(intact, altered, strict=True):
        tensors = load_file(COPY / entry["file"])
        save_file(tensors, folder / entry["file"])
        changed = tensors[WRONG[entry["name"]][0]]
        changed.view(-1)[-1] += 1e-3 if changed.is_floating_point() else 1
        wrong.update(name=f"wrong_{entry['name']}", file=f"wrong_{entry['file']}")
        save_file(tensors, folder / wrong["file"])
    surprise = {**intact[0], "name": "surprise", "kind": "surprise"}
    index["fixtures"] = [*intact, *altered, surprise]
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.slow
def test_wrong_numbers_and_unknown_kinds_fail(tmp_path):
    write(tmp_path)
    code, results = run(str(HERE), "--openflamingo-fixtures", str(tmp_path))
    failed = [re.fullmatch(r"tests/parity/(\S+?)\[(\S+)\]", name) for name in results.failed]
    tests = {(found[1], found[2].split("-")[0]) for found in failed if found}
    expected = {(test, f"wrong_{name}") for name, (_, test) in WRONG.items()}
    assert code == 1, results.said
    assert tests == expected | {("test_fixture_folder.py::test_kind_is_known", "surprise")}, results.said
    assert all(failed), results.failed


@pytest.mark.slow
def test_a_folder_without_fixtures_fails(tmp_path):
    code, results = run(str(HERE), "--openflamingo-fixtures", str(tmp_path))
    assert code not in (0, 5), results.said
    assert any("no golden numbers" in words for words in results.said), results.said


@pytest.mark.parametrize("index", ["{}", '{"fixtures": []}'])
def test_an_index_without_fixtures_is_an_error(tmp_path, read_fixtures, index):
    (tmp_path / "index.json").write_text(index, encoding="utf-8")
    with pytest.raises(pytest.UsageError, match="lists no fixture"):
        read_fixtures(tmp_path)


@pytest.mark.slow
def test_the_option_is_known_from_the_root(tmp_path):
    """Without a path before it, the option needs its equals sign: pytest would take the folder for a path to test."""
    command = [sys.executable, "-m", "pytest", f"--openflamingo-fixtures={tmp_path}", "--markers"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
