"""The README and the docs say only what is so: their commands, options, make targets, files and names exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "encoders" / "README.md",
    ROOT / "preprocessing" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
SHELL = {"bash", "sh", "console", "shell"}
# Run for real: those that ask nothing but what is installed.
QUICK = ("neuroflamingo --version", "neuroflamingo --help", "neuroflamingo encoders list", "neuroflamingo doctor")


def blocks(page: Path, languages: set[str]) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell line, with continued lines joined and comments cut."""
    found = []
    for page in PAGES:
        for block in blocks(page, SHELL):
            for line in block.replace("\\\n", " ").splitlines():
                text = line.removeprefix("$ ").split(" #")[0].strip()
                if text and not text.startswith("#"):
                    found.append((page.relative_to(ROOT).as_posix(), text))
    return found


def words_of(command: str, program: str) -> list[str] | None:
    """The arguments of `program` in a command line, without environment settings before it."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return words[1:] if words and words[0] == program else None


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)


def test_the_readme_has_its_parts() -> None:
    text = (ROOT / "README.md").read_text()
    assert "docs/images/report.png" in text
    assert "<!-- figures:begin -->" in text and "<!-- figures:end -->" in text
    assert "not for diagnosis" in text.lower()
    assert any(command.startswith("make demo") for _, command in commands())
    assert any(command.startswith("neuroflamingo report") for _, command in commands())


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [
        (page, word)
        for page, line in commands()
        for word in words_of(line, "make") or []
        if word.replace("-", "").isalpha()
    ]
    assert named
    assert not [(page, word) for page, word in named if word not in targets]


@pytest.mark.parametrize("line", sorted({line for _, line in commands() if line.startswith("neuroflamingo ")}))
def test_commands_and_their_options_exist(line: str) -> None:
    words = words_of(line, "neuroflamingo") or []
    verbs: list[str] = []
    for word in words:
        if not re.fullmatch(r"[a-z-]+", word) or word.startswith("-"):
            break
        verbs.append(word)
    help_text = ""
    for depth in range(len(verbs), -1, -1):
        answer = run("neuroflamingo", *verbs[:depth], "--help")
        if answer.returncode == 0:
            help_text = answer.stdout
            break
    assert help_text, line
    assert not verbs or depth > 0, f"no such command: {line}"
    options = {word.split("=")[0] for word in words if word.startswith("-") and word != "-" and not word[1:2].isdigit()}
    plain = re.sub(r"\x1b\[[0-9;]*m", "", help_text)
    missing = [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", plain)]
    assert not missing, f"{line}: {missing} not in its --help"


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted({line for _, line in commands() if line.startswith(QUICK)}))
def test_quick_commands_run(line: str) -> None:
    answer = run("neuroflamingo", *(words_of(line, "neuroflamingo") or []))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_python_modules_and_files_of_commands_exist() -> None:
    missing = []
    for page, line in commands():
        words = words_of(line, "python") or []
        if words[:1] == ["-m"] and importlib.util.find_spec(words[1]) is None:
            missing.append((page, line))
        missing += [(page, line) for word in words if word.startswith("tests/") and not (ROOT / word).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_examples_import_what_exists(page: Path) -> None:
    """Examples parse, and every name that they import from us is there."""
    missing = []
    for block in blocks(page, {"python"}):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuroflamingo"):
                module = importlib.import_module(node.module or "")
                missing += [f"{node.module}.{n.name}" for n in node.names if not hasattr(module, n.name)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert page.exists()
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_source_files_exist(page: Path) -> None:
    """Paths in code marks, such as `neuroflamingo/model.py` or `configs/tiny-t1w.yaml`, are files of the checkout."""
    tops = "neuroflamingo|encoders|preprocessing|configs|tests|docs"
    named = re.findall(rf"`((?:{tops})/[\w./-]+\.(?:py|yaml|md|json|png|html))`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.slow
def test_the_encoder_example_runs() -> None:
    """The page's blocks, one after the other, as a reader would paste them."""
    page = ROOT / "docs" / "write_an_encoder.md"
    code = "\n".join(blocks(page, {"python"}))
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "tiny-t1w-cnn" in answer.stdout
