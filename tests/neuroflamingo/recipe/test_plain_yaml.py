"""Recipes that were damaged or made to harm: one short message, exit 78, in no time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from neuroflamingo.cli import main
from neuroflamingo.recipe.find import find_config as find
from neuroflamingo.recipe.plain_yaml import MAX_NODES, parse_yaml
from neuroflamingo.recipe.read import load_any_recipe
from neuroflamingo.settings import MAX_FAULTS, MAX_QUOTED
from neuroflamingo_preprocessing.errors import ConfigError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
BAD = {
    "aliases": LAUGHS,
    "aliases of seven levels": "\n".join(LAUGHS.splitlines()[:8]),
    "aliases that hold themselves": "name: &a [*a]",
    "aliases that hold each other": "name: &a {b: &c [*a, *c]}",
    "merges": MERGES,
    "deep lists": "name: " + "[" * 3000 + "]" * 3000,
    "deeper lists": "name: " + "[" * 200_000,
    "deep sections": "\n".join(" " * n + "a:" for n in range(500)),
    "a number of 10,000 digits": "name: " + "9" * 10_000,
    "a number of 10,000 hexadecimal digits": "seed: 0x" + "f" * 10_000,
    "a number in sixties": "seed: " + "1:" * 5_000 + "1",
    "a date that is none": "name: 2026-13-45",
    "a key that is a list": "? [a, b]\n: c",
    "a key that is a section": "{{}: c}",
    "a tag of Python": "name: !!python/object/apply:os.system ['true']",
    "two documents": "a: 1\n---\nb: 2",
    "control characters": "name: \x07\x1b",
    "not UTF-8": b"name: \xff\xfe\xfa",
    "no settings": "just words",
    "a million keys": "".join(f"k{n}: 1\n" for n in range(150_000)),
    "many unknown keys": "".join(f"k{n}: 1\n" for n in range(2_000)),
    "a long unknown key": "k" * 900_000 + ": 1",
    "a long value": "name: [" + "x" * 900_000 + "]",
    "a long name": "name: " + "x" * 900_000,
    "2 MB": "# " + "x" * 2**21,
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_a_few_lines(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = BAD[name]
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    begin = time.process_time()
    assert main(["train", str(file), "--dry-run"]) == 78
    said = capsys.readouterr().err
    assert len(said) < (MAX_FAULTS + 5) * (2 * MAX_QUOTED + 100) and "recipe.yaml" in said
    assert "internal error" not in said and "\x1b" not in said and "\x07" not in said
    assert time.process_time() - begin < 60


def recipe(**changes: object) -> dict:
    plain = yaml.safe_load(find("brainiac-qwen").read_text())
    return plain | changes


@pytest.mark.parametrize(
    "name", ["../../evil", "/abs", "a/b", "a\\b", "..", ".", ".hidden", "a\0b", "a\x1b[31m", "a\nb", "", "x" * 300]
)
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    for base in ("brainiac-qwen", "tiny-t1w"):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(find(base).read_text()) | {"name": name}))
        with pytest.raises(ConfigError, match="plain name") as caught:
            load_any_recipe(file)
        assert caught.value.exit_code == 78 and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["run-2", "my run", "lésions 頭", "a.b_c", "2026"])
def test_names_that_are_plain(name: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(name=name)))
    assert load_any_recipe(file).name == name


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(value: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe()))
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        load_any_recipe(file, [f"optim.lr={value}"])


def test_aliases_that_are_used_as_they_are_meant() -> None:
    text = "base: &base {a: 1, b: [1, 2]}\none: *base\ntwo: {<<: *base, a: 3}\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None and parse_yaml("12") == 12 and parse_yaml("-1_000") == yaml.safe_load("-1_000")
    with pytest.raises(ValueError, match="aliases"):
        parse_yaml("[" + "1, " * MAX_NODES + "]")
