"""What the program and its pages tell people to `--set` is taken when they do, each in its printed form."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from neuroflamingo.cli import main
from neuroflamingo.recipe.read import load_any_recipe, load_recipe
from neuroflamingo_preprocessing.errors import ConfigError
from tests.neuroflamingo.recipe.shipped_recipes import RECIPES

ROOT = Path(__file__).parents[3]
SAID = re.compile(r"--set ('[^']*'|[\w.]+=(?:\[[^\]]*\]|[^\s\"'`,;)|\]}]+))")
ABOUT_THE_OPTION = ("section.key=", "a.b=", "STAGE.start=", "fusion.KEY=", "optim.lr=...", "name=...")


def printed() -> list[str]:
    """Each `--set key=value` in sources, recipes and pages; names in capitals stand for what a user has."""
    files = [
        path for folder in ("neuroflamingo", "encoders", "preprocessing") for path in (ROOT / folder).rglob("*.py")
    ]
    files += [*(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml"), ROOT / "README.md"]
    found = {match for path in files for match in SAID.findall(path.read_text(encoding="utf-8"))}
    return sorted(one for one in found if not one.startswith(ABOUT_THE_OPTION) and "{" not in one)


def taken(said: str) -> bool:
    override = shlex.split(said)[0]
    for path in RECIPES.values():
        try:
            load_recipe(path, [override])
        except ConfigError:
            continue
        return True
    try:
        load_any_recipe(
            "configs/tiny-t1w.yaml" if Path("configs").is_dir() else ROOT / "configs/tiny-t1w.yaml", [override]
        )
    except ConfigError:
        return False
    return True


def test_hints_were_found() -> None:
    assert "run.gradient_checkpointing=on" in printed() and len(printed()) > 10


@pytest.mark.parametrize("said", printed())
def test_a_printed_setting_is_taken(said: str) -> None:
    assert taken(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_what_a_dry_run_advises_is_taken(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("neuroflamingo.training.memory_report._room", lambda: ("a device without room", 0))
    assert main(["train", name, "--dry-run"]) in (66, 69)  # its weights and data are not here
    advised = re.findall(r"^  (\S+=.*?)\s{2,}[\d.]+ GB$", capsys.readouterr().out, re.MULTILINE)
    assert advised
    for words in advised:
        load_recipe(RECIPES[name], [word for word in words.split() if "=" in word])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.gradient_checkpointing=on", "on"),
        ("run.gradient_checkpointing=off", "off"),
        ("run.gradient_checkpointing='on'", "on"),
        ("run.gradient_checkpointing=offload", "offload"),
        ("run.deterministic=on", True),
        ("run.deterministic=false", False),
        ("name=2024", "2024"),
        ("name=2024-01-02", "2024-01-02"),
        ("name=yes", "yes"),
        ("model.language_model.revision=0123456", "0123456"),
        ("model.language_model.revision=12e4567", "12e4567"),
        ("model.start=null", None),
        ("optim.steps=40", 40),
        ("optim.lr=1e-5", 1e-5),
        ("model.encoder.options={slices: 4}", {"slices": 4}),
        ("model.encoder.options.slices=4", 4),
    ],
)
def test_values_are_read_by_the_type_of_their_field(override: str, value: object) -> None:
    recipe = load_recipe(RECIPES["siglip-qwen2-lora"], [override]).model_dump(mode="json")
    found: object = recipe
    for key in override.partition("=")[0].split("."):
        found = found[key]  # type: ignore[index]
    assert found == value and type(found) is type(value)


def test_a_recipe_may_say_on_without_quotes(tmp_path: Path) -> None:
    text = (
        RECIPES["siglip-qwen2-lora"].read_text().replace('gradient_checkpointing: "on"', "gradient_checkpointing: on")
    )
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(tmp_path / "r.yaml").run.gradient_checkpointing == "on"


def test_what_is_no_choice_is_refused_still() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        load_recipe(RECIPES["siglip-qwen2-lora"], ["run.gradient_checkpointing=sometimes"])
