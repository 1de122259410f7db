"""`read_text`: read anyone's report of a brain scan into findings, by fixed rules and without a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from neuroflamingo.findings.vocabulary import Certainty
from neuroflamingo.reader.brain_findings import SIGNS, WIDER
from neuroflamingo.reader.brain_report import BrainReport, ReadFinding, ReadSentence
from neuroflamingo.reader.cues import Cue
from neuroflamingo.reader.joined_findings import fill
from neuroflamingo.reader.report_layout import Stretch, check_language, is_note, sentences_of, stretches_of
from neuroflamingo.reader.scopes import mentions_of
from neuroflamingo.reader.sentence_content import Content, content_of, sentence_from

if TYPE_CHECKING:
    from neuroflamingo.reader.scopes import Sentence
    from neuroflamingo.reader.stated_places import Stated

MOST_BACK = 100
"""How many of the latest findings a sentence may speak of again."""
_ANSWERS_YES = ("yes", "present")
_ANSWERS_NO = ("no", "none", "absent", "negative")
_GO_ON = ("this", "these", "there", "it", "the", "no", "multiple", "findings", "upon")


class _Reading:
    """Findings gathered so far, while the sentences of a report are read in order."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.findings: list[ReadFinding] = []
        self.past: list[ReadFinding] = []
        self.absent: set[str] = set()
        self.absent_anywhere: set[str] = set()
        self.sentences: list[ReadSentence] = []
        self.repeated: set[int] = set()

    def add(self, stretch: Stretch, content: Content) -> None:
        """Take in a sentence."""
        absent = set(content.absent)
        for finding, back in content.stated:
            placed = replace(
                finding, start=finding.start + stretch.start, end=finding.end + stretch.start, section=stretch.section
            )
            self._state(placed, back=back)
        self.past += [replace(p, start=p.start + stretch.start, end=p.end + stretch.start) for p in content.past]
        self.absent |= absent
        self.absent_anywhere |= content.absent_anywhere
        if content.loose is not None:
            self._complete(content.loose, another=content.another)
        text = self.text[stretch.start : stretch.end]
        self.sentences.append(
            ReadSentence(stretch.start, stretch.end, text, stretch.section, content.share, content.unread)
        )

    def _state(self, finding: ReadFinding, *, back: bool) -> None:
        """Add a finding, or complete the earlier one that it speaks of again; an impression repeats each once."""
        concludes = finding.section == "impression"
        for at in self._candidates(finding, concludes=concludes) if back or concludes else ():
            earlier = self.findings[at]
            same = earlier.name == finding.name
            wider = finding.name in WIDER.get(earlier.name, ())
            closer = earlier.name in WIDER.get(finding.name, ())
            merged = fill(earlier, finding) if same or wider else fill(finding, earlier) if closer else None
            if merged is None and (same or wider) and back and finding.side is None and finding.size_mm is None:
                merged = earlier  # "the tumor" goes on to another place
            if merged is not None:
                sure = earlier.certainty is Certainty.DEFINITE and finding.certainty is Certainty.POSSIBLE
                if closer and not same and not wider and sure:
                    merged = replace(merged, seen_as=earlier.name)
                self.findings[at] = replace(merged, section=earlier.section)
                self.repeated |= {at} if concludes else set[int]()
                return
        self.findings.append(finding)

    def _candidates(self, finding: ReadFinding, *, concludes: bool) -> list[int]:
        """Earlier findings that one may speak of again: those at its place first, else the latest."""
        count = len(self.findings)
        found = [at for at in range(max(0, count - MOST_BACK), count) if not (concludes and at in self.repeated)]

        def key(at: int) -> tuple[bool, bool, int]:
            other = self.findings[at]
            here = (other.side, other.regions) == (finding.side, finding.regions)
            return here, other.grade == finding.grade, -at if concludes else at

        return sorted(found, key=key, reverse=True)

    def _complete(self, loose: Stated, *, another: bool) -> None:
        """Complete the last finding that can have a place and a size, or add one more of its name."""
        spot = next((at for at in range(len(self.findings) - 1, -1, -1) if self.findings[at].name not in SIGNS), None)
        if spot is None:
            return
        place = loose.places[0]
        size = max(place.sizes, key=max, default=())
        last = self.findings[spot]
        other = replace(
            last,
            side=place.side,
            regions=tuple(place.regions),
            size_mm=max(size, default=None),
            dimensions_mm=size,
            previous_mm=loose.previous_mm,
            grade=None,
            change=loose.change,
        )
        if another:
            self.findings.append(other)
        else:
            self.findings[spot] = fill(last, other) or last

    def report(self) -> BrainReport:
        """The report as a whole: lesions with signs of a mass are masses, and what contradicts itself is listed."""
        if any(finding.name in (*SIGNS, "invasion") for finding in self.findings):
            self.findings = [
                replace(f, name="mass") if f.name == "lesion" and f.certainty is Certainty.DEFINITE else f
                for f in self.findings
            ]
        told = [
            sentence.share for sentence in self.sentences if sentence.share is not None and sentence.section != "silent"
        ]
        return BrainReport(
            findings=tuple(self.findings),
            absent=frozenset(self.absent),
            past=tuple(self.past),
            contradictions=tuple(_contradictions(self.findings, self.absent_anywhere)),
            coverage=sum(told) / len(told) if told else 0.0,
            sentences=tuple(self.sentences),
        )


