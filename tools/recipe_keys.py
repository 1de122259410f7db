"""`python tools/recipe_keys.py`: generate the tables of recipe keys in docs/ from the schemas.

docs/train.md has the keys of a `Recipe`, docs/tiny-t1w.md those of the stages of an embedded model. The description of
a key is the string below it in the schema.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from marked_pages import fill
from neuroflamingo.model.architecture import CrossAttentionSettings
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.schema import Recipe
from neuroflamingo.settings import Section

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES: dict[Path, type[Section]] = {DOCS / "train.md": Recipe, DOCS / "tiny-t1w.md": EmbeddedRecipe}
ELSEWHERE = {
    "every": "Interval between gated blocks, in layers.",
    "dim_head": "Width of an attention head.",
    "heads": "Number of attention heads.",
    "ff_mult": "Inner width of the feed-forward part, in multiples of the model width.",
    "only_attend_immediate_media": "Text attends to one scan only, else to all scans so far.",
    "gate": "Initial value of the gates, before tanh.",
    "media_rule": "`previous`: the latest scan; `next`: the first scan after the text, as in OpenFlamingo v1.",
}
"""Descriptions for `model.cross_attention`, which the schema documents in one docstring."""


def tables(recipe: type[BaseModel]) -> str:
    """Markdown tables of keys, one per section."""
    plain = {key: field for key, field in recipe.model_fields.items() if _section(field) is None}
    parts = ["", *_table("", recipe, plain)]
    for key, field in recipe.model_fields.items():
        section = _section(field)
        if section is not None:
            parts += ["", f"### {key}", "", *_table(f"{key}.", section, section.model_fields)]
    return "\n".join(parts) + "\n"


def _table(prefix: str, section: type[BaseModel], fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield from ("| key | values | default | description |", "| --- | --- | --- | --- |")
    yield from _rows(prefix, section, fields)


def _rows(prefix: str, section: type[BaseModel], fields: dict[str, FieldInfo]) -> Iterator[str]:
    descriptions = _descriptions(section)
    for key, field in fields.items():
        inner = _section(field)
        if inner is None or (not field.is_required() and field.default is None):
            default = "required" if field.is_required() else f"`{_plain(field.default)}`"
            cells = (f"`{prefix}{key}`", _values(field.annotation), default, descriptions[key])
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if inner is not None:
            yield from _rows(f"{prefix}{key}.", inner, inner.model_fields)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    found = [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return found[0] if found else None


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _values(annotation: Any) -> str:
    """Allowed values, in words."""
    kinds = [kind for kind in _kinds(annotation) if kind is not types.NoneType]
    return ", ".join(_value(kind) for kind in kinds)


def _value(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {_value(inner[0])}" if inner[-1] is ... else f"{len(inner)} numbers"
    if hasattr(kind, "__metadata__"):
        return _value(inner[0])
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return names.get(kind, "mapping")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else "{}" if value == {} else str(value)


def _descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Strings below the fields of a section and of its base classes."""
    if section is CrossAttentionSettings:
        return ELSEWHERE
    descriptions = {}
    for kind in reversed(section.__mro__[: section.__mro__.index(Section)]):
        (tree,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                descriptions[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return descriptions


def main() -> None:
    """Write the tables of keys into their pages."""
    for path, recipe in PAGES.items():
        fill(path, "keys", tables(recipe))


if __name__ == "__main__":
    main()
