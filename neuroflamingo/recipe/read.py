"""Reading of recipes: YAML with `--set a.b=c` applied, checked as a whole.

There are two kinds, distinguished by their keys: `Recipe` trains the connection of any encoder with any language
model, `EmbeddedRecipe` has the stages of a model that ships with the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.plain_yaml import MAX_BYTES, parse_yaml
from neuroflamingo.recipe.schema import Recipe
from neuroflamingo.settings import check_settings, read_as_field
from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError
from neuroflamingo_preprocessing.user_files import decode_text


def load_any_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe | EmbeddedRecipe:
    """Read a recipe of either kind; see `read_yaml` and `check_settings`.

    Raises:
        NotFoundError: no such file.
        ConfigError: all faults in one message.
    """
    data = read_yaml(path, overrides)
    return check_settings(Recipe if is_recipe(data) else EmbeddedRecipe, data, str(path))


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a `Recipe`; see `read_yaml` and `check_settings`.

    Raises:
        NotFoundError: no such file.
        ConfigError: all faults in one message; for an `EmbeddedRecipe`, one sentence.
    """
    data = read_yaml(path, overrides)
    if not is_recipe(data):
        raise ConfigError(
            f"{path} has no model section",
            expected="a recipe with a model section",
            seen="the stages of an embedded model",
            hint=f"neuroflamingo inspect {data.get('name', 'tiny-t1w')}",
        )
    return check_settings(Recipe, data, str(path))


def is_recipe(data: dict[str, Any]) -> bool:
    """Tell whether these are the keys of a `Recipe`, not of an `EmbeddedRecipe`."""
    ours, theirs = (len(data.keys() & kind.model_fields.keys()) for kind in (Recipe, EmbeddedRecipe))
    return ours >= theirs


def read_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read keys and values of a recipe and apply overrides, without checking them.

    Args:
        path: a YAML file.
        overrides: `section.key=value` items; values are YAML, read by the type of the field: see `read_as_field`.

    Raises:
        NotFoundError: no such file.
        ConfigError: not YAML, no keys and values, or an override that is not an assignment.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no recipe {path}", hint="neuroflamingo train configs/tiny-t1w.yaml")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are read")
        data: Any = parse_yaml(decode_text(path.read_bytes()))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read", seen=error.strerror, hint="check its permissions", exit_code=74
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML", expected="keys and values", seen=str(error)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no settings", expected="keys and values", seen=type(data).__name__)
    kind = Recipe if is_recipe(cast("dict[str, Any]", data)) else EmbeddedRecipe
    for override in overrides or []:
        _apply(cast("dict[str, Any]", data), override, kind)
    return cast("dict[str, Any]", data)


def _apply(data: dict[str, Any], override: str, kind: type[Recipe] | type[EmbeddedRecipe]) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override} is not an assignment", expected="--set section.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        inner: Any = data[parent]
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {parent} is not a section")
        data = cast("dict[str, Any]", inner)
    try:
        data[last] = read_as_field(kind, key, value, parse_yaml(value))
    except ValueError as error:
        raise ConfigError(f"--set {key}: the value is not YAML", seen=value[:200]) from error
