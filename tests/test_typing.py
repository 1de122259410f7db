"""Strictly typed places stay so, and every ignored type error names its rule."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.test_layering import MODULES

ROOT = Path(__file__).resolve().parent.parent
REACHED = {
    "encoders/neuroflamingo_encoders/card.py",
    "encoders/neuroflamingo_encoders/registry.py",
    "neuroflamingo/findings",
    "neuroflamingo/recipe/embedded_recipe.py",
    "neuroflamingo/recipe/find.py",
    "neuroflamingo/recipe/read.py",
    "neuroflamingo/recipe/schema.py",
    "neuroflamingo/report/records.py",
    "neuroflamingo/settings.py",
    "preprocessing/neuroflamingo_preprocessing/errors.py",
    "preprocessing/neuroflamingo_preprocessing/files.py",
    "preprocessing/neuroflamingo_preprocessing/spec.py",
}
"""Places that pyright has found sound in strict mode: added to with the list in pyproject.toml, nothing taken out."""
BARE = re.compile(r"#\s*(?:type|pyright):\s*ignore(?!\[)")


def test_the_strict_list_only_grows() -> None:
    strict = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]["strict"]
    assert set(strict) >= REACHED, REACHED - set(strict)
    assert not [place for place in strict if not (ROOT / place).exists()]
    assert sorted(strict) == strict and len(set(strict)) == len(strict)


def test_ignored_type_errors_name_their_rule() -> None:
    bare = {name: BARE.findall(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert len(bare) > 10
    assert not {name: found for name, found in bare.items() if found}
    assert BARE.search("x = 1  # type: ignore") and not BARE.search("x = 1  # pyright: ignore[reportReturnType]")
