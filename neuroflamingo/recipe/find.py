"""Lookup of built-in recipes (`configs/*.yaml`), which are package data in the wheel and at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

from neuroflamingo_preprocessing.errors import NotFoundError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def list_configs() -> tuple[str, ...]:
    """Sorted names of all built-in recipes, without folder and extension."""
    return tuple(sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")}))


def find_config(name: str | Path) -> Path:
    """Find a recipe: the user's file if the path exists, otherwise the built-in recipe of that name.

    Args:
        name: a path to a YAML file, or a shipped recipe as `tiny-t1w`, `tiny-t1w.yaml` or `configs/tiny-t1w.yaml`;
            so the commands of the documentation work outside a checkout too.

    Raises:
        NotFoundError: neither a file nor a shipped recipe; the message lists the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path
    is_recipe_name = path.parent in (Path("."), Path("configs")) and path.suffix in ("", ".yaml", ".yml")
    stem = path.name.removesuffix(path.suffix) if path.suffix in (".yaml", ".yml") else path.name
    if is_recipe_name:
        for folder in CONFIG_FOLDERS:
            shipped = folder / f"{stem}.yaml"
            if shipped.is_file():
                return shipped
    known = list_configs()
    near = nearest(stem, known) or known
    raise NotFoundError(
        f"there is no configuration {str(name)!r}",
        expected="a YAML file, or the name of a shipped recipe",
        seen="a folder" if path.is_dir() else "no such file",
        hint=f"one of: {', '.join(near)}" if near else "give the path of your own YAML file",
    )
