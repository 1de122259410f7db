"""How a recipe is read: YAML with `--set a.b=c` on top, checked as a whole, every fault in one message.

There are two kinds, told apart by their keys: `Recipe` joins an encoder and a language model and trains what is between
them, `EmbeddedRecipe` has the stages of a model that ships with the package.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.schema import Recipe
from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError, nearest

SettingsT = TypeVar("SettingsT", bound=BaseModel)


def load_any_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe | EmbeddedRecipe:
    """Read a recipe of either kind; see `read_yaml` and `check`.

    Raises:
        NotFoundError: no such file.
        ConfigError: every fault in one message.
    """
    data = read_yaml(path, overrides)
    return check(Recipe if is_recipe(data) else EmbeddedRecipe, data, str(path))


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read the recipe of a research training; see `read_yaml` and `check`.

    Raises:
        NotFoundError: no such file.
        ConfigError: every fault in one message; for the stages of an embedded model, one sentence.
    """
    data = read_yaml(path, overrides)
    if not is_recipe(data):
        raise ConfigError(
            f"{path} has no model section",
            expected="the recipe of a research training",
            seen="the stages of an embedded model",
            hint=f"neuroflamingo inspect {data.get('name', 'tiny-t1w')}",
        )
    return check(Recipe, data, str(path))


def is_recipe(data: dict[str, Any]) -> bool:
    """Whether these are the keys of a `Recipe`, and not of the stages of an embedded model."""
    ours, theirs = (len(data.keys() & kind.model_fields.keys()) for kind in (Recipe, EmbeddedRecipe))
    return ours >= theirs


def read_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The keys and values of a recipe, overrides applied, not yet checked.

    Args:
        path: a YAML file.
        overrides: `section.key=value` items; values are YAML.

    Raises:
        NotFoundError: no such file.
        ConfigError: no YAML, no keys and values, or an override that is no assignment.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no recipe {path}", hint="neuroflamingo train configs/tiny-t1w.yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML", seen=str(error)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no settings", expected="keys and values", seen=type(data).__name__)
    for override in overrides or []:
        _apply(data, override)
    return data


def check(kind: type[SettingsT], data: dict[str, Any], where: str) -> SettingsT:
    """Checked settings.

    Raises:
        ConfigError: every fault in one message, unknown keys with the nearest spelling.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = "\n    ".join(_fault(kind, fault) for fault in error.errors())
        raise ConfigError(f"{where} has {error.error_count()} faults", seen=faults) from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override} is no assignment", expected="--set section.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise ConfigError(f"--set {key}: {parent} is no section")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: the value is not YAML", seen=value) from error


def _fault(kind: type[BaseModel], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']} (seen: {error['input']!r})"
    section = kind
    for part in error["loc"][:-1]:
        section = _section_of(section, str(part)) or section
    near = _nearest(section, str(error["loc"][-1]))
    return f"{where}: unknown key" + (f"; did you mean {near}?" if near else "")


def _nearest(section: type[BaseModel], key: str) -> str | None:
    """The nearest spelling among a section's keys, else among those of the sections inside it, as `optim.steps`."""
    inside = {name: _section_of(section, name) for name in section.model_fields}
    below = {inner: f"{name}.{inner}" for name, kind in inside.items() if kind for inner in kind.model_fields}
    here = nearest(key, section.model_fields, 1, 0.6)
    return here[0] if here else next((below[inner] for inner in nearest(key, below, 1, 0.6)), None)


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section behind a key, also where it may be left out (`Section | None`)."""
    field = section.model_fields.get(key)
    kinds = [field.annotation] if field else []
    if kinds and get_origin(kinds[0]) in (Union, types.UnionType):
        kinds = list(get_args(kinds[0]))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
