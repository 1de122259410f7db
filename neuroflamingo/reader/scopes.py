"""Reach of negation, doubt and history in a sentence, from the cues around a finding."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from neuroflamingo.reader.cues import Cue
from neuroflamingo.reader.phrase_table import Named, Tag

if TYPE_CHECKING:
    from neuroflamingo.reader.word_forms import Token

_OPENING = (Cue.IS, Cue.MAYBE, Cue.GRADE, Cue.SIZE, Cue.CHANGE, Cue.SIDE)
_ARTICLES = ("a", "an", "the", "with")
_PARTICIPLES = ("seen", "noted", "identified", "located", "centered", "involving", "occupying", "measuring", "measured")
_TOWARDS_A_PLACE = {
    "in",
    "on",
    "at",
    "the",
    "of",
    "within",
    "into",
    "to",
    "involve",
    "involving",
    "affect",
    "affecting",
}
_TOWARDS_A_PLACE |= {"extend", "extending", "reach", "reaching", "infiltrate", "infiltrating", "cross", "crossing"}
_OF_A_THING = ("of", "in", "within", "around", "surrounding", "inside", "from", "along")
_DEFINITE = ("the", "this", "these", "known", "its", "that")
_LISTED = (",", "and", "or", "(", ")")


@dataclass
class Mention:
    """One finding named in a sentence: tokens [first, last)."""

    name: str
    places: tuple[str, ...]
    side: str | None
    first: int
    last: int
    denied: bool = False
    maybe: bool = False
    past: bool = False
    back: bool = False
    implied: bool = False  # composed of a structure and a change


@dataclass
class Sentence:
    """A sentence under reading: its tokens and tags, and the tags that some rule used."""

    text: str
    tokens: list[Token]
    tags: list[Tag]
    question: bool = False
    used: set[int] = field(default_factory=set[int])

    def word(self, at: int) -> str:
        """Normal form of a token; empty outside the sentence."""
        return self.tokens[at].word if 0 <= at < len(self.tokens) else ""

    def words(self, first: int, last: int) -> str:
        """Words of the text from one token to another."""
        return self.text[self.tokens[first].start : self.tokens[last - 1].end]

    def between(self, first: int, last: int) -> list[Tag]:
        """Tags that lie within tokens [first, last)."""
        return [tag for tag in self.tags if first <= tag.first and tag.last <= last]


def mentions_of(sentence: Sentence) -> list[Mention]:
    """Findings that phrases of the table name, in order."""
    return [
        Mention(named.name, named.places, named.side, tag.first, tag.last)
        for tag in sentence.tags
        if isinstance(named := tag.roles.get(Cue.FINDING), Named)
    ]


def _comma_stops(sentence: Sentence, comma: int) -> bool:
    """Whether a comma ends a negation before it: a new statement follows, and no list of alternatives goes on."""
    following = sentence.word(comma + 1)
    tag = next((tag for tag in sentence.tags if tag.first == comma + 1), None)
    fresh = following in _ARTICLES or (tag is not None and any(cue in tag.roles for cue in _OPENING))
    rest = [token.word for token in sentence.tokens[comma + 1 :]]
    stop = next((at for at, word in enumerate(rest) if word in (";", "but", "however")), len(rest))
    return fresh and "or" not in rest[:stop]


def _by_first(sentence: Sentence) -> dict[int, Tag]:
    return {tag.last - 1: tag for tag in sentence.tags}


def _leftwards(sentence: Sentence, mention: Mention, cue: Cue, walls: tuple[Cue, ...], *, commas: bool) -> Tag | None:
    """The nearest cue before a mention that reaches it."""
    ending = _by_first(sentence)
    at = mention.first - 1
    while at >= 0:
        tag = ending.get(at)
        if tag is None:
            word = sentence.word(at)
            if commas and word == "," and _comma_stops(sentence, at):
                return None
            if word == "and" and sentence.word(at + 1) in ("a", "an"):
                return None
            at -= 1
            continue
        heads = cue is Cue.NO and Cue.NOT_SEEN in tag.roles and sentence.word(tag.last) == ":"  # "Not seen: a, b"
        if (cue in tag.roles and Cue.FINDING not in tag.roles) or heads:
            return tag
        if any(wall in tag.roles for wall in walls) and sentence.word(tag.first) not in _PARTICIPLES:
            return None
        at = tag.first - 1
    return None


def _rightwards(sentence: Sentence, mention: Mention, cue: Cue, walls: tuple[Cue, ...]) -> Tag | None:
    """The nearest cue behind a mention that reaches back to it."""
    for tag in (tag for tag in sentence.tags if tag.first >= mention.last):
        if cue in tag.roles:
            return tag
        if any(wall in tag.roles for wall in walls):
            return None
    return None


def only_a_place(sentence: Sentence, no: Tag) -> bool:
    """Whether a negation is of a place alone: "not on the left but on the right"."""
    at = no.last
    while sentence.word(at) in _TOWARDS_A_PLACE:
        at += 1
    tag = next((tag for tag in sentence.tags if tag.first <= at < tag.last), None)
    place = tag is not None and (Cue.SIDE in tag.roles or Cue.PLACE in tag.roles)
    return sentence.word(no.first) == "not" and no.last - no.first == 1 and place


def _is_of_a_known(sentence: Sentence, no: Tag, mention: Mention) -> bool:
    """Whether a negation ends at another finding, which is that of a known one ("no edema around the tumor")."""
    crossed = [t for t in sentence.tags if no.last <= t.first < mention.first and Cue.FINDING in t.roles]
    if not crossed:
        return False
    between = [sentence.word(at) for at in range(crossed[-1].last, mention.first)]
    spot = next((at for at in range(len(between) - 1, -1, -1) if between[at] in _OF_A_THING), None)
    return spot is not None and any(word in _DEFINITE for word in between[spot:])


def _denial(sentence: Sentence, mention: Mention) -> Tag | None:
    """The negation of a mention, before it, inside it or behind it."""
    answer = next((tag for tag in sentence.tags if tag.first == mention.last + 1), None)
    if answer and sentence.word(mention.last) == ":" and answer.last == len(sentence.tokens) and Cue.NO in answer.roles:
        return answer
    inside = [tag for tag in sentence.between(mention.first, mention.last) if Cue.NO in tag.roles]
    if inside and mention.implied:
        return inside[-1]
    before = _leftwards(sentence, mention, Cue.NO, (Cue.STOP, Cue.VERB), commas=True)
    if before is not None and not only_a_place(sentence, before) and not _is_of_a_known(sentence, before, mention):
        links = any(Cue.IS in tag.roles for tag in sentence.between(before.last, mention.first))
        if not links or sentence.word(before.first) == "no":
            return before
    behind = _rightwards(sentence, mention, Cue.NOT_SEEN, (Cue.STOP, Cue.VERB, Cue.NO, Cue.IS, Cue.MAYBE))
    return behind


def _favors(sentence: Sentence, over: int) -> bool:
    """Whether an "over" is that of "favors one over another"."""
    return any(sentence.word(at).startswith("favor") for at in range(over))


def _doubt_before(sentence: Sentence, mention: Mention) -> Tag | None:
    """A doubt before a mention: it reaches the next finding, and by "or" and "versus" those that follow."""
    ending = _by_first(sentence)
    at, linked, crossed = mention.first - 1, False, False
    while at >= 0:
        tag = ending.get(at)
        word = sentence.word(at)
        linked = linked or word in ("or", "versus", "vs") or (word == "over" and _favors(sentence, at))
        if tag is None:
            if word in ("with", ";"):
                return None
            at -= 1
            continue
        if Cue.MAYBE_LIST in tag.roles:
            return tag
        if Cue.MAYBE in tag.roles and Cue.FINDING not in tag.roles and not crossed:
            return tag
        if Cue.STOP in tag.roles or Cue.NO in tag.roles:
            return None
        if Cue.FINDING in tag.roles:
            crossed, linked = crossed or not linked, False
        at = tag.first - 1
    return None


def _doubt_behind(sentence: Sentence, mention: Mention) -> bool:
    """A doubt behind a mention, or an alternative to it that follows."""
    walls = (Cue.STOP, Cue.NO, Cue.FINDING)
    listed = _end_of_list(sentence, mention)
    if (tag := _rightwards(sentence, listed, Cue.MAYBE_BEFORE, walls)) is not None:
        sentence.used.add(tag.first)
        return True
    for at in range(mention.last, len(sentence.tokens)):
        if sentence.word(at) in ("versus", "vs") or (sentence.word(at) == "or" and not mention.denied):
            return any(Cue.FINDING in tag.roles for tag in sentence.tags if tag.first > at)
        if any(tag.first <= at < tag.last and Cue.FINDING in tag.roles for tag in sentence.tags):
            return False
        if sentence.word(at) in (",", "and", "with", ";"):
            return False
    return False


def _end_of_list(sentence: Sentence, mention: Mention) -> Mention:
    """The last finding of a bare list that a mention stands in ("lymphoma and metastasis")."""
    last = mention
    for tag in (tag for tag in sentence.tags if tag.first >= mention.last and Cue.FINDING in tag.roles):
        if any(sentence.word(at) not in _LISTED for at in range(last.last, tag.first)):
            break
        last = replace(last, first=tag.first, last=tag.last)
    return last


def judge(sentence: Sentence, mention: Mention) -> None:
    """Decide whether a mention is denied, doubted, or of the past."""
    no = _denial(sentence, mention)
    mention.denied = no is not None
    if no is not None:
        sentence.used.add(no.first)
    doubt = _doubt_before(sentence, mention)
    if doubt is not None:
        sentence.used.add(doubt.first)
    inside = mention.implied and any(Cue.MAYBE in tag.roles for tag in sentence.between(mention.first, mention.last))
    mention.maybe = inside or doubt is not None or _doubt_behind(sentence, mention)
    past = _leftwards(sentence, mention, Cue.PAST, (Cue.STOP, Cue.VERB, Cue.NO), commas=True)
    following = sentence.between(past.last, mention.first) if past else []
    with_after = past is not None and any(sentence.word(at) == "with" for at in range(past.last, mention.first))
    mention.past = past is not None and not with_after and not any(Cue.NOW in tag.roles for tag in following)
