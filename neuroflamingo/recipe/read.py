"""How a recipe is read: YAML with `--set a.b=c` on top, checked as a whole, every fault in one message."""

from __future__ import annotations

import difflib
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError

SettingsT = TypeVar("SettingsT", bound=BaseModel)


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
    near = difflib.get_close_matches(str(error["loc"][-1]), section.model_fields, 1)
    return f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else "")


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section behind a key, also where it may be left out (`Section | None`)."""
    field = section.model_fields.get(key)
    kinds = [field.annotation] if field else []
    if kinds and get_origin(kinds[0]) in (Union, types.UnionType):
        kinds = list(get_args(kinds[0]))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
