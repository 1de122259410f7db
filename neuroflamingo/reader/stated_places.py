"""Sides, regions and sizes among the words that belong to one finding."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuroflamingo.findings.vocabulary import Side
from neuroflamingo.reader.cues import Cue
from neuroflamingo.reader.phrase_table import Tag
from neuroflamingo.reader.scopes import Mention, Sentence, only_a_place

_GRADES = {
    "mild": 1,
    "slight": 1,
    "minimal": 1,
    "minor": 1,
    "subtle": 1,
    "trace": 1,
    "few": 1,
    "scattered": 1,
    "somewhat": 1,
}
_GRADES |= {"moderate": 2, "severe": 3, "marked": 3, "extensive": 3, "pronounced": 3, "advanced": 3, "confluent": 3}
_GRADES |= {
    "gross": 3,
    "massive": 3,
    "substantial": 3,
    "considerable": 3,
    "1": 1,
    "2": 2,
    "3": 3,
    "i": 1,
    "ii": 2,
    "iii": 3,
}
_CHANGES = {"new": "new", "development": "new", "stable": "unchanged", "unchanged": "unchanged", "larger": "larger"}
_CHANGES |= {"increased": "larger", "increase": "larger", "growth": "larger", "grown": "larger", "progressed": "larger"}
_CHANGES |= {"smaller": "smaller", "decreased": "smaller", "decrease": "smaller", "regressed": "smaller"}
_CHANGES |= {"change": "unchanged", "similar": "unchanged", "progression": "larger", "improved": "smaller"}
_NOT_A_LESION = (
    "section",
    "slice",
    "cut",
    "image",
    "distal",
    "proximal",
    "from",
    "away",
    "interval",
    "gap",
    "deep",
)


_BODY = {
    "hemiparesis",
    "hemiplegia",
    "weakness",
    "arm",
    "leg",
    "hand",
    "handed",
    "face",
    "facial",
    "eye",
    "ear",
    "limb",
}
_BODY |= {
    "extremity",
    "gaze",
    "hearing",
    "numbness",
    "seizure",
    "breast",
    "lung",
    "hemianopia",
    "neglect",
    "body",
    "groin",
}


@dataclass
class Place:
    """A side with its regions, and the sizes that stand with it."""

    side: Side | None = None
    regions: list[str] = field(default_factory=list[str])
    sizes: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])


@dataclass
class Stated:
    """Attributes of one finding's words."""

    places: list[Place]
    previous_mm: float | None = None
    grade: int | None = None
    change: str | None = None


def _own(sentence: Sentence, first: int, last: int, mention: Mention | None) -> list[Tag]:
    """Tags of a segment without those of neighbouring structures and of places that are denied."""
    kept: list[Tag] = []
    skip = -1
    for tag in sentence.between(first, last):
        if tag.first < skip and not (mention and tag.first == mention.first):
            continue
        if Cue.ASIDE in tag.roles and Cue.FINDING not in tag.roles:
            skip = next((at for at in range(tag.last, last) if sentence.word(at) in (",", ";", "and")), last)
            ends = [t.first for t in sentence.between(tag.last, last) if _ends_an_aside(sentence, t)]
            skip = min([skip, *ends])
            continue
        if Cue.NO in tag.roles and only_a_place(sentence, tag):
            skip = next((t.first for t in sentence.between(tag.last, last) if Cue.STOP in t.roles), last)
            continue
        kept.append(tag)
    return kept


def _ends_an_aside(sentence: Sentence, tag: Tag) -> bool:
    """Whether a tag goes on about the finding itself, after words about its neighbours."""
    before = [sentence.word(tag.first - 2), sentence.word(tag.first - 1)]
    inside = Cue.PLACE in tag.roles and not {"in", "within"}.isdisjoint(before)
    return inside or Cue.SIZE in tag.roles or (Cue.VERB in tag.roles and before[1] != "to")


def _moves(sentence: Sentence, tag: Tag) -> bool:
    """Whether a side is a direction: "shifted to the left"."""
    before = [sentence.word(tag.first - 2), sentence.word(tag.first - 1)]
    return before[1] in ("to", "toward", "towards") or before in (["to", "the"], ["toward", "the"], ["towards", "the"])


def _of_the_body(sentence: Sentence, tag: Tag) -> bool:
    """Whether a side is that of a symptom or another part of the body: "left-sided weakness"."""
    return any(sentence.word(at) in _BODY for at in range(tag.last, tag.last + 3))


def _sides(sentence: Sentence, tags: list[Tag]) -> list[Tag]:
    """Tags with the unequal sides ("left greater than right") made one of both sides."""
    found: list[Tag] = []
    uneven = False
    for tag in tags:
        if Cue.UNEVEN in tag.roles:
            sides = [side for t in found if isinstance(side := t.roles.get(Cue.SIDE), Side)]
            found = [t for t in found if Cue.SIDE not in t.roles]
            found.append(Tag(tag.first, tag.last, {Cue.SIDE: Side.BILATERAL}))
            uneven = bool(sides) or True
        elif uneven and Cue.SIDE in tag.roles:
            continue
        else:
            found.append(tag)
    return found


def _speaks_of_size(sentence: Sentence, before: Tag) -> bool:
    """Whether a size follows a word such as "previously" or "from" at once."""
    reach = 1 if sentence.word(before.last - 1) in ("from", "was", "against") else 4
    return any(before.last <= tag.first < before.last + reach for tag in sentence.tags if Cue.SIZE in tag.roles)


