"""Rendering of findings as report text: the language model's training target and the text of every painted case.

Sections are TECHNIQUE, FINDINGS, COMPARISON (of a follow-up only) and IMPRESSION; in FINDINGS the six classes come in a
fixed order and each is either stated or denied, so that every report covers all of them. The choice of wordings depends
on the seed alone. The sentences are in `phrases`; `parsing` reads them back without loss (sizes in whole millimetres).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from neuroflamingo.findings import phrases
from neuroflamingo.findings.changes import Comparison, change_order
from neuroflamingo.findings.vocabulary import FOCAL, LOBES, Certainty, Finding, FindingClass, Side, report_order

IMPRESSION = "\nIMPRESSION:"
_MARKUP = re.compile(r"\{(?P<field>\w+)\}|(?P<sign>[<>\[\]])|(?P<plain>[^<>\[\]{}]+)")


@dataclass(frozen=True)
class RenderedReport:
    """A report, and the ranges of its text that depend on the findings.

    `spans` are half-open character ranges of `text`, ascending and disjoint: words of presence and negation, class,
    side, region, size and grade in FINDINGS and IMPRESSION.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


class Habit(Random):
    """Consistent choices of one reporter: the same words for the same statement, negatives joined or each by itself."""

    def __init__(self, style: int, joined: bool = True) -> None:
        super().__init__(0)
        self.style, self.joined = style, joined

    def choice(self, seq: Any) -> Any:
        """The style's entry of a list."""
        return seq[self.style % len(seq)]

    def random(self) -> float:
        """0 to join, 1 to part."""
        return 0.0 if self.joined else 1.0


