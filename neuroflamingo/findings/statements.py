"""Meaning of one sentence: the classes that it states or denies, and their attributes.

A closed grammar over the tags of `lexicon`. A mention is a class term, or a structure together with a change ("the
ventricles are dilated"). Negations reach forward to the next verb or stop word, or back from "is not seen" to the
last verb; words between two mentions belong to the mention on their side of the last "and" or comma.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

from neuroflamingo.findings.lexicon import CHANGED, NORMAL_DENIES, Match, Tag
from neuroflamingo.findings.vocabulary import FOCAL, Certainty, Finding, FindingClass, Region, Side

_BOUNDARY = re.compile(r",|;|:|\band\b|\bbut\b|\bwith\b|\bplus\b|\bas well as\b|\bwhile\b|\bwhereas\b|\bor\b|\bthere\b")
_DEFINITE = re.compile(r"\b(?:the|this|that|said) +(?:(?!there\b|is\b|an?\b|another\b|in\b|of\b)\w+ +){0,5}$")
_OTHERS = re.compile(r"\b(?:other|further|additional|new|else|otherwise|second|remaining)\b")
_DIFFUSE = {
    FindingClass.WHITE_MATTER_LESIONS: Region.WHITE_MATTER,
    FindingClass.VENTRICULAR_ENLARGEMENT: Region.VENTRICLES,
}
_NOT_THERE = re.compile(r"not (?:(?:in|on|at) )?(?:the )?(?:left|right)\b")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")


@dataclass
class Mention:
    """One mention of a class in a sentence."""

    kind: FindingClass
    start: int
    end: int
    denied: bool = False
    refers_back: bool = False
    findings: list[Finding] = field(default_factory=list[Finding])
    structure: Match | None = None  # of a composite, where it stands before the change


@dataclass
class Statement:
    """Content of a sentence; `loose` holds the attributes of a sentence that names no class."""

    mentions: list[Mention]
    denied: frozenset[FindingClass]
    loose: Finding | None
    understood: bool


def _composites(tags: list[Match]) -> tuple[list[Mention], set[Match]]:
    """Mentions composed of a structure and a change, and the structures used."""
    mentions: list[Mention] = []
    used: set[Match] = set()
    walls = (Tag.CLASS, Tag.STOP)
    focal = any(tag.tag is Tag.CLASS and tag.value in FOCAL for tag in tags)
    for at, change in enumerate(tags):
        if change.tag is not Tag.CHANGE:
            continue
        if at + 1 < len(tags) and tags[at + 1].tag is Tag.CLASS and tags[at + 1].start - change.end <= 1:
            continue
        if focal and change.value == "lesion":
            continue
        for side in (reversed(tags[:at]), tags[at + 1 :]):
            structures: list[Match] = []
            for tag in side:
                if tag.tag in walls or (tag.tag is Tag.CHANGE and (tag.value, change.value) in CHANGED):
                    break
                if tag.tag is Tag.STRUCTURE and tag not in used and (tag.value, change.value) in CHANGED:
                    structures.append(tag)
            for tag in structures:
                used.add(tag)
                before = tag if tag.start < change.start else None
                kind = CHANGED[str(tag.value), str(change.value)]
                mentions.append(Mention(kind, change.start, change.end, structure=before))
            if structures:
                break
    return mentions, used


def _is_denied(start: int, end: int, tags: list[Match]) -> bool:
    """True if a negation reaches the term at [start, end)."""
    for tag in reversed([tag for tag in tags if tag.end <= start]):
        if tag.tag is Tag.NEGATION:
            return True
        if tag.tag in (Tag.STOP, Tag.VERB):
            break
    for tag in [tag for tag in tags if tag.start >= end]:
        if tag.tag is Tag.NEGATION_AFTER:
            return True
        if tag.tag in (Tag.STOP, Tag.VERB, Tag.NEGATION):
            break
    return False


def _no_structure(structure: Match | None, tags: list[Match]) -> bool:
    """True if a negation stands right before the structure of a composite ("neither ventricle is enlarged")."""
    before = [tag for tag in tags if structure is not None and tag.end <= structure.start]
    while before and before[-1].tag in (Tag.SIDE, Tag.GRADE):
        before.pop()
    return bool(before) and before[-1].tag is Tag.NEGATION


def segments(plain: str, mentions: list[Mention], start: int, end: int) -> list[tuple[int, int]]:
    """Range of the sentence that belongs to each mention."""
    if not mentions:
        return []
    cuts = [start]
    for left, right in pairwise(mentions):
        boundaries = list(_BOUNDARY.finditer(plain, left.end, right.start))
        cuts.append(boundaries[-1].start() if boundaries else left.end)
    cuts.append(end)
    return list(pairwise(cuts))


def _own(tags: list[Match], start: int, end: int, plain: str) -> list[Match]:
    """Tags of a segment, without neighbours ("displacing the right ...") and denied sides ("not on the left")."""
    kept: list[Match] = []
    skip_until = -1
    for tag in (tag for tag in tags if start <= tag.start < end):
        if tag.tag is Tag.NEGATION and _NOT_THERE.match(plain, tag.start):
            stops = [stop.start for stop in tags if stop.tag is Tag.STOP and tag.end <= stop.start < end]
            skip_until = min(stops, default=end)
        elif tag.tag is Tag.ASIDE:
            comma = plain.find(",", tag.end, end)
            skip_until = comma if comma >= 0 else end
        elif tag.start >= skip_until:
            kept.append(tag)
    return kept


def _sizes(plain: str, tags: list[Match]) -> list[float]:
    """Diameters in mm, taking the longest of several dimensions."""
    sizes: list[float] = []
    for tag in tags:
        if tag.tag is Tag.SIZE:
            numbers = [float(number.replace(",", ".")) for number in _NUMBER.findall(plain[tag.start : tag.end])]
            sizes.append(round(max(numbers) * float(str(tag.value)), 2))
    return sizes


def _one_side(sides: list[Side]) -> Side | None:
    if not sides:
        return None
    if Side.BILATERAL in sides or {Side.LEFT, Side.RIGHT} <= set(sides):
        return Side.BILATERAL
    return sides[0]


def _places(plain: str, tags: list[Match]) -> list[tuple[Side | None, Region | None]]:
    """Pairs of side and region in a segment, each side assigned to the adjacent region."""
    regions = [tag for tag in tags if tag.tag is Tag.REGION]
    sides = [tag for tag in tags if tag.tag is Tag.SIDE]
    if len({tag.value for tag in regions}) < 2:
        both = [Side.BILATERAL] if regions and plain[regions[0].start :].startswith("bi") else []
        side = _one_side([Side(str(tag.value)) for tag in sides] + both)
        return [(side, Region(str(regions[0].value)) if regions else None)]
    pairs: dict[Region, list[Side]] = {}
    for at, region in enumerate(regions):
        before = regions[at - 1].end if at else 0
        after = regions[at + 1].start if at + 1 < len(regions) else len(plain)
        leading = [s for s in sides if before <= s.start < region.start and (not at or region.start - s.end <= 1)]
        trailing = [s for s in sides if region.end <= s.start < after and (after == len(plain) or after - s.end > 1)]
        here = [Side(str(s.value)) for s in (leading or trailing)]
        carried = list(pairs.values())[-1] if pairs else []
        pairs.setdefault(Region(str(region.value)), here or carried)
    return [(_one_side(found), region) for region, found in pairs.items()]


def _near(tags: list[Match], kind: Tag, mention: Mention | None) -> object:
    """Value of the nearest tag of a kind, or None."""
    found = [tag for tag in tags if tag.tag is kind]
    if not found:
        return None
    if mention is None:
        return found[0].value
    return min(found, key=lambda tag: max(mention.start - tag.end, tag.start - mention.end)).value


def read_attributes(kind: FindingClass, plain: str, tags: list[Match], mention: Mention | None) -> list[Finding]:
    """Findings of one mention: one for each location that it names, or a single one."""
    places = _places(plain, tags)
    certainty = Certainty.POSSIBLE if any(tag.tag is Tag.MAYBE for tag in tags) else Certainty.DEFINITE
    grade = _near(tags, Tag.GRADE, mention)
    if kind in _DIFFUSE:
        side = _one_side([side for side, _ in places if side]) or Side.BILATERAL
        return [Finding(kind=kind, side=side, region=_DIFFUSE[kind], grade=grade, certainty=certainty)]  # type: ignore[arg-type]
    if kind is FindingClass.ATROPHY:
        return [Finding(kind=kind, side=s, region=r, grade=grade, certainty=certainty) for s, r in places]  # type: ignore[arg-type]
    sizes, signal = _sizes(plain, tags), _near(tags, Tag.SIGNAL, mention)
    per_place = sizes if len(sizes) == len(places) else [max(sizes, default=None)] * len(places)
    return [
        Finding(kind=kind, side=side, region=region, size_mm=size, signal=signal, certainty=certainty)  # type: ignore[arg-type]
        for (side, region), size in zip(places, per_place, strict=True)
    ]


def complete(finding: Finding, other: Finding) -> Finding | None:
    """Complete a finding with the attributes of another; None if they contradict each other."""
    values = finding.model_dump()
    for name, value in other.model_dump(exclude={"kind", "certainty"}).items():
        if value is not None and values[name] is not None and values[name] != value:
            return None
        values[name] = values[name] if value is None else value
    if other.certainty is Certainty.POSSIBLE:
        values["certainty"] = other.certainty
    return Finding(**values)


def _empty(finding: Finding) -> bool:
    return finding.side is None and finding.region is None and finding.size_mm is None


def _one_thing(first: Mention, second: Mention) -> bool:
    """Whether two mentions of a sentence can be one finding: one class and one place."""
    if first.kind is not second.kind or first.denied != second.denied or len(first.findings) != 1:
        return False
    if second.start - first.end <= 1 or first.kind in _DIFFUSE:
        return True
    return _empty(first.findings[0]) or all(_empty(finding) for finding in second.findings)


def _join(mentions: list[Mention]) -> list[Mention]:
    """Mentions of one thing joined ("old stroke: encephalomalacia in the ...") and stray places brought home."""
    joined: list[Mention] = []
    for mention in mentions:
        last = joined[-1] if joined else None
        if last and _one_thing(last, mention):
            merged = [complete(last.findings[0], finding) for finding in mention.findings]
            if all(merged):
                last.findings = [finding for finding in merged if finding]
                continue
        if last and mention.denied and not last.denied and last.kind in FOCAL and len(last.findings) == 1:
            stray = mention.findings[0].model_dump(include={"side", "region", "size_mm", "signal"})
            if mention.kind not in _DIFFUSE and last.findings[0].region is None and stray.get("region"):
                filled = complete(last.findings[0], Finding(kind=last.kind, **stray))
                last.findings = [filled] if filled else last.findings
        joined.append(mention)
    return joined


def read_sentence(plain: str, tags: list[Match], start: int, end: int) -> Statement:
    """Read the sentence at [start, end) of a plain text whose tags in that range are given."""
    mentions, used = _composites(tags)
    mentions += [Mention(tag.value, tag.start, tag.end) for tag in tags if tag.tag is Tag.CLASS]  # type: ignore[arg-type]
    mentions.sort(key=lambda mention: mention.start)
    for mention, (left, right) in zip(mentions, segments(plain, mentions, start, end), strict=True):
        own = _own(tags, left, right, plain)
        mention.denied = _is_denied(mention.start, mention.end, tags) or _no_structure(mention.structure, tags)
        mention.refers_back = bool(_DEFINITE.search(plain[start : mention.start]))
        mention.findings = read_attributes(mention.kind, plain, own, mention)
    mentions = _join(mentions)

    denied = {mention.kind for mention in mentions if mention.denied}
    others = bool(_OTHERS.search(plain, start, end))
    normal = any(tag.tag is Tag.NORMAL and not _is_denied(tag.start, tag.end, tags) for tag in tags)
    nothing = any(tag.tag in (Tag.ABNORMAL, Tag.CHANGE) and _is_denied(tag.start, tag.end, tags) for tag in tags)
    structures = [tag for tag in tags if tag.tag is Tag.STRUCTURE and tag not in used]
    if normal or nothing:
        denied |= {NORMAL_DENIES[str(tag.value)] for tag in structures}
        local = any(tag.tag in (Tag.REGION, Tag.SIDE) for tag in tags)
        whole = nothing or any(tag.tag is Tag.WHOLE for tag in tags)
        if whole and not (structures or mentions or others or local):
            denied |= set(FindingClass)
    denied = set[FindingClass]() if others else denied
    own = _own(tags, start, end, plain)
    telling = {tag.tag for tag in own} & {Tag.SIZE, Tag.SIGNAL, Tag.SIDE, Tag.REGION}
    back = any(tag.tag is Tag.SAME for tag in tags) or plain[start:end].lstrip().startswith("measur")
    loose = None
    if not mentions and telling and back and not (normal or nothing):
        loose = read_attributes(FindingClass.MASS, plain, own, None)[0]
    unreadable = any(tag.tag is Tag.UNREADABLE for tag in tags)
    understood = bool(mentions or denied or loose or normal or nothing or unreadable)
    return Statement(mentions, frozenset(denied), loose, understood)
