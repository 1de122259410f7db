"""`parse_yaml`: YAML as plain data, within limits: a few lines with aliases can stand for more than a memory holds."""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_DIGITS = 2**20, 64, 100_000, 40
"""Largest text; most lists and sections within each other; most values, aliases written out; longest whole number."""
_INTEGER = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses deep nesting and numbers of thousands of digits."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, unless it lies too deep."""
        if self.depth >= MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)  # pyright: ignore[reportUnknownMemberType]
        finally:
            self.depth -= 1

    def integer(self, node: yaml.ScalarNode) -> int:
        """A whole number of a length that a machine can hold."""
        if len(node.value) > MAX_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value):,} digits")
        return self.construct_yaml_int(node)


_Loader.add_constructor(_INTEGER, _Loader.integer)


def parse_yaml(text: str) -> Any:
    """Parse one document.

    Args:
        text: the document.

    Raises:
        ValueError: not YAML, or beyond one of the limits; says which.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text):,} characters, at most {MAX_BYTES:,} are read")
    try:
        return _plain(_Loader(text))
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def _plain(loader: _Loader) -> Any:
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (count := _written_out(node, {})) > MAX_NODES:
            raise ValueError(f"{count:.3g} values once its aliases are written out, at most {MAX_NODES:,}")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _written_out(node: Any, known: dict[int, float]) -> float:
    """Count of values below a node, those of an alias each time; infinite for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        members = node.value if isinstance(node.value, list) else []
        parts = [part for member in members for part in (member if isinstance(member, tuple) else (member,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]