def _was_then(sentence: Sentence, size: Tag) -> bool:
    """Whether a size is followed by the word that makes it the earlier one ("12 mm vs 20 mm previously")."""
    then = next((tag for tag in sentence.tags if tag.first == size.last and Cue.BEFORE in tag.roles), None)
    named = sentence.word(size.last) in ("previously", "prior", "before", "earlier", "formerly")
    return then is not None and named and not _speaks_of_size(sentence, then)


def _is_size(sentence: Sentence, tag: Tag, mention: Mention | None) -> bool:
    """Whether a length is that of a finding, not of slices or of a distance."""
    at = tag.last + (sentence.word(tag.last) in ("in", "thick"))
    return sentence.word(at) not in _NOT_A_LESION


def _groups(sentence: Sentence, tags: list[Tag], sizes: dict[int, tuple[float, ...]]) -> list[Place]:
    """Places of a segment in order: a new one begins with another side."""
    found = [Place()]
    for at, tag in enumerate(tags):
        side = tag.roles.get(Cue.SIDE)
        if tag.first in sizes:
            found[-1].sizes.append(sizes[tag.first])
        elif isinstance(side, Side) and not _moves(sentence, tag) and not _of_the_body(sentence, tag):
            following = tags[at + 1] if at + 1 < len(tags) and tags[at + 1].first == tag.last else None
            place = str(following.roles[Cue.PLACE]) if following and Cue.PLACE in following.roles else None
            _take_side(sentence, found, tag, side, place)
        elif Cue.PLACE in tag.roles:
            place = str(tag.roles[Cue.PLACE])
            found[-1].regions += [place] if place not in found[-1].regions else []
    first, others = found[0], found[1:]
    if first.side is Side.BILATERAL and len(others) > 1 and not first.sizes and not any(o.regions for o in others):
        return [Place(other.side, list(first.regions), other.sizes) for other in others]
    lone = [place for place in others if not place.regions and not place.sizes]
    return [place for place in found if place not in lone] if first.regions else found


def _both(place: Place, side: Side) -> bool:
    """Whether a second side makes a bare place one of both sides ("left and right")."""
    return not place.regions and not place.sizes and {place.side, side} == {Side.LEFT, Side.RIGHT}


def _take_side(sentence: Sentence, found: list[Place], tag: Tag, side: Side, place: str | None) -> None:
    """Give a side to the place under way, or begin another with it.

    Args:
        place: the region that follows at once.
    """
    now = found[-1]
    before = tag.first - 1 - (sentence.word(tag.first - 1) in ("the", "a", "in"))
    before -= sentence.word(before) == "in"
    apart = place is not None and place not in now.regions and sentence.word(before) in ("and", "or", ",", ";", ":")
    if now.side is None and not (now.regions and apart):
        now.side = side
    elif now.side is side or (side is Side.BILATERAL and place is None):
        return
    elif now.side in (Side.MIDLINE, Side.BILATERAL) and not now.regions:
        now.side = side
    elif _both(now, side) or (place is None and sentence.word(tag.first - 1) in ("and", "or")):
        now.side = Side.BILATERAL
    else:
        found.append(Place(side))


def _pair_sizes(places: list[Place]) -> None:
    """Give each place its size where there are as many sizes as places; else the longest stays with its place."""
    sizes = [size for place in places for size in place.sizes]
    if len(places) > 1 and len(sizes) == len(places):
        for place, size in zip(places, sizes, strict=True):
            place.sizes = [size]


def _grade_of(sentence: Sentence, tags: list[Tag], mention: Mention | None) -> int | None:
    graded = [
        (tag, grade)
        for tag in tags
        if Cue.GRADE in tag.roles or Cue.LARGE in tag.roles
        for grade in [max(_GRADES.get(sentence.word(at).removesuffix("ly"), 0) for at in range(tag.first, tag.last))]
        if grade
    ]
    if not graded:
        return None
    if mention is None:
        return graded[0][1]
    return min(graded, key=lambda pair: max(mention.first - pair[0].last, pair[0].first - mention.last))[1]


def stated_in(sentence: Sentence, first: int, last: int, mention: Mention | None) -> Stated:
    """Attributes in tokens [first, last), which belong to one finding (None for a sentence that refers back)."""
    tags = _sides(sentence, _own(sentence, first, last, mention))
    sizes: dict[int, tuple[float, ...]] = {}
    previous: float | None = None
    earlier = False
    for tag in tags:
        if Cue.BEFORE in tag.roles and Cue.FINDING not in tag.roles:
            earlier = _speaks_of_size(sentence, tag)
        elif Cue.NOW in tag.roles:
            earlier = False
        if Cue.SIZE in tag.roles and _is_size(sentence, tag, mention):
            token = sentence.tokens[tag.first]
            if earlier and token.is_range:
                previous, sizes[tag.first] = token.sizes_mm[0], token.sizes_mm[1:]
            elif earlier or _was_then(sentence, tag):
                previous = max(token.sizes_mm)
            else:
                sizes[tag.first] = token.sizes_mm
            earlier = False
    kept = [tag for tag in tags if Cue.FINDING not in tag.roles or Cue.SIZE in tag.roles]
    places = _groups(sentence, kept, sizes)
    _pair_sizes(places)
    changes = [
        _CHANGES[sentence.word(at)]
        for tag in tags
        if Cue.CHANGE in tag.roles
        for at in range(tag.first, tag.last)
        if sentence.word(at) in _CHANGES
    ]
    return Stated(places, previous, _grade_of(sentence, tags, mention), changes[0] if changes else None)
