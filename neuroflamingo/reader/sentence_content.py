"""Content of one sentence: what it states, denies and recalls, and which of its words no rule used."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuroflamingo.reader.brain_findings import DIFFUSE, OTHER, STRUCTURES
from neuroflamingo.reader.brain_report import ReadFinding
from neuroflamingo.reader.cues import Cue
from neuroflamingo.reader.joined_findings import merge
from neuroflamingo.reader.named_findings import (
    composites,
    findings_of,
    is_bare,
    is_usual,
    is_yardstick,
    others,
    segments,
)
from neuroflamingo.reader.phrase_table import Tag, tags_of
from neuroflamingo.reader.scopes import Mention, Sentence, judge, mentions_of
from neuroflamingo.reader.stated_places import Stated, stated_in
from neuroflamingo.reader.word_forms import tokens_of

_DESCRIBED = {"finding", "impression", "appearance", "feature", "imaging", "constellation", "overall", "these"}
_ANOTHER = {"another", "second", "third", "other"}
_BACK = ("the", "this", "that", "said", "these", "known", "its")


@dataclass
class Content:
    """What a sentence says.

    Attributes:
        stated: findings, each with whether it may complete an earlier one ("the mass measures ...").
        absent_anywhere: those of `absent` that are denied without a place.
        loose: attributes of a sentence that names no finding and refers back.
        another: these are of one more finding of the last name ("a second measures ...").
        share: read part, None if the sentence states nothing about the brain.
    """

    stated: list[tuple[ReadFinding, bool]] = field(default_factory=list[tuple[ReadFinding, bool]])
    absent: set[str] = field(default_factory=set[str])
    absent_anywhere: set[str] = field(default_factory=set[str])
    past: list[ReadFinding] = field(default_factory=list[ReadFinding])
    loose: Stated | None = None
    another: bool = False
    share: float | None = 0.0
    unread: tuple[str, ...] = ()


def sentence_from(text: str, question: bool) -> Sentence:
    """A sentence's words and their tags."""
    tokens = tokens_of(text)
    while tokens and tokens[-1].word in (".", "?", ","):
        tokens.pop()
    return Sentence(text, tokens, tags_of(tokens), question)


def _normal(sentence: Sentence, content: Content) -> bool:
    """Read "normal" and "no abnormality"; the findings that these deny are added."""
    ok = False
    denials = [tag for tag in sentence.tags if Cue.NO in tag.roles]
    normal = [tag for tag in sentence.tags if Cue.NORMAL in tag.roles]
    structures = [tag for tag in sentence.tags if Cue.STRUCTURE in tag.roles and Cue.FINDING not in tag.roles]
    if normal:
        ok = True
        colon = max((at for at in range(len(sentence.tokens)) if sentence.word(at) == ":"), default=-1)
        for tag in [tag for tag in structures if tag.first > colon] or structures:
            denied = STRUCTURES[str(tag.roles[Cue.STRUCTURE])][1]
            if denied and not any(finding.name == denied for finding, _ in content.stated):
                content.absent.add(denied)
                content.absent_anywhere.add(denied)
    last = max((tag.first for tag in sentence.tags if _tells(tag)), default=-1)
    behind = any(Cue.NOT_SEEN in tag.roles for tag in sentence.tags)
    for no in (no for no in denials if behind or last >= no.last):
        sentence.used.add(no.first)
        ok = True
    return ok


def _tells(tag: Tag) -> bool:
    cues = (
        Cue.ABNORMAL,
        Cue.CHANGE,
        Cue.LARGE,
        Cue.SMALL,
        Cue.SIGNAL,
        Cue.STRUCTURE,
        Cue.PLACE,
        Cue.NORMAL,
        Cue.SIDE,
        Cue.SAME,
    )
    return any(cue in tag.roles for cue in cues)


