"""Fuzzing of the parsers that are our own, guided by what they cover; needs `pip install atheris`.

    python -m tests.deep.fuzz nifti|zarr|findings|recipe [-max_total_time=60 ...]

The options are libFuzzer's. A typed error is an answer; anything else ends the run, and the input is written down.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from neuroflamingo_preprocessing.errors import NeuroFlamingoError

atheris: Any = import_module("atheris")  # no part of the tests' own packages
with atheris.instrument_imports(include=["neuroflamingo", "neuroflamingo_preprocessing"]):
    from neuroflamingo.findings.parsing import parse_report
    from neuroflamingo.recipe.plain_yaml import parse_yaml
    from neuroflamingo_preprocessing.read import read_scan
from tests.deep import mutants  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(dir=mutants.memory_folder()))


def nifti(data: bytes) -> None:
    """A header of any bytes, and a few voxels."""
    (FOLDER / "m.nii").write_bytes(data)
    read_scan(FOLDER / "m.nii")


def zarr(data: bytes) -> None:
    """A `zarr.json` of any bytes."""
    (FOLDER / "m.zarr").mkdir(exist_ok=True)
    (FOLDER / "m.zarr" / "zarr.json").write_bytes(data)
    read_scan(FOLDER / "m.zarr")


def findings(data: bytes) -> None:
    """The text of a report."""
    parse_report(data.decode("utf-8", errors="replace"))


def recipe(data: bytes) -> None:
    """The text of a recipe."""
    try:
        parse_yaml(data.decode("utf-8", errors="replace"))
    except ValueError:
        return


TARGETS: dict[str, Callable[[bytes], None]] = {"nifti": nifti, "zarr": zarr, "findings": findings, "recipe": recipe}


def main() -> None:
    """Run libFuzzer on a target."""
    target = TARGETS[sys.argv.pop(1)]

    def once(data: bytes) -> None:
        try:
            target(data)
        except NeuroFlamingoError:
            return

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
