"""Findings named in a sentence: by a phrase, by a changed structure or by their form, with what belongs to each."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from neuroflamingo.findings.vocabulary import Certainty, Region, Side
from neuroflamingo.reader.brain_findings import CHANGED, DIFFUSE, OTHER, SIGNS
from neuroflamingo.reader.brain_report import ReadFinding
from neuroflamingo.reader.cues import Cue
from neuroflamingo.reader.places import MIDLINE_PLACES, PLACED_IN, TERRITORIES
from neuroflamingo.reader.scopes import Mention, Sentence

if TYPE_CHECKING:
    from neuroflamingo.reader.phrase_table import Tag
    from neuroflamingo.reader.stated_places import Stated

_UNKNOWN = re.compile(
    r"^(?!diagnos|prognos|hypothes|anastom|symptom|stroma|coma$|soma$|aroma|trauma$|hematoma)\w{3,}"
    r"(?:omas?|itis|osis|plasia|ectasia|cele|pathy|emia|malacia|megaly|sclerosis|genesis|thrombus|trophy|encephaly)$"
)
_AGES: dict[str, str] = dict.fromkeys(("old", "chronic", "remote", "prior", "established"), "chronic infarct")
_AGES |= {"acute": "acute infarct", "early": "acute infarct", "subacute": "subacute infarct"}
_MANY = ("focus", "multiple", "numerous", "several", "scattered", "few", "innumerable", "many", "area", "bilateral")
_CUT = {",", ";", ":", "and", "with", "plus", "while", "or", "versus", "vs", "but", "there", "whereas", "also", "("}
_CUT |= {"from", "by", "due", "secondary", "because", "causing"}
_PARTS = ("enhancement", "edema", "necrosis", "calcification", "hematoma", "restricted diffusion", *SIGNS)
_SIGNALS = {"hyperintense", "hypointense", "high", "increased", "bright", "low", "mixed", "hypodense", "hyperdense"}
_NOT_LOBES = ("corpus callosum", Region.BRAINSTEM, Region.CEREBELLUM, Region.BASAL_GANGLIA, Region.THALAMUS)
_OF = ("in", "of", "within", "at", "along", "involving", "on", "over", "centered", "throughout")
_CONTRAST = (";", "but", "however", "although", "though", "whereas", "while")
_MOVED = re.compile("(?:compress|displac|effac|shift|narrow|entrap|distort|deviat|caus|push)")


def _certainty(maybe: bool) -> Certainty:
    return Certainty.POSSIBLE if maybe else Certainty.DEFINITE


def composites(sentence: Sentence) -> list[Mention]:
    """Findings made of a structure and a change: "the ventricles are enlarged", "prominent sulci"."""
    found: list[Mention] = []
    tags = sentence.tags
    for at, change in enumerate(tags):
        size = "large" if Cue.LARGE in change.roles else "small" if Cue.SMALL in change.roles else None
        follows = at + 1 < len(tags) and Cue.FINDING in tags[at + 1].roles and tags[at + 1].first == change.last
        if size is None or Cue.FINDING in change.roles or follows:
            continue
        grown = any(sentence.word(at) == "increased" for at in range(change.first, change.last))
        for side in (tags[:at][::-1], () if grown else tags[at + 1 :]):
            made: list[Mention] = []
            for tag in side:
                if Cue.FINDING in tag.roles or Cue.STOP in tag.roles or Cue.NORMAL in tag.roles:
                    break
                if Cue.LARGE in tag.roles or (Cue.VERB in tag.roles and tag.first > change.first):
                    break
                name = CHANGED.get((str(tag.roles.get(Cue.STRUCTURE)), size))
                if name:
                    place = tag.roles.get(Cue.PLACE)
                    first, last = min(tag.first, change.first), max(tag.last, change.last)
                    made.append(Mention(name, (str(place),) if place else (), None, first, last, implied=True))
            if made:
                sentence.used.add(change.first)
                found += made[::-1] if side and side[0].first < change.first else made
                break
    return found


def segments(sentence: Sentence, mentions: list[Mention]) -> list[tuple[int, int]]:
    """Tokens that belong to each mention: cut at the last boundary between two of them."""
    if not mentions:
        return []
    cuts = [0]
    for left, right in pairwise(mentions):
        at = [at for at in range(left.last, right.first) if sentence.word(at) in _CUT]
        links = [
            tag.first
            for tag in sentence.between(left.last, right.first)
            if any(cue in tag.roles for cue in (Cue.IS, Cue.MAYBE, Cue.STOP, Cue.MAYBE_LIST, Cue.ASIDE, Cue.NO))
        ]
        places = {
            t.first for t in sentence.between(left.last, right.first) if Cue.PLACE in t.roles or Cue.SIDE in t.roles
        }
        joins = [
            a
            for a in at
            if not (sentence.word(a) in ("and", ",", "or") and a - 1 in _ends(sentence, places) and a + 1 in places)
        ]
        of = sentence.word(left.last) in _OF and not (left.name in _PARTS and right.name not in SIGNS)
        behind = right.first if of else left.last
        cuts.append(max([*joins, *links], default=max(at, default=behind)))
    found = list(pairwise([*cuts, len(sentence.tokens)]))
    return [
        (_after_contrast(sentence, first, mention.first), last)
        for (first, last), mention in zip(found, mentions, strict=True)
    ]


def _after_contrast(sentence: Sentence, first: int, last: int) -> int:
    """Start of a segment behind the last "but", "although" or semicolon before its mention."""
    return max((at + 1 for at in range(first, last) if _is_contrast(sentence, at)), default=first)


def _is_contrast(sentence: Sentence, at: int) -> bool:
    """Whether a word parts a finding from what stands before it: "but", or the "by" of "is compressed by"."""
    by = sentence.word(at) == "by" and any(_MOVED.match(sentence.word(before)) for before in range(at - 2, at))
    return sentence.word(at) in _CONTRAST or by


def _ends(sentence: Sentence, firsts: set[int]) -> set[int]:
    return {tag.last - 1 for tag in sentence.tags if tag.first in firsts}


def _regions(name: str, inner: tuple[str, ...], outer: list[str]) -> tuple[str, ...]:
    """Names of a finding's places: its own phrase's and those around it."""
    if name in DIFFUSE and name != "white matter lesions":
        odd = [place for place in (*inner, *outer) if place in ("third ventricle", "fourth ventricle")]
        return tuple(dict.fromkeys(odd)) or PLACED_IN[name]
    if name in DIFFUSE:
        return (*PLACED_IN[name], *dict.fromkeys(place for place in (*inner, *outer) if place in _NOT_LOBES))
    if name in PLACED_IN:
        return PLACED_IN[name]
    found = list(dict.fromkeys((*inner, *outer)))
    if name in TERRITORIES:
        found = [f"{place} territory" if place in ("MCA", "ACA", "PCA") else place for place in found]
    lobes = [place for place in found if place in set(Region) and place != Region.WHITE_MATTER]
    return tuple(place for place in found if not (lobes and place == Region.WHITE_MATTER))


def _name(sentence: Sentence, mention: Mention, stated: Stated) -> str:
    """Name of a mention in its context: many bright foci in the white matter are white matter lesions."""
    places = {place for found in stated.places for place in found.regions} | set(mention.places)
    if mention.name in ("signal abnormality", "lesion") and Region.WHITE_MATTER in places:
        word = sentence.words(mention.first, mention.last).lower()
        near = {sentence.word(at) for at in range(max(0, mention.first - 5), mention.first)}
        single = near & {"a", "an", "single", "solitary", "one"} and not near & {"few", "number"}
        if not single and (word.endswith(("s", "foci")) or near & set(_MANY) or "foci" in word):
            return "white matter lesions"
    return _aged(sentence, mention) if mention.name == "infarct" else mention.name


def _aged(sentence: Sentence, mention: Mention) -> str:
    """Name of an infarct whose age stands apart: "acute PICA infarct", "right cerebellar infarct, chronic"."""
    before = [sentence.word(at) for at in range(max(0, mention.first - 5), mention.first)]
    cut = max((at + 1 for at, word in enumerate(before) if word in _CUT), default=0)
    behind = [sentence.word(at) for at in range(mention.last, mention.last + 3)]
    end = next((at for at, word in enumerate(behind) if word in ("and", "with", "in")), len(behind))
    return next((_AGES[word] for word in (*before[cut:], *behind[:end]) if word in _AGES), mention.name)


def _shift_side(sentence: Sentence) -> Side | None:
    """Direction of a midline shift."""
    words = " ".join(token.word for token in sentence.tokens)
    for side, other in ((Side.LEFT, "right"), (Side.RIGHT, "left")):
        if f"{side}ward" in words or re.search(
            rf"\b(?:to|toward|towards)(?: the)? {side}\b|\b{other} to {side}\b", words
        ):
            return side
    return None


def findings_of(sentence: Sentence, mention: Mention, stated: Stated) -> list[ReadFinding]:
    """Findings of a mention: one for each of its places."""
    name = _name(sentence, mention, stated)
    start, end = sentence.tokens[mention.first].start, sentence.tokens[mention.last - 1].end
    base = ReadFinding(name, sentence.text[start:end], start, end, grade=stated.grade, change=stated.change)
    base = replace(base, previous_mm=stated.previous_mm, certainty=_certainty(mention.maybe))
    found: list[ReadFinding] = []
    for place in stated.places:
        size = max(place.sizes, key=max, default=())
        regions = _regions(name, mention.places, place.regions)
        side = place.side or (Side(mention.side) if mention.side else None)
        if side is None and set(regions) & MIDLINE_PLACES:
            side = Side.MIDLINE
        if name == "midline shift":
            side, regions = _shift_side(sentence), ()
        if name in ("mass effect", "midline shift") and name != "midline shift":
            side, regions = None, ()
        found.append(replace(base, side=side, regions=regions, size_mm=max(size, default=None), dimensions_mm=size))
    if name in DIFFUSE or name in ("atrophy", "midline shift", "mass effect", "sinus disease"):
        found = _as_one(found)
    return found


def _as_one(found: list[ReadFinding]) -> list[ReadFinding]:
    """One finding of several places: of both sides if they differ."""
    sides = {finding.side for finding in found if finding.side}
    side = sides.pop() if len(sides) == 1 else Side.BILATERAL if sides else None
    regions = tuple(dict.fromkeys(place for finding in found for place in finding.regions))
    sized = next((finding for finding in found if finding.size_mm is not None), found[0])
    return [replace(sized, side=side, regions=regions)]


def others(sentence: Sentence, taken: list[Mention]) -> list[Mention]:
    """What is a finding by its form but stands in no table."""
    inside = {at for mention in taken for at in range(mention.first, mention.last)}
    tagged = {at for tag in sentence.tags for at in range(tag.first, tag.last)}
    found = [
        Mention(OTHER, (), None, at, at + 1)
        for at, token in enumerate(sentence.tokens)
        if at not in inside and at not in tagged and _UNKNOWN.match(token.word)
    ]
    normal = any(Cue.NORMAL in tag.roles for tag in sentence.tags)
    if taken or found or normal:
        return [] if normal else found
    if found := _seen_signal(sentence):
        return [found]
    abnormal = [tag for tag in sentence.tags if Cue.ABNORMAL in tag.roles and not is_bare(sentence, tag)]
    return [Mention(OTHER, (), None, tag.first, tag.last) for tag in abnormal[:1]]


def is_bare(sentence: Sentence, tag: Tag) -> bool:
    """Whether a word says only that something was found ("Findings were discussed")."""
    return tag.last - tag.first == 1 and sentence.word(tag.first) in ("finding", "process", "disease")


def _seen_signal(sentence: Sentence) -> Mention | None:
    """A signal that no finding explains: "high signal in the left frontal lobe"."""
    places = any(Cue.PLACE in tag.roles for tag in sentence.tags)
    back = any(Cue.SAME in tag.roles and tag.first <= 2 for tag in sentence.tags)
    for tag in sentence.tags:
        words = [sentence.word(at) for at in range(tag.first, tag.last)]
        if Cue.SIGNAL in tag.roles and places and not back and not _SIGNALS.isdisjoint(words):
            return Mention("signal abnormality", (), None, tag.first, tag.last)
    return None


def is_yardstick(sentence: Sentence, mention: Mention) -> bool:
    """Whether a mention only measures another ("out of proportion to sulcal widening")."""
    before = [sentence.word(at) for at in range(mention.first - 4, mention.first)]
    return "proportion" in before and "to" in before


def is_usual(sentence: Sentence, mention: Mention) -> bool:
    """Whether a mention is called normal ("normal enhancement of the veins")."""
    return any(tag.last == mention.first and Cue.NORMAL in tag.roles for tag in sentence.tags)
