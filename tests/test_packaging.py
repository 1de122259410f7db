"""What a user gets with the wheel: the recipes, the embedded models, the page's templates, and nothing of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from neuroflamingo.recipe import find
from neuroflamingo_preprocessing.errors import NotFoundError

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in")
FOLDERS = ("configs", "neuroflamingo", "encoders", "preprocessing")
MAX_WHEEL_BYTES = 30_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources (so that the checkout gets no build folder)."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    out = copy / "dist"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(copy)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_under(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_all_recipes_are_shipped(names: set[str]) -> None:
    recipes_here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert recipes_here, "the checkout has no recipe"
    assert {f"neuroflamingo/{name}" for name in recipes_here} <= names


@pytest.mark.parametrize(
    "folder", ["neuroflamingo/pretrained", "neuroflamingo/report", "encoders/neuroflamingo_encoders/templates"]
)
def test_package_data_is_shipped(names: set[str], folder: str) -> None:
    here = {name.removeprefix("encoders/") for name in files_under(ROOT / folder)}
    assert here, f"{folder} is empty"
    assert here <= names, sorted(here - names)


def test_every_module_is_shipped_and_no_test(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"neuroflamingo", "neuroflamingo_encoders", "neuroflamingo_preprocessing"}
    for folder in ("neuroflamingo", "encoders/neuroflamingo_encoders", "preprocessing/neuroflamingo_preprocessing"):
        base = (ROOT / folder).parent
        modules = {path.relative_to(base).as_posix() for path in (ROOT / folder).rglob("*.py")}
        assert modules <= names, sorted(modules - names)


@pytest.mark.parametrize("package", ["neuroflamingo", "neuroflamingo_encoders", "neuroflamingo_preprocessing"])
def test_type_checkers_are_told_that_we_have_types(names: set[str], package: str) -> None:
    assert f"{package}/py.typed" in names
    assert f"{package}/__init__.pyi" in names, "names that load on first use are read from there"


def test_wheel_is_small_and_carries_the_licence(wheel: Path, names: set[str]) -> None:
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")


def test_recipes_are_found_from_the_unpacked_wheel_beside_decoys(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    for decoy in ("encoders", "preprocessing", "configs"):
        (empty / f"{decoy}.py").write_text("raise SystemExit('a decoy was imported')")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "from neuroflamingo.recipe import find; [print(find.find_config(n)) for n in find.list_configs()]"
    environment = os.environ | {"PYTHONPATH": str(site)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = [Path(line) for line in run.stdout.split()]
    assert found and all(path.is_relative_to(site) for path in found)


def test_find_config_prefers_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = find.list_configs()[0]
    spellings = (name, f"{name}.yaml", f"configs/{name}.yaml")
    assert len({find.find_config(spelling) for spelling in spellings}) == 1
    mine = tmp_path / "configs" / f"{name}.yaml"
    mine.parent.mkdir()
    mine.write_text("{}")
    assert find.find_config(f"configs/{name}.yaml").resolve() == mine.resolve()


def test_unknown_recipe_names_the_nearest() -> None:
    name = find.list_configs()[0]
    with pytest.raises(NotFoundError, match=name):
        find.find_config(name[:-1] + "x")
    with pytest.raises(NotFoundError):
        find.find_config("elsewhere/" + name)