class Page:
    """Text under construction, with its spans."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: list[tuple[int, int]] = []

    def add(self, words: str, carries: bool = False) -> None:
        """Append words, as a span if they carry a finding; spans separated only by blanks are merged."""
        start = len(self.text)
        self.text += words
        if not carries or not words:
            return
        if self.spans and self.text[self.spans[-1][1] : start].strip() == "":
            start = self.spans.pop()[0]
        self.spans.append((start, len(self.text)))

    def sentence(self, template: str, fields: dict[str, str]) -> None:
        """Append one filled-in template, its first letter capital and its first word a span."""
        pieces = _fill(template, fields)
        first = next(i for i, (words, _) in enumerate(pieces) if words)
        head, carries = pieces[first]
        head = head[0].upper() + head[1:]
        if not carries:
            word, space, rest = head.partition(" ")
            self.add(word, True)
            self.add(space + rest)
        else:
            self.add(head, True)
        for words, carries in pieces[first + 1 :]:
            self.add(words, carries)


def _fill(template: str, fields: dict[str, str]) -> list[tuple[str, bool]]:
    """Pieces (words, carries a finding) of a template; optional groups with an empty field are omitted."""
    stack: list[tuple[list[tuple[str, bool]], bool]] = [([], True)]
    bracket = False
    for match in _MARKUP.finditer(template):
        pieces, complete = stack[-1]
        if match["field"]:
            words = fields.get(match["field"], "")
            pieces.append((words, True))
            stack[-1] = (pieces, complete and bool(words))
        elif match["plain"]:
            pieces.append((match["plain"], bracket))
        elif match["sign"] == "<":
            stack.append(([], True))
        elif match["sign"] == ">":
            stack.pop()
            if complete:
                stack[-1][0].extend(pieces)
        else:
            bracket = match["sign"] == "["
    return stack[0][0]


def _places(finding: Finding) -> tuple[str, str]:
    """Location of a finding, with its determiner ("the left frontal lobe") and without ("left frontal lobe")."""
    side, region = finding.side, finding.region
    if region is None:
        if side is None:
            return "", ""
        both = ("both hemispheres", "bilateral")
        one = ("the midline", "midline") if side is Side.MIDLINE else (f"the {side} hemisphere", f"{side} hemisphere")
        return both if side is Side.BILATERAL else one
    if side is Side.BILATERAL:
        both = f"both {region}s" if region in LOBES else f"both sides of the {region}"
        return both, f"bilateral {region}"
    words = f"{side} {region}" if side else str(region)
    return f"the {words}", words


def _fields(finding: Finding, random: Random) -> dict[str, str]:
    """Values of all fields of a sentence about a finding; empty if not stated."""
    at, place = _places(finding)
    level, adjectives = phrases.SIGNALS[finding.signal] if finding.signal else ("", ("",))
    grade, gradely = phrases.GRADES[finding.grade] if finding.grade else ("", "")
    possible = finding.certainty is Certainty.POSSIBLE
    return {
        "at": at,
        "place": place,
        "noun": random.choice(phrases.NOUNS[finding.kind]),
        "size": "" if finding.size_mm is None else f"{finding.size_mm:.0f}",
        "level": level,
        "adjective": random.choice(adjectives),
        "grade": grade,
        "gradely": gradely,
        "maybe": "possible" if possible else "",
        "maybely": "possibly" if possible else "",
    }


def state(page: Page, findings: Sequence[Finding], random: Random, brief: bool = False) -> None:
    """Write the positive sentences of one class."""
    for nth, finding in enumerate(findings):
        if brief:
            choices = phrases.BRIEF_SENTENCES[finding.kind]
        elif finding.kind in FOCAL:
            choices = phrases.FOCAL_SENTENCES + (phrases.FURTHER_SENTENCES if nth else ())
        else:
            choices = phrases.DIFFUSE_SENTENCES[finding.kind]
        fields = _fields(finding, random)
        usable = [choice for choice in choices if fields["at"] or "> affects {at}" not in choice]
        page.add(" ")
        page.sentence(random.choice(usable), fields)


def deny(page: Page, kinds: Sequence[FindingClass], random: Random) -> None:
    """Write the pertinent negatives of adjacent absent classes, joined or separately."""
    focal = [kind for kind in kinds if kind in FOCAL]
    for group in [focal] if random.random() < 0.75 else [[kind] for kind in focal]:
        if group:
            nouns = [random.choice(phrases.NEGATIVE_NOUNS[kind]) for kind in group]
            listed = ", ".join(nouns[:-1]) + (" or " if nouns[1:] else "") + nouns[-1]
            page.add(" ")
            page.sentence(random.choice(phrases.NEGATIVE_SENTENCES), {"list": listed})
    rest = tuple(kind for kind in kinds if kind not in FOCAL)
    while rest:
        joined = rest in phrases.NORMAL_SENTENCES and (len(rest) == 1 or random.random() < 0.5)
        group, rest = (rest, ()) if joined else (rest[:1], rest[1:])
        page.add(" ")
        page.sentence(random.choice(phrases.NORMAL_SENTENCES[group]), {})


def write_classes(
    page: Page,
    findings: Sequence[Finding],
    kinds: Sequence[FindingClass],
    random: Random,
    denials: Random,
    brief: bool = False,
) -> None:
    """Write each class in turn, stated or denied; absent ones are denied together as far as they are neighbours."""
    absent: list[FindingClass] = []
    for kind in kinds:
        present = [finding for finding in findings if finding.kind is kind]
        if present or (absent and kind in FOCAL and absent[-1] not in FOCAL):
            deny(page, absent, denials)
            absent = []
        if present:
            state(page, present, random, brief)
        else:
            absent.append(kind)
    deny(page, absent, denials)


def compare(page: Page, comparison: Comparison, random: Random, brief: bool = False) -> None:
    """Write the sentences of COMPARISON: one for each change, or that there is none, or that the heads differ."""
    if not comparison.same_head:
        page.add(" ")
        page.sentence(random.choice(phrases.DIFFERENT_HEADS), {})
    elif not comparison.changes:
        page.add(" ")
        page.sentence(random.choice(phrases.NO_CHANGE), {})
    for change in change_order(comparison.changes):
        finding, before = change.finding, change.before
        fields = _fields(finding, random)
        fields["was"] = "" if before is None or before.size_mm is None else f"{before.size_mm:.0f}"
        fields["formerly"] = phrases.GRADES[before.grade][0] if before and before.grade else ""
        plural = finding.kind is FindingClass.WHITE_MATTER_LESIONS
        fields |= {"has": "have", "is": "are"} if plural else {"has": "has", "is": "is"}
        if finding.kind in (FindingClass.WHITE_MATTER_LESIONS, FindingClass.VENTRICULAR_ENLARGEMENT):
            fields["at"] = fields["place"] = ""
        templates = (phrases.FOCAL_CHANGES if finding.kind in FOCAL else phrases.GRADED_CHANGES)[change.kind]
        page.add(" ")
        page.sentence(templates[-1] if brief else random.choice(templates), fields)


def conclude(page: Page, findings: Sequence[Finding], random: Random, mark: str = "{number}.") -> None:
    """Write a list of the findings, each after its mark, or that the brain is normal."""
    if not findings:
        page.add(" ")
        page.sentence(random.choice(phrases.NORMAL_IMPRESSIONS), {})
    for number, finding in enumerate(findings, start=1):
        diffuse = finding.kind in (FindingClass.WHITE_MATTER_LESIONS, FindingClass.VENTRICULAR_ENLARGEMENT)
        if mark:
            page.add(" ")
            page.add(mark.format(number=number), True)
        page.add(" ")
        page.sentence(random.choice(phrases.IMPRESSIONS["diffuse" if diffuse else "place"]), _fields(finding, random))


def render_report(
    findings: Sequence[Finding], seed: int, style: int | None = None, comparison: Comparison | None = None
) -> RenderedReport:
    """Render findings as a report.

    Args:
        findings: any number of findings, in any order; sizes are written in whole millimetres, missing attributes are
            omitted.
        seed: selects the wordings; the same findings and seed always give the same text.
        style: number of a reporting style, which words the same statement always alike; the seed is then unused.
        comparison: with an earlier scan, if the report is of a follow-up.

    Returns:
        The ASCII text (a line for each of three sections, four with a comparison) and the character ranges that carry
        findings.
    """
    random = Random(seed) if style is None else Habit(style)
    ordered = report_order(list(findings))
    page = Page()
    page.add(f"TECHNIQUE: {random.choice(phrases.TECHNIQUES)}\nFINDINGS:")
    write_classes(page, ordered, tuple(FindingClass), random, random)
    if comparison is not None:
        page.add("\nCOMPARISON:")
        compare(page, comparison, random)
    page.add(IMPRESSION)
    conclude(page, ordered, random)
    return RenderedReport(page.text, tuple(page.spans))
