"""The pages for those who change the code: the map is that of the tree, and every file and name in them exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import architecture_map
from tests.test_layering import MODULES, ORDER

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE, CONTRIBUTING = ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"
PAGES = (ARCHITECTURE, CONTRIBUTING)
EVERY_PAGE = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / name / "README.md" for name in ("encoders", "preprocessing")),
    *sorted((ROOT / "docs").glob("*.md")),
)
OURS = ("neuroflamingo/", "encoders/", "preprocessing/", "configs/", "tests/", "docs/", "tools/", ".ci/")
ENTRY_POINTS = "neuroflamingo.encoders"  # the name of a group, not of a module
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
DOTTED = re.compile(r"neuroflamingo\w*(?:\.\w+)+")
NAME = re.compile(r"_?[A-Za-z][A-Za-z_0-9]*")
ENDINGS = (".py", ".md", ".yaml", ".yml", ".toml", ".txt")


def is_path(span: str) -> bool:
    return bool(PATH.fullmatch(span)) and ("/" in span or span.endswith(ENDINGS))


def spans(text: str) -> list[str]:
    return SPAN.findall(FENCE.sub("", text))


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        if ".".join(parts[:cut]) in MODULES:
            found = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


def missing_names(page: Path) -> list[str]:
    """Names in a table's row that stand in none of the files of that row."""
    missing = []
    for line in page.read_text(encoding="utf-8").splitlines():
        found = spans(line) if line.startswith("| ") else []
        files = [ROOT / span for span in found if is_path(span) and (ROOT / span).is_file()]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        missing += [f"{span}: {line[:60]}" for span in found if files and NAME.fullmatch(span) and span not in text]
    return missing


def test_the_map_is_that_of_the_tree() -> None:
    """Mend with `python tools/architecture_map.py`."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert text == architecture_map.page(text)
    assert architecture_map.import_order() == {package: words.split() for package, words in ORDER.items()}


def test_the_map_has_every_folder_of_modules() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    folders = {path.parent for path in MODULES.values() if path.name == "__init__.py"}
    folders -= set(architecture_map.PACKAGES.values())
    assert len(folders) > 20
    assert not [folder for folder in folders if f"`{folder.relative_to(ROOT).as_posix()}/`" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    paths = [span for span in spans(page.read_text(encoding="utf-8")) if is_path(span)]
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_our_paths_and_dotted_names_exist_on_every_page(page: Path) -> None:
    found = spans(page.read_text(encoding="utf-8"))
    assert not [s for s in found if is_path(s) and s.startswith(OURS) and not (ROOT / s).exists()]
    assert not [s for s in found if DOTTED.fullmatch(s) and s != ENTRY_POINTS and not resolves(s)]


def test_the_roads_name_their_modules() -> None:
    names = [span for span in spans(ARCHITECTURE.read_text(encoding="utf-8")) if DOTTED.fullmatch(span)]
    assert len(names) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_a_row_stand_in_its_files(page: Path) -> None:
    assert not missing_names(page)


def test_moved_import_paths_lead_somewhere() -> None:
    """Of the table in CHANGELOG.md: what is new imports, and what is old does not."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    table = text.split("<!-- moved:begin -->")[1].split("<!-- moved:end -->")[0]
    rows = [
        [spans(cell) for cell in line.strip().strip("|").split(" | ")] for line in table.splitlines() if "`" in line
    ]
    assert len(rows) >= 20
    for (old,), new in rows:
        assert not resolves(old), f"{old} has not moved"
        assert new and all((ROOT / name).is_file() if is_path(name) else resolves(name) for name in new), new


def test_wrong_names_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("| `neuroflamingo/findings/vocabulary.py` | `FindingClass`, `NoSuchClass` |\n")
    assert [line.partition(":")[0] for line in missing_names(page)] == ["NoSuchClass"]
    assert resolves("neuroflamingo.report.model.Report.to_html") and not resolves("neuroflamingo.report.model.Nothing")
    assert not resolves("neuroflamingo.no_such_module")
    assert is_path("docs/a.md") and is_path(".ci/run") and not is_path("cli/<name>.py") and not is_path("x y z")
