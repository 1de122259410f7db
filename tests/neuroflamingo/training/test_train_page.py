"""docs/train.md: its tables of keys are those of the schema (docs/tiny-t1w.md's too), its recipe and manifest work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from marked_pages import filled
from neuroflamingo.data import read_manifest
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.schema import KINDS, Part, Recipe
from neuroflamingo.settings import check_settings
from neuroflamingo.training import build
from recipe_keys import DOCS, PAGES, _section, tables

ROOT = Path(__file__).parents[3]
TEXT = (DOCS / "train.md").read_text(encoding="utf-8")


def block(language: str, mark: str) -> str:
    found = [body for body in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if mark in body]
    assert len(found) == 1
    return found[0]


def keys(section=Recipe, prefix: str = "") -> set[str]:
    inside = {name: _section(field) for name, field in section.model_fields.items()}
    nested = [keys(kind, f"{prefix}{name}.") for name, kind in inside.items() if kind is not None]
    return {f"{prefix}{name}" for name, kind in inside.items() if kind is None}.union(*nested)


@pytest.mark.parametrize(
    ("kind", "optional", "least"),
    [(Recipe, {"model.encoder", "model.prompts", "trained.lora"}, 80), (EmbeddedRecipe, set(), 60)],
)
def test_the_tables_are_those_of_the_schema(kind, optional, least):
    ((path, _),) = [item for item in PAGES.items() if item[1] is kind]
    text = path.read_text(encoding="utf-8")
    assert filled(text, "keys", tables(kind)) == text, "run python tools/recipe_keys.py"
    told = set(re.findall(r"^\| `([\w.]+)` \|", tables(kind), re.MULTILINE))
    assert told == keys(kind) | optional and len(told) > least


def test_every_key_has_its_sentence_and_its_values():
    for kind in PAGES.values():
        rows = [line.split(" | ") for line in tables(kind).splitlines() if line.startswith("| `")]
        assert all(len(row) >= 4 and row[3].rstrip(" |") for row in rows)
    rows = [line.split(" | ") for line in tables(Recipe).splitlines() if line.startswith("| `")]
    (parts,) = [row for row in rows if row[0] == "| `trained.parts`"]
    assert all(f"`{part}`" in parts[1] for part in Part.__args__)


def test_the_recipe_of_ones_own_builds(monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = check_settings(Recipe, yaml.safe_load(block("yaml", "name: mine")), "docs/train.md")
    model, _ = build(recipe)
    assert model.config.new_token_ids == [] and model.encoder is not None
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_140_680


def test_the_manifests_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    painted = tmp_path / "painted"
    painted.mkdir()
    for number in range(5):
        (painted / f"case-{number}.json").write_text(json.dumps({"findings": []}))
        (painted / f"case-{number}.txt").write_text("No finding.\n")
        (painted / f"case-{number}_T1w.nii.gz").write_bytes(b"a scan")
    exec(block("python", "write_manifest"), {})
    train, held_out = read_manifest(["train.jsonl"]), read_manifest(["validation.jsonl"])
    assert [len(train), len(held_out)] == [2, 3]
    assert {sample.kind for sample in train} <= set(KINDS)


@pytest.mark.parametrize("part", ["--signal=USR1@90", "--requeue", "-eq 75"])
def test_the_batch_script_saves_and_comes_again(part):
    assert part in block("slurm", "#SBATCH")
