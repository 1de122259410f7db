"""Phrases of the tables among the words of a report; of overlapping phrases the longest, then the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from neuroflamingo.reader.brain_findings import BRAIN_FINDINGS, STRUCTURES
from neuroflamingo.reader.cues import CUES, Cue
from neuroflamingo.reader.places import COMBINED, PLACES, SIDES
from neuroflamingo.reader.word_forms import Token, expand, tokens_of


class Tag(NamedTuple):
    """A phrase of the tables: tokens [first, last), and what it is, by cue."""

    first: int
    last: int
    roles: Mapping[Cue, object]


class Named(NamedTuple):
    """Value of a FINDING cue: the row's name, and the places and side that the phrase names ("hippocampal atrophy")."""

    name: str
    places: tuple[str, ...]
    side: str | None = None


_Node = dict  # word -> node; END -> roles
_END = ""


def _add(tree: _Node, phrases: Iterable[tuple[str, ...]], cue: Cue, value: object) -> None:
    for phrase in phrases:
        node = tree
        for word in phrase:
            node = node.setdefault(word, {})
        node.setdefault(_END, {}).setdefault(cue, value)


def _longest(tree: _Node, words: list[str], at: int) -> tuple[int, Mapping[Cue, object]]:
    """End and roles of the longest phrase that starts at a word; the word itself if none does."""
    node, best = tree, (at, {})
    for position in range(at, len(words)):
        node = node.get(words[position])
        if node is None:
            break
        if _END in node:
            best = position + 1, node[_END]
    return best


@cache
def _tree() -> _Node:
    """All tables as one tree of words."""
    places: _Node = {}
    for place, words in PLACES.items():
        _add(places, expand(words), Cue.PLACE, place)
    for word, region in COMBINED.items():
        _add(places, [(word,)], Cue.PLACE, region)
    tree: _Node = {}
    for row in BRAIN_FINDINGS:
        for phrase in expand(row.words):
            inner = [
                roles[Cue.PLACE]
                for end, roles in map(lambda at: _longest(places, list(phrase), at), range(len(phrase)))
                if roles
            ]
            side = next((word for word in phrase if word in ("left", "right", "bilateral")), None)
            _add(tree, [phrase], Cue.FINDING, Named(row.name, tuple(dict.fromkeys(map(str, inner))), side))
    for place, words in PLACES.items():
        _add(tree, expand(words), Cue.PLACE, place)
    for word, region in COMBINED.items():
        _add(tree, [(word,)], Cue.PLACE, region)
    for name, (words, _) in STRUCTURES.items():
        _add(tree, expand(words), Cue.STRUCTURE, name)
    for side, words in SIDES.items():
        _add(tree, expand(words), Cue.SIDE, side)
    for cue, words in CUES.items():
        _add(tree, expand(words), cue, cue.value)
    return tree


def tags_of(tokens: list[Token]) -> list[Tag]:
    """Phrases among tokens: ascending, disjoint; sizes are tags too."""
    tree, words = _tree(), [token.word for token in tokens]
    found: list[Tag] = []
    at = 0
    while at < len(words):
        if tokens[at].sizes_mm:
            found.append(Tag(at, at + 1, {Cue.SIZE: tokens[at].sizes_mm}))
            at += 1
            continue
        end, roles = _longest(tree, words, at)
        if roles:
            found.append(Tag(at, end, roles))
        at = max(end, at + 1)
    return found


def finding_of(label: str) -> str | None:
    """Name of the finding that a label of another vocabulary means ("Lacunar infarct", "Cerebral atrophy"), or None."""
    found = [tag.roles[Cue.FINDING] for tag in tags_of(tokens_of(label)) if Cue.FINDING in tag.roles]
    return found[-1].name if found and isinstance(found[-1], Named) else None
