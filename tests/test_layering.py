"""The floors: imports go down only, light modules stay light, and modules stay small."""

from __future__ import annotations

import ast
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
    "neuroflamingo.config",
    "neuroflamingo.recipes",
    "neuroflamingo.findings",
    "neuroflamingo.findings.schema",
    "neuroflamingo_encoders",
    "neuroflamingo_encoders.registry",
    "neuroflamingo_preprocessing",
    "neuroflamingo_preprocessing.errors",
)
# What the core may not know of: the model can be used without painting, training, scoring or pages.
CORE = ("resampler", "gated_attention", "media", "language", "model", "processing", "checkpoint", "config")
ABOVE_CORE = ("painting", "training", "evaluation", "report", "pipeline", "cli", "demo")
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 50


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


@pytest.mark.parametrize("module", [f"neuroflamingo.{name}" for name in CORE])
def test_core_knows_nothing_above_it(module: str) -> None:
    parts = (name.split(".") for name in imports_of(module))
    assert not [part for part in parts if part[0] == "neuroflamingo" and set(part[1:2]) & set(ABOVE_CORE)]


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
