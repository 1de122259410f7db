"""Mentions of one thing in a sentence made one finding: "a mass, likely a meningioma", "the lesion"."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from neuroflamingo.findings.vocabulary import Certainty
from neuroflamingo.reader.brain_findings import BY_NAME, DIFFUSE, GENERIC, SIGNS, WIDER
from neuroflamingo.reader.brain_report import ReadFinding
from neuroflamingo.reader.cues import Cue
from neuroflamingo.reader.scopes import Mention

if TYPE_CHECKING:
    from neuroflamingo.reader.scopes import Sentence


def fill(finding: ReadFinding, other: ReadFinding) -> ReadFinding | None:
    """A finding with what it leaves unsaid taken from another; None if they contradict each other."""
    clash = finding.side and other.side and finding.side is not other.side
    apart = finding.regions and other.regions and not set(finding.regions) & set(other.regions)
    sizes = finding.size_mm is not None and other.size_mm is not None and finding.size_mm != other.size_mm
    if clash or apart or sizes:
        return None
    return replace(
        finding,
        side=finding.side or other.side,
        regions=finding.regions or other.regions,
        size_mm=other.size_mm if finding.size_mm is None else finding.size_mm,
        dimensions_mm=finding.dimensions_mm or other.dimensions_mm,
        previous_mm=other.previous_mm if finding.previous_mm is None else finding.previous_mm,
        grade=finding.grade or other.grade,
        change=finding.change or other.change,
    )


def _both_mentions(last: Mention, mention: Mention) -> Mention:
    """The two mentions as one, from the first token of the one to the last of the other."""
    return replace(last, last=mention.last, name=mention.name)


def _surer(finding: ReadFinding, other: ReadFinding) -> ReadFinding:
    """A finding that is stated twice is as certain as the surer statement."""
    return replace(finding, certainty=min(finding.certainty, other.certainty, key=list(Certainty).index))


def _located(finding: ReadFinding, seen: ReadFinding) -> ReadFinding:
    """A finding with the place of what is seen of it ("edema of the right cerebellum, consistent with an infarct")."""
    if seen.name in DIFFUSE:
        return finding
    return fill(finding, replace(seen, regions=() if finding.regions else seen.regions)) or finding


def _brought_home(stated: list[ReadFinding], denied: list[ReadFinding]) -> list[ReadFinding]:
    """A stated finding with the place behind a denied one ("an infarct, not a tumor: left parietal lobe")."""
    bare = len(stated) == 1 and stated[0].side is None and not stated[0].regions
    return [fill(stated[0], denied[0]) or stated[0]] if bare and denied[0].regions else stated


def _identified(sentence: Sentence, left: Mention, right: Mention) -> bool:
    """Whether a mention names the one before it: "a mass, likely a meningioma"."""
    tags = sentence.between(left.last, right.first)
    if any(Cue.STOP in tag.roles or Cue.NO in tag.roles or Cue.MAYBE_LIST in tag.roles for tag in tags):
        return False
    between = " ".join(token.word for token in sentence.tokens[left.last : right.first])
    if re.search(r"\b(?:due|secondary|related) to\b|\bor\b|\bversus\b|\bvs\b|result of", between):
        return False
    return any(Cue.IS in tag.roles or (Cue.MAYBE in tag.roles) for tag in tags)


def _one_thing(
    earlier: list[ReadFinding], findings: list[ReadFinding], *, same: bool, names: bool
) -> list[ReadFinding] | None:
    """The findings of two mentions as those of one, or None if they are two things."""
    first, second = earlier[0], findings[0]
    bare = second.side is None and not second.regions and second.size_mm is None
    unplaced = first.side is None and not first.regions and first.size_mm is None
    if same and (len(earlier) == 1 or bare):
        if bare:
            return earlier if len(earlier) > 1 else [_surer(fill(first, second) or first, second)]
        if (unplaced or names or first.name in DIFFUSE) and len(earlier) == 1:
            merged = [fill(finding, first) for finding in findings]
            return [_surer(m, first) for m in merged if m] if all(merged) else None
    if second.name in WIDER.get(first.name, ()) and (bare or unplaced) and len(findings) == 1:
        merged = [fill(finding, second) for finding in earlier]
        return [m for m in merged if m] if all(merged) else None
    general = first.name in (*GENERIC, "white matter lesions") and second.name not in (*GENERIC, *SIGNS, "enhancement")
    if names and general and BY_NAME.get(second.name):
        merged = [fill(second, finding) for finding in earlier]
        sure = first.certainty is Certainty.DEFINITE and second.certainty is Certainty.POSSIBLE
        return [replace(m, seen_as=first.name if sure else None) for m in merged if m] if all(merged) else None
    return None


_ATTENDANT = (*SIGNS, "enhancement", "calcification", "restricted diffusion", "swelling", "cyst", "invasion")
_WITHOUT_A_SIZE = ("postoperative change", "mass effect", "edema", "necrosis", "herniation", "hydrocephalus")
Kept = list[tuple[Mention, list[ReadFinding]]]


def _named_by(kept: Kept, mention: Mention, *, names: bool) -> int:
    """Place of what a mention may name: the last, or behind its signs the general finding."""
    if not names or mention.name in _ATTENDANT:
        return len(kept) - 1
    for at in range(len(kept) - 1, -1, -1):
        found = kept[at][0]
        if not found.denied and found.name in GENERIC:
            return at
        if not found.denied and found.name not in _ATTENDANT:
            break
    return len(kept) - 1


def merge(sentence: Sentence, mentions: list[Mention], found: list[list[ReadFinding]]) -> Kept:
    """Mentions of one thing made one, and places brought from a named sign to what it is a sign of."""
    kept: Kept = []
    for mention, findings in zip(mentions, found, strict=True):
        names = bool(kept) and not mention.denied and _identified(sentence, kept[-1][0], mention)
        names = names and not _is_within(sentence, kept[-1][0])
        at = _named_by(kept, mention, names=names)
        if not kept or mention.denied or kept[at][0].denied or mention.past or kept[at][0].past:
            if kept and mention.denied and not kept[-1][0].denied:
                kept[-1] = (kept[-1][0], _brought_home(kept[-1][1], findings))
            left_over = kept and kept[-1][0].past and not mention.denied and not mention.past
            if left_over and mention.name in WIDER.get(kept[-1][1][0].name, ()):
                findings = [_lent(finding, kept[-1][1][0]) for finding in findings]
            kept.append((mention, findings))
            continue
        if _says_again(kept, findings):
            continue
        last, earlier = kept[at]
        wider = mention.name in WIDER.get(earlier[0].name, ())
        same = findings[0].name == earlier[0].name or (wider and mention.back)
        if last.implied and same:
            earlier = [replace(finding, certainty=findings[0].certainty) for finding in earlier]
        merged = _one_thing(earlier, findings, same=same, names=names)
        if merged is not None:
            kept[at] = (_both_mentions(last, mention), merged)
            continue
        if _is_alternative(sentence, last, mention) and len(earlier) == len(findings) == 1:
            kept[at] = (last, [fill(earlier[0], findings[0]) or earlier[0]])
            findings = [fill(findings[0], earlier[0]) or findings[0]]
        elif names and len(earlier) == 1:
            findings = [_located(finding, earlier[0]) for finding in findings]
        elif len(earlier) == 1 and (
            mention.name in (*SIGNS, "enhancement") or _shares_a_place(sentence, last, mention)
        ):
            kept[at] = (last, [_lent(earlier[0], findings[0])])
        if mention.name in _WITHOUT_A_SIZE and len(kept[at][1]) == 1:
            kept[at] = (kept[at][0], [_sized(kept[at][1][0], findings[0])])
            findings = [replace(finding, size_mm=None, dimensions_mm=()) for finding in findings]
        kept.append((mention, findings))
    return kept


def _sized(finding: ReadFinding, sign: ReadFinding) -> ReadFinding:
    """A finding with the size that stands behind its sign ("a meningioma with mass effect, 26 mm")."""
    if finding.size_mm is not None or sign.size_mm is None:
        return finding
    return replace(finding, size_mm=sign.size_mm, dimensions_mm=sign.dimensions_mm)


def _is_within(sentence: Sentence, mention: Mention) -> bool:
    """Whether a mention only says where another thing is ("foci within the lesion indicate hemorrhage")."""
    before = [sentence.word(at) for at in range(mention.first - 3, mention.first)]
    return mention.back and not {"within", "in", "inside", "around", "of"}.isdisjoint(before)


def _says_again(kept: Kept, findings: list[ReadFinding]) -> bool:
    """Whether findings only name again, without a place or size, what stands earlier in the sentence."""
    bare = all(f.side is None and not f.regions and f.size_mm is None for f in findings)
    before = [finding.name for mention, earlier in kept[:-1] if not mention.denied for finding in earlier]
    return bare and findings[0].name in before


def _is_alternative(sentence: Sentence, last: Mention, mention: Mention) -> bool:
    """Whether two doubtful mentions are alternatives: "abscess versus metastasis"."""
    words = {sentence.word(at) for at in range(last.last, mention.first)}
    return last.maybe and mention.maybe and not words.isdisjoint({"versus", "vs", "or"})


def _shares_a_place(sentence: Sentence, last: Mention, mention: Mention) -> bool:
    """Whether two findings are listed before one place: "encephalomalacia and gliosis in the left frontal lobe"."""
    return all(sentence.word(at) in ("and", "or", ",") for at in range(last.last, mention.first))


def _lent(finding: ReadFinding, sign: ReadFinding) -> ReadFinding:
    """A finding without a place, with that of its sign ("a mass with edema in the left frontal lobe")."""
    if finding.side is not None or finding.regions or sign.name == "midline shift":
        return finding
    place = replace(sign, size_mm=None, dimensions_mm=(), grade=None, change=None, previous_mm=None)
    return fill(finding, place) or finding
