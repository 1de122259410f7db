"""Golden numbers: one test per fixture of the folder given by --openflamingo-fixtures, sorted by kind.

A test module asks for the fixture `perceiver`, `gated_block`, `flamingo` or `training_labels` and is run once for
each entry of that kind in the folder's index. An index without entries is an error; an entry of another kind fails in
test_fixture_folder.py.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

COPY = Path(__file__).parent / "openflamingo"
KINDS = {
    "perceiver": "perceiver",
    "gated_cross_attention_block": "gated_block",
    "flamingo": "flamingo",
    "labels": "training_labels",
}


@dataclass(frozen=True, eq=False)
class Golden:
    """One entry of the index with its tensors."""

    folder: Path
    name: str
    kind: str
    spec: dict[str, Any] = field(repr=False)

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        found = load_file(self.folder / self.spec["file"])
        declared = {key: (dtype, tuple(shape)) for key, (dtype, shape) in self.spec["tensors"].items()}
        seen = {key: (str(value.dtype).removeprefix("torch."), tuple(value.shape)) for key, value in found.items()}
        assert seen == declared, f"{self.name}: the file and the index disagree"
        return found

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name].clone()

    def get(self, name: str) -> torch.Tensor | None:
        return self[name] if name in self.tensors else None

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose name begins with `prefix`, by the rest of the name."""
        return {key.removeprefix(prefix): self[key] for key in self.tensors if key.startswith(prefix)}


@functools.cache
def read_folder(folder: Path) -> tuple[Golden, ...]:
    """All entries of a folder's index; raises where there is none."""
    index = folder / "index.json"
    if not index.is_file():
        raise pytest.UsageError(f"no golden numbers: {index} does not exist")
    entries = json.loads(index.read_text(encoding="utf-8")).get("fixtures", [])
    if not entries:
        raise pytest.UsageError(f"no golden numbers: {index} lists no fixture")
    return tuple(Golden(folder, entry["name"], entry["kind"], entry) for entry in entries)


def chosen_folder(config: pytest.Config) -> Path:
    """The folder given on the command line (relative to where pytest was started), else the copy beside this file."""
    given = config.getoption("--openflamingo-fixtures")
    return (config.invocation_params.dir / given).resolve() if given else COPY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    entries = read_folder(chosen_folder(metafunc.config))
    wanted = [(argument, kind) for kind, argument in KINDS.items() if argument in metafunc.fixturenames]
    for argument, kind in wanted:
        chosen = [entry for entry in entries if entry.kind == kind]
        metafunc.parametrize(argument, chosen, ids=[entry.name for entry in chosen])
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", entries, ids=[entry.name for entry in entries])


@pytest.fixture
def known_kinds() -> frozenset[str]:
    return frozenset(KINDS)


@pytest.fixture
def read_fixtures():
    return read_folder
