"""environment.yml, for conda users, asks for what pyproject.toml and constraints.txt say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def test_conda_installs_this_package_with_the_pinned_versions() -> None:
    assert CONDA["name"] == PROJECT["name"]
    *plain, with_pip = CONDA["dependencies"]
    assert "pip" in plain and with_pip == {"pip": ["-c constraints.txt", "-e .[train]"]}
    (python,) = [line for line in plain if line.startswith("python=")]
    assert python.partition("=")[2] in SpecifierSet(PROJECT["requires-python"])
    assert "train" in EXTRAS


def test_the_extra_for_training_has_its_tracker_and_tests_use_it() -> None:
    assert EXTRAS["train"] == ["neuroflamingo[bids,track]"]
    (track,) = map(Requirement, EXTRAS["track"])
    assert track.name == "tensorboard" and PINNED["tensorboard"] in track.specifier
    (own,) = [Requirement(line) for line in EXTRAS["test"] if line.startswith(PROJECT["name"])]
    assert "train" in own.extras
