"""The floors: imports go down only, light modules stay light, and modules stay small."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "neuroflamingo_preprocessing": ROOT / "preprocessing" / "neuroflamingo_preprocessing",
    "neuroflamingo_encoders": ROOT / "encoders" / "neuroflamingo_encoders",
    "neuroflamingo": ROOT / "neuroflamingo",
}
FLOOR = {name: floor for floor, name in enumerate(PACKAGES)}
HEAVY = {"torch", "transformers", "nilearn", "monai", "SimpleITK", "peft", "matplotlib", "scipy"} | {
    "pyarrow",
    "bids2table",
}
# Modules that other tools import just to ask what there is: the command line, schemas, tables, and every package.
LIGHT = (
    "neuroflamingo",
    "neuroflamingo.cli",
    "neuroflamingo.settings",
    "neuroflamingo.recipe.find",
    "neuroflamingo.recipe.read",
    "neuroflamingo.findings",
    "neuroflamingo.findings.vocabulary",
    "neuroflamingo.findings.changes",
    "neuroflamingo.checkpoints.local_models",
    "neuroflamingo.inference.pipeline",  # reads the scan before anything heavy is there
    "neuroflamingo_encoders",
    "neuroflamingo_encoders.registry",
    "neuroflamingo_preprocessing",
    "neuroflamingo_preprocessing.errors",
    "neuroflamingo_preprocessing.check",
    "neuroflamingo_preprocessing.stores.build",
)
# Floors inside each package, from the ground up: a folder or module imports those before it, never those after it.
# `(package)` is its face, which loads on first use.
ORDER = {
    "neuroflamingo_preprocessing": "errors cache_home software geometry user_files drafts files scan spec records bids "
    "formats read inputs structural functional sequence arrays preparation_options measured_series prepared_input "
    "preparation scan_order check fit_scaling stores",
    "neuroflamingo_encoders": "card card_list state_dict_fit contract registry build layers families tokens weights "
    "plugins scaffold conformance",
    "neuroflamingo": "settings progress provenance device model checkpoints findings reader painting report recipe "
    "evaluation encoding encoder_check inference data training demo cli __main__",
}
# Where first-party imports may stand inside functions: what must start at once, and optional extras.
LAZY = ("neuroflamingo.cli", "neuroflamingo_preprocessing.stores.build")
SAME_NAME = {"__init__", "__main__", "cards", "network"}
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 50
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def module_name(path: Path) -> str:
    for name, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            parts = (name, *path.relative_to(folder).with_suffix("").parts)
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    raise ValueError(path)


MODULES = {module_name(path): path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))}


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of all that `module` imports, in functions too (`from a import b` gives `a` and `a.b`)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return set(imported(ast.parse(path.read_text()), module, path.name == "__init__.py"))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement to the last: neither the signature nor the docstring counts."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_the_tree_was_found() -> None:
    tops = {name.split(".")[0] for name in MODULES}
    assert tops == set(PACKAGES), tops
    assert len(MODULES) > 10


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    floor = FLOOR[module.split(".")[0]]
    upward = {name for name in imports_of(module) if FLOOR.get(name.split(".")[0], -1) > floor}
    assert not upward, f"{module} imports upward: {sorted(upward)}"


def room(module: str) -> str:
    """The folder or module directly below the package; empty for the package's face."""
    return [*module.split("."), ""][1]


def test_the_order_names_every_room_once() -> None:
    for package, words in ORDER.items():
        rooms = {room(name) for name in MODULES if name.split(".")[0] == package} - {""}
        assert sorted(words.split()) == sorted(rooms), package


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_inside_a_package(module: str) -> None:
    package, own = module.split(".")[0], room(module)
    if not own:
        return
    order = ORDER[package].split()
    above = set(order[order.index(own) + 1 :])
    upward = {name for name in imports_of(module) if name.split(".")[0] == package and room(name) in above}
    assert not upward, f"{module} imports upward: {sorted(upward)}"
    through_the_face = {name for name in imports_of(module) if name == package} - {module}
    assert not through_the_face, f"{module} imports from the face of its own package"


def test_no_circles() -> None:
    """Of modules, lazy and type-checking imports included."""
    graph = {module: {name for name in imports_of(module) if name in MODULES and name != module} for module in MODULES}
    for below in graph.values():  # `from a.b import c` names the package a.b too, which is not what is meant
        below.difference_update({name for name in below if any(other.startswith(f"{name}.") for other in below)})
    assert not (circles := circles_in(graph)), circles


def circles_in(graph: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import nothing of the rest are taken away, again and again."""
    left = {module: set(below) for module, below in graph.items()}
    while bottom := {module for module, below in left.items() if not below & left.keys()}:
        left = {module: below for module, below in left.items() if module not in bottom}
    return sorted(left)


def test_a_circle_is_seen() -> None:
    assert circles_in({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize("module", MODULES)
def test_first_party_imports_stand_at_the_top(module: str) -> None:
    if module.startswith(LAZY):
        return
    functions = [n for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, FUNCTIONS)]
    inside = {name for node in functions for name in imported(node, module, False) if name.split(".")[0] in PACKAGES}
    assert not inside, f"{module} imports inside a function: {sorted(inside)}"


def test_no_two_modules_of_a_package_have_one_name() -> None:
    for package in PACKAGES:
        names = [path.stem for module, path in MODULES.items() if module.split(".")[0] == package]
        twice = {name for name in names if names.count(name) > 1} - SAME_NAME
        assert not twice, f"{package}: {sorted(twice)}"


@pytest.mark.parametrize("face", [name for name, path in MODULES.items() if path.with_suffix(".pyi").is_file()])
def test_a_face_offers_what_it_names_and_no_module_hides_it(face: str) -> None:
    """`from package import name` must not give the module `package.name`, once somebody imported that."""
    module = importlib.import_module(face)
    assert module.__all__
    for name in module.__all__:
        assert f"{face}.{name}" not in MODULES, f"the module {face}.{name} hides what the face offers"
        assert getattr(module, name) is not None


def test_only_the_entry_points_import_the_command_line() -> None:
    users = {module for module in MODULES if "neuroflamingo.cli" in imports_of(module)}
    users = {module for module in users if not module.startswith("neuroflamingo.cli")}
    assert users <= {"neuroflamingo.__main__"}, users


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "", f"importing {module} loads {run.stdout.strip()}"


@pytest.mark.slow
def test_every_module_imports_alone() -> None:
    """One process, modules dropped in between, so that no import leans on one made before it."""
    code = """
import importlib, sys
broken = []
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0].startswith("neuroflamingo")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        broken.append(f"{name}: {error!r}")
print("\\n".join(broken))
"""
    names = [name for name in MODULES if not name.endswith("__main__")]
    run = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "", run.stdout


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module: str) -> None:
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {n.name: code_lines(n) for n in functions if code_lines(n) > MAX_FUNCTION_LINES}


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_why_they_exist(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text())), f"{module} has no docstring"
