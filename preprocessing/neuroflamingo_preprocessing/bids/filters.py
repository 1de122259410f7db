"""Filters on BIDS entities: labels from the command line, and fMRIPrep filter files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from neuroflamingo_preprocessing.bids.entities import folded_label, plain_label
from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError, did_you_mean
from neuroflamingo_preprocessing.files import read_json
from neuroflamingo_preprocessing.software import require_bids_extra

KINDS = ("t1w", "t2w", "flair", "bold", "sbref", "fmap", "roi", "dwi", "asl", "pet")
"""Sections of a filter file, as in fMRIPrep and related tools: suffixes in lower case."""


@dataclass(frozen=True)
class EntityFilter:
    """Condition on one entity: one of several labels, absent, any label, or a match of a regular expression.

    Attributes:
        entity: its short name.
        labels, written: the labels as they are compared, and as they were written, see `folded_label`, `plain_label`.
        absent, anything: whether files without the entity, or with any label, meet the condition.
        patterns: regular expressions for labels.
    """

    entity: str
    labels: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    absent: bool = False
    anything: bool = False
    patterns: tuple[re.Pattern[str], ...] = ()

    def matches(self, entities: Mapping[str, Any]) -> bool:
        """True if a file with these entities meets the condition."""
        value = entities.get(self.entity)
        if value is None:
            return self.absent
        text = str(value)
        return (
            self.anything
            or folded_label(self.entity, text) in self.labels
            or any(pattern.search(text) for pattern in self.patterns)
        )

    def __str__(self) -> str:
        words = [*sorted(self.written), *(f"/{pattern.pattern}/" for pattern in self.patterns)]
        words += ["none"] * self.absent + ["any"] * self.anything
        return f"{self.entity}: {', '.join(words)}"


def _of_labels(entity: str, labels: Iterable[Any], absent: bool = False, anything: bool = False) -> EntityFilter:
    written = frozenset(plain_label(entity, label) for label in labels)
    return EntityFilter(entity, frozenset(label.casefold() for label in written), written, absent, anything)


def as_written(rows: Sequence[Mapping[str, Any]], conditions: Iterable[EntityFilter]) -> list[Mapping[str, Any]]:
    """Files whose labels are as the conditions write them, where a dataset has labels that differ in case only."""
    kept = list(rows)
    for condition in conditions:
        name = condition.entity
        exact = {plain_label(name, row[name]) for row in kept if name in row} & condition.written
        doubled = {label.casefold() for label in exact}
        kept = [
            row
            for row in kept
            if name not in row or plain_label(name, row[name]) in exact or folded_label(name, row[name]) not in doubled
        ]
    return kept


def label_filters(filters: Mapping[str, Iterable[str]] | None) -> list[EntityFilter]:
    """Build filters from labels by entity, `{"sub": ("01", "sub-02")}`; an entity without labels is no condition."""
    given = {entity: list(labels) for entity, labels in (filters or {}).items()}
    return [_of_labels(entity, labels) for entity, labels in given.items() if labels]


def read_filter_file(path: str | Path, suffix: str) -> list[EntityFilter]:
    """Read the section of a filter file for a suffix: `t1w` for `T1w`, `bold` for `bold`.

    As in fMRIPrep: `{"t1w": {"session": ["01", "02"], "acquisition": null}, "bold": {"task": "rest", "run": 1}}`.
    Entities have their long or short name; a value is a label, a number, null (the entity is absent), "*" (it is
    present) or a list of these; `"regex_search": true` makes the labels regular expressions. Differs from pybids: this
    then holds for the section's own values only, not for the suffix that is added to them.

    Raises:
        NotFoundError: no such file (exit 66).
        ConfigError: not a filter file; all faults in one message (exit 78).
    """
    path = Path(path)
    sections = _read(path)
    faults: list[str] = []
    found: dict[str, list[EntityFilter]] = {}
    for kind, section in sections.items():
        if kind not in KINDS:
            faults.append(f"there is no kind '{kind}'" + _near(kind, KINDS))
        elif not isinstance(section, dict):
            faults.append(f"{kind}: not a mapping of entities")
        else:
            found[kind] = _section(kind, section, faults)
    if faults:
        raise ConfigError(
            f"{path.name} has {len(faults)} fault{'s' * (len(faults) > 1)}",
            expected='a filter file: {"bold": {"session": ["01", "02"], "acquisition": null}}',
            seen="\n    ".join(faults),
            hint='correct them; null means that a name lacks the entity, "*" that it has one',
        )
    return found.get(suffix.lower(), [])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"there is no filter file {path}", expected="a JSON file", hint="check the path")
    expected = f"a filter file: a JSON mapping with some of {', '.join(KINDS)}"
    return read_json(path, expected=expected, error=ConfigError)


def _section(kind: str, section: Mapping[str, Any], faults: list[str]) -> list[EntityFilter]:
    regex = section.get("regex_search", False)
    if not isinstance(regex, bool):
        faults.append(f"{kind}: regex_search must be true or false, not {regex!r}")
    names, wanted = entity_names(), []
    for key, value in section.items():
        if key == "regex_search":
            continue
        if key not in names:
            faults.append(f"{kind}: there is no entity '{key}'" + _near(key, names))
            continue
        values = value if isinstance(value, list) else [value]
        wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, str | int | None)]
        if wrong or not values:
            faults.append(
                f'{kind}: {key} is {json.dumps(value)[:60]}, not a label, a number, null, "*" or a list of them'
            )
            continue
        try:
            wanted.append(_wanted(names[key], values, regex is True))
        except re.error as error:
            faults.append(f"{kind}: {key} is not a regular expression ({error})")
    return wanted


def _wanted(entity: str, values: list[str | int | None], regex: bool) -> EntityFilter:
    absent, anything = None in values, "*" in values
    labels = [value for value in values if value is not None and value != "*"]
    if regex:
        patterns = tuple(re.compile(str(label)) for label in labels)
        return EntityFilter(entity, absent=absent, anything=anything, patterns=patterns)
    if entity == "ext":  # "nii.gz" and ".nii.gz"
        labels = [f".{str(label).lstrip('.')}" for label in labels]
    return _of_labels(entity, labels, absent, anything)


@lru_cache
def entity_names() -> dict[str, str]:
    """Long and short names of entities to the short one, `session` and `ses` to `ses`, from the BIDS schema."""
    require_bids_extra("a BIDS dataset")
    from bids2table import get_arrow_schema

    names = {}
    for field in get_arrow_schema():
        if long := (field.metadata or {}).get(b"entity"):
            names |= {field.name: field.name, long.decode(): field.name}
    return names


def _near(word: str, words: Collection[str]) -> str:
    return f" ({did_you_mean(word, words, 1) or 'known: ' + ', '.join(words)})"