def _coverage(sentence: Sentence, content: Content, mentions: list[Mention], *, normal: bool) -> None:
    """Share of the sentence's telling words that a rule used, and the others in words."""
    telling = [
        tag
        for tag in sentence.tags
        if (any(cue in tag.roles for cue in (Cue.NO, Cue.NOT_SEEN)) and Cue.NORMAL not in tag.roles)
        or (Cue.LARGE in tag.roles and not mentions and not normal)
        or (Cue.ABNORMAL in tag.roles and not mentions and not normal and not is_bare(sentence, tag))
    ]
    used = [tag for tag in telling if tag.first in sentence.used]
    unused = [tag for tag in telling if tag.first not in sentence.used]
    attributes = {Cue.SIGNAL, Cue.SIZE, Cue.CHANGE, Cue.GRADE}
    count = len(mentions) + len(used) + normal
    described = sum(not attributes.isdisjoint(tag.roles) for tag in sentence.tags)
    signals = any(Cue.SIGNAL in tag.roles for tag in sentence.tags)
    aside = any(Cue.ADVICE in tag.roles or Cue.PAST in tag.roles for tag in sentence.tags)
    if not count and aside and not unused:
        content.share = None
    elif not count and not unused and (_unchanged(sentence) or content.loose or (signals and described >= 2)):
        content.share = 1.0
    elif not count and not unused:
        content.share = 0.0
        content.unread = (sentence.text,)
    else:
        content.share = count / (count + len(unused))
        content.unread = tuple(sentence.words(tag.first, tag.last) for tag in unused)


def _unchanged(sentence: Sentence) -> bool:
    """Whether a structure is said to be as it was ("No interval change in the size of the ventricles")."""
    words = {sentence.word(at) for tag in sentence.tags if Cue.CHANGE in tag.roles for at in range(tag.first, tag.last)}
    structure = any(Cue.STRUCTURE in tag.roles for tag in sentence.tags)
    return structure and not words.isdisjoint({"stable", "unchanged", "change", "changed", "similar"})


def content_of(sentence: Sentence) -> Content:
    """Read a sentence.

    Args:
        sentence: from `sentence_from`; its `used` grows.
    """
    content = Content()
    mentions = sorted(mentions_of(sentence) + composites(sentence), key=lambda mention: (mention.first, mention.last))
    mentions = [m for m in mentions if not is_yardstick(sentence, m) and not is_usual(sentence, m)]
    mentions = sorted(mentions + others(sentence, mentions), key=lambda mention: (mention.first, mention.last))
    subject = _subject(sentence, mentions)
    for mention in mentions:
        judge(sentence, mention)
        mention.back = sentence.word(mention.first - 1) in _BACK or sentence.word(mention.first - 2) in _BACK
    heads = [subject, *mentions] if subject else mentions
    ranges = segments(sentence, heads)
    if subject:
        content.loose = stated_in(sentence, *ranges[0], None)
        ranges = ranges[1:]
    found = [
        findings_of(sentence, mention, stated_in(sentence, *segment, mention))
        for mention, segment in zip(mentions, ranges, strict=True)
    ]
    for mention, findings in merge(sentence, mentions, found):
        if mention.past:
            content.past += findings
        elif mention.denied:
            content.absent |= {finding.name for finding in findings} - {OTHER}
            content.absent_anywhere |= {f.name for f in findings if not f.side and (f.name in DIFFUSE or not f.regions)}
        elif not sentence.question:
            back = (mention.back and not mention.implied) or _names_earlier(sentence, mention)
            content.stated += [(finding, back) for finding in findings]
    normal = _normal(sentence, content)
    if not mentions and not normal and content.loose is None and _refers_back(sentence):
        content.loose = stated_in(sentence, 0, len(sentence.tokens), None)
        content.another = not _ANOTHER.isdisjoint(sentence.word(at) for at in range(2))
    _coverage(sentence, content, mentions, normal=normal)
    return content


def _subject(sentence: Sentence, mentions: list[Mention]) -> Mention | None:
    """The "it" that opens a sentence whose findings come later: its words complete an earlier finding."""
    if mentions and mentions[0].first > 1 and sentence.word(0) in ("it", "this", "measuring", "which"):
        return Mention("", (), None, 0, 1)
    return None


def _names_earlier(sentence: Sentence, mention: Mention) -> bool:
    """Whether a sentence says what was described before ("The findings are suggestive of a glioma")."""
    opening = {sentence.word(at) for at in range(3)}
    cues = [tag.roles for tag in sentence.between(0, mention.first)]
    return not _DESCRIBED.isdisjoint(opening) and any(Cue.IS in roles or Cue.MAYBE in roles for roles in cues)


def _refers_back(sentence: Sentence) -> bool:
    """Whether a sentence without a finding goes on about the last one."""
    cues = (Cue.SAME, Cue.NOW)
    opening = [tag for tag in sentence.tags if tag.first <= 2]
    return any(cue in tag.roles for tag in opening for cue in cues)