def _contradictions(findings: Iterable[ReadFinding], absent: set[str]) -> list[str]:
    """Findings both stated and denied, and sides on which the two sections disagree."""
    found = list(findings)
    names = dict.fromkeys(f.name for f in found if f.certainty is Certainty.DEFINITE)
    words = [f"{name} both stated and denied" for name in names if name in absent]
    for name in names:
        body = {f.side for f in found if f.name == name and f.section == "findings" and f.side}
        end = {f.side for f in found if f.name == name and f.section == "impression" and f.side}
        if body and end and not body & end:
            words.append(f"{name}: {', '.join(sorted(body))} in FINDINGS, {', '.join(sorted(end))} in IMPRESSION")
    return words


def _speaks_of_images(sentence: Sentence, chained: bool) -> bool:
    """Whether a sentence of a clinical note reports imaging."""
    cues = {cue for tag in sentence.tags for cue in tag.roles}
    goes_on = sentence.word(0) in _GO_ON or Cue.MAYBE_BEFORE in cues
    return (Cue.IMAGING in cues and Cue.SHOWS in cues) or (chained and goes_on)


def read_text(text: str, name: str = "the report") -> BrainReport:
    """Read a report.

    Args:
        text: in English, with or without sections; technique, indication and history state nothing.
        name: of the report, for messages.

    Returns:
        Its findings, what it denies, and how far it was read; sizes in mm.

    Raises:
        ScanError: the text is in another language (exit 65).
    """
    check_language(text, name)
    note, chained = is_note(text), False
    reading = _Reading(text)
    asked: set[str] = set()
    question: Stretch | None = None
    for stretch in stretches_of(text):
        for part in sentences_of(text, stretch):
            words = text[part.start : part.end]
            if stretch.section == "silent":
                reading.sentences.append(ReadSentence(part.start, part.end, words, "silent", None))
                continue
            sentence = sentence_from(words, words.endswith("?"))
            if note and stretch.section == "note":
                told = _speaks_of_images(sentence, chained)
                chained = told or any(Cue.IMAGING in tag.roles for tag in sentence.tags)
                if not told:
                    reading.sentences.append(ReadSentence(part.start, part.end, words, "silent", None))
                    continue
                part = part._replace(section="findings")
            if asked and sentence.word(0) in _ANSWERS_NO and len(sentence.tokens) <= 2:
                reading.add(part, Content(absent=asked, absent_anywhere=asked, share=1.0))
                asked = set()
                continue
            if question is not None and sentence.word(0) in _ANSWERS_YES:
                part = part._replace(start=question.start)
                sentence = sentence_from(text[part.start : part.end], question=False)
            question = part if words.endswith("?") else None
            content = content_of(sentence)
            asked = {mention.name for mention in mentions_of(sentence)} if sentence.question else set[str]()
            reading.add(part, content)
    return reading.report()
