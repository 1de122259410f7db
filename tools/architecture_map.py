"""`python tools/architecture_map.py`: the map of folders in docs/architecture.md, from the tree and the layering test.

Each folder or module comes with the first line of its docstring, in the order in which imports may go.
"""

from __future__ import annotations

import ast
from pathlib import Path

from marked_pages import fill, filled

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
LAYERING = ROOT / "tests" / "test_layering.py"
PACKAGES = {
    "neuroflamingo_preprocessing": ROOT / "preprocessing" / "neuroflamingo_preprocessing",
    "neuroflamingo_encoders": ROOT / "encoders" / "neuroflamingo_encoders",
    "neuroflamingo": ROOT / "neuroflamingo",
}


def import_order() -> dict[str, list[str]]:
    """The rooms of each package from the ground up, as `ORDER` in the layering test declares them."""
    for node in ast.parse(LAYERING.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["ORDER"]:
            return {package: words.split() for package, words in ast.literal_eval(node.value).items()}
    raise ValueError(f"{LAYERING} declares no ORDER")


def first_line(module: Path) -> str:
    """The first line of a module's docstring, fit for a table's cell.

    Raises:
        ValueError: the module has none.
    """
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{module} has no docstring")
    return text.splitlines()[0].replace("|", r"\|")


def tables() -> str:
    """One table for each package: number in the order of imports, place, and what it is for."""
    parts = []
    for package, rooms in import_order().items():
        folder = PACKAGES[package]
        where = folder.relative_to(ROOT).as_posix()
        lines = [f"### {where}", "", first_line(folder / "__init__.py"), "", "| # | place | what it is |"]
        lines.append("| --- | --- | --- |")
        for number, room in enumerate(rooms, start=1):
            lines += _rows(number, where, folder / room)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _rows(number: int, where: str, room: Path) -> list[str]:
    """The row of a room, and those of the folders in it."""
    module = room.with_suffix(".py")
    if module.is_file():
        return [f"| {number} | `{where}/{module.name}` | {first_line(module)} |"]
    rows = [f"| {number} | `{where}/{room.name}/` | {first_line(room / '__init__.py')} |"]
    for inner in sorted(room.rglob("__init__.py")):
        if inner.parent != room:
            rows.append(f"| | `{where}/{inner.parent.relative_to(room.parent).as_posix()}/` | {first_line(inner)} |")
    return rows


def page(text: str) -> str:
    """The page with the tables between its marks."""
    return filled(text, "map", tables())


if __name__ == "__main__":
    fill(PAGE, "map", tables())
