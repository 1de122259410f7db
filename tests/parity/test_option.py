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


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own, without this file, started from the root of the checkout."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--ignore={Path(__file__)}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        [*command, *arguments],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


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
    result = run("tests/parity", "--openflamingo-fixtures", str(tmp_path))
    failed = re.findall(r"^FAILED tests/parity/(\S+?)\[(\S+)\]", result.stdout, flags=re.MULTILINE)
    tests = {(test, case.split("-")[0]) for test, case in failed}
    expected = {(test, f"wrong_{name}") for name, (_, test) in WRONG.items()}
    assert result.returncode == 1, result.stdout
    assert tests == expected | {("test_fixture_folder.py::test_kind_is_known", "surprise")}, result.stdout


@pytest.mark.slow
def test_a_folder_without_fixtures_fails(tmp_path):
    result = run("tests/parity", "--openflamingo-fixtures", str(tmp_path))
    assert result.returncode not in (0, 5), result.stdout
    assert "no golden numbers" in result.stdout


@pytest.mark.parametrize("index", ["{}", '{"fixtures": []}'])
def test_an_index_without_fixtures_is_an_error(tmp_path, read_fixtures, index):
    (tmp_path / "index.json").write_text(index, encoding="utf-8")
    with pytest.raises(pytest.UsageError, match="lists no fixture"):
        read_fixtures(tmp_path)


@pytest.mark.slow
def test_the_option_is_known_from_the_root(tmp_path):
    """Without a path before it, the option needs its equals sign: pytest would take the folder for a path to test."""
    result = run(f"--openflamingo-fixtures={tmp_path}", "--markers")
    assert result.returncode == 0, result.stderr
