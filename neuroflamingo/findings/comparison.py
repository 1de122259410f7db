"""Reading what a report says has changed since the scan before, by fixed rules.

The sentences of COMPARISON that `wording` and `house_styles` write are read without loss of kind, place, sizes and
grades; other people's words as far as the patterns below know them. What COMPARISON leaves unsaid of a finding that is
still there is taken from FINDINGS. Reading never raises, whatever the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from neuroflamingo.findings.changes import SAME_MM, Change, ChangeKind, Comparison, change_between, change_order
from neuroflamingo.findings.lexicon import Match, Tag, plain, tag
from neuroflamingo.findings.parsing import named_sections, parse_report, place_key, sentence_ranges
from neuroflamingo.findings.statements import complete, read_sentence, segments
from neuroflamingo.findings.vocabulary import FOCAL, Finding, FindingClass, Region, Side

_GROWN = (
    r"larger|bigger|grown|growth|grew|increased?|increasing|enlarg(?:ed|ement|ing)|progress(?:ed|ion|ive)|expanded"
    r"|worse|worsen(?:ed|ing)"
)
_SHRUNK = (
    r"smaller|shr[au]nk(?:en)?|shrinkage|decreased?|decreasing|reduced|reduction|regress(?:ed|ion)|diminished"
    r"|better|improve(?:d|ment)"
)
_SEEN = r"(?:seen|visible|present|identified|detected|found|evident|demonstrated)"
_THEN = r"(?:on|in) the (?:previous|prior|earlier|first|baseline)"
_WORDS = (
    (
        ChangeKind.UNCHANGED,
        rf"(?:no|not|without)(?: \w+){{0,3}}? (?:changed?s?|differences?|{_GROWN}|{_SHRUNK})|nothing has changed"
        r"|unchanged|stable|constant|persist(?:s|ent)|as before|same (?:size|as)|similar (?:in size|to)",
    ),
    (
        ChangeKind.NEW,
        rf"new(?:ly)?|(?:has|have) appeared|not (?:previously )?{_SEEN} (?:before|previously|{_THEN})"
        rf"|not previously {_SEEN}|(?:appearance|development) of",
    ),
    (
        ChangeKind.GONE,
        rf"no longer {_SEEN}|resolved|resolution of|gone|(?:has|have) disappeared|disappearance of"
        rf"|not {_SEEN} (?:any ?more|any longer|now|today|(?:on|in) (?:the )?(?:current|present|today s|follow up))",
    ),
    (ChangeKind.LARGER, _GROWN),
    (ChangeKind.SMALLER, _SHRUNK),
)
_CHANGE = re.compile(
    "|".join(rf"(?P<k{at}>\b(?:{words})\b)(?! (?:t1 )?(?:signal|intensity))" for at, (_, words) in enumerate(_WORDS))
)
_AMOUNT = rf"(?!enlarg)(?:{_GROWN}|{_SHRUNK})"
_CHANGE_AFTER = re.compile(rf"^ (?:interval )?{_AMOUNT}\b")
_CHANGE_BEFORE = re.compile(rf"\b{_AMOUNT} $")
_VERSUS = re.compile(r"\bvs\.", re.IGNORECASE)
_NOT_NEW = re.compile(r"\bno (?:evidence of |sign of )?(?:an? )?new\b|\bno (?:other|further|additional)\b")
_TIMED = re.compile(
    r"\b(?:previous(?:ly)?|prior|before|formerly|interval|since|compar(?:ed|ison)|versus|vs|unchanged|stable|new(?:ly)?"
    r"|resolved|resolution of|no longer|now|larger|smaller|similar (?:in size|to)|(?:de|in)crease in size|from \d"
    r"|(?:has|have)(?: not)?(?: \w+)? "
    r"(?:grown|shrunk|enlarged|increased|decreased|(?:progress|regress|disappear|appear)ed)"
    r")\b(?! than (?:expected|normal|usual))"
)
_DIFFERENT = re.compile(
    r"\bdifferent (?:heads?|people|persons?|patients?|brains?|subjects?)\b"
    r"|\bnot (?:of |show |from )?the same (?:head|person|patient|brain|subject)\b"
)
_MOVED = re.compile(r"\b(?:has|have|interval|further|progressive)(?: been)? $")
_NO_COMPARISON = re.compile(r"\bno comparison\b")
_REST = re.compile(r"\b(?:other|otherwise|else|remaining|remainder|rest)\b")

_NUMBER = r"\d{1,3}(?:[.,]\d{1,3})?"
_LENGTHS = rf"{_NUMBER}(?: ?(?:x|×|by) ?{_NUMBER})*"
_UNIT = r"(?:mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)"
_FROM_TO = re.compile(rf"\bfrom (?P<was>{_LENGTHS}) ?(?P<unit>{_UNIT})? to (?P<now>{_LENGTHS}) ?(?P<last>{_UNIT})\b")
_SIZE = re.compile(rf"(?<![\d.,])(?P<now>{_LENGTHS}) ?(?P<last>{_UNIT})\b")
_BY = re.compile(r"\bby (?:about |some )?$")
_GRADES_FROM_TO = re.compile(r"\bfrom (?P<was>(?:grade )?\w+) to (?P<now>(?:grade )?\w+)")
_BEFORE = (
    r"(?<!than )\b(?:previous(?:ly)?|before|formerly|prior|earlier|initially|originally|from|was|were"
    r"|compared (?:to|with)|versus|vs)\b"
)
_EARLIER = re.compile(rf"{_BEFORE}(?: (?!now\b)\w+){{0,3}}[ (]*$")
_LATER = re.compile(rf"^ (?:\w+ ){{0,2}}?(?:before|previously|earlier|{_THEN}\b)")


@dataclass(frozen=True)
class ParsedComparison:
    """What a report says of the change since the scan before.

    `changes` are in the order of the text. `same_head` is False if the text says that the heads differ. `nothing` says
    that it states that nothing has changed. `coverage` is the share of sentences of COMPARISON that were understood (0
    without that section), `unparsed` are the others. `contradictions` say in words where COMPARISON disagrees with
    itself or with FINDINGS.
    """

    changes: tuple[Change, ...]
    same_head: bool
    nothing: bool
    has_section: bool
    coverage: float
    unparsed: tuple[str, ...]
    contradictions: tuple[str, ...]

    @property
    def stated(self) -> bool:
        """Whether the text compares at all, or says why it does not."""
        return bool(self.changes) or self.nothing or not self.same_head

    @property
    def comparison(self) -> Comparison:
        """The same as a comparison; of different heads it has no changes."""
        return Comparison(same_head=self.same_head, changes=change_order(self.changes) if self.same_head else ())


@dataclass
class _Stated:
    """One change as far as a sentence states it: place, kind and the attributes before and after."""

    finding: Finding
    kind: ChangeKind | None
    was: dict[str, Any] = field(default_factory=dict[str, Any])
    now: dict[str, Any] = field(default_factory=dict[str, Any])

    def change(self) -> Change | None:
        """As a change; None if no kind is stated, and the sizes do not say it."""
        before, after = (self.finding.model_copy(update=seen) for seen in (self.was, self.now))
        if self.kind is None:
            return change_between(before, after) if self.was and self.now else None
        return Change(
            kind=self.kind,
            before=None if self.kind is ChangeKind.NEW else before,
            after=None if self.kind is ChangeKind.GONE else after,
        )


def _millimetres(lengths: str, unit: str) -> float:
    longest = max(float(number.replace(",", ".")) for number in re.findall(_NUMBER, lengths))
    return round(longest * (10 if unit.startswith("c") else 1), 2)


def _sizes(words: str) -> tuple[float | None, float | None]:
    """Diameters before and now in mm, as far as stated."""
    if both := _FROM_TO.search(words):
        return _millimetres(both["was"], both["unit"] or both["last"]), _millimetres(both["now"], both["last"])
    was, now = None, None
    last_end = 0
    for size in _SIZE.finditer(words):
        length = _millimetres(size["now"], size["last"])
        lead, last_end = words[last_end : size.start()], size.end()
        if _BY.search(lead):
            continue
        following = _SIZE.search(words, size.end())
        trail = words[size.end() : following.start() if following else len(words)]
        if _EARLIER.search(lead) or (not following and _LATER.search(trail)):
            was = length
        else:
            now = length if now is None else now
    return was, now


def _grade(words: str) -> Any:
    """Grade that words name, or None."""
    return next((found.value for found in tag(words) if found.tag is Tag.GRADE), None)


def _grades(words: str) -> tuple[int | None, int | None]:
    """Grades before and now, as far as stated."""
    for both in _GRADES_FROM_TO.finditer(words):
        was, now = _grade(both["was"]), _grade(both["now"])
        if was and now:
            return was, now
    was, now = None, None
    for found in tag(words):
        if found.tag is Tag.GRADE and not _of_a_change(words, found):
            if _EARLIER.search(words[: found.start]):
                was = found.value
            else:
                now = found.value if now is None else now
    return was, now  # type: ignore[return-value]


def _of_a_change(words: str, grade: Match) -> bool:
    """Whether a grade says how much has changed ("slight increase", "increased markedly"), not what is there."""
    before, after = words[: grade.start], words[grade.end :]
    return bool(_CHANGE_AFTER.search(after)) or (
        words[grade.start : grade.end].endswith("ly") and bool(_CHANGE_BEFORE.search(before))
    )


def _attributes(kind: FindingClass, change: ChangeKind | None, words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a clause states of the finding on the baseline and on the follow-up."""
    name = "size_mm" if kind in FOCAL else "grade"
    was, now = _sizes(words) if kind in FOCAL else _grades(words)
    if change is ChangeKind.GONE:
        was, now = was or now, None
    if change is ChangeKind.NEW:
        was = None
    if change is ChangeKind.UNCHANGED:
        was, now = was or now, now or was
    return ({name: was} if was else {}), ({name: now} if now else {})


def _kind(words: str, nouns: list[tuple[int, int]], denied: bool = False) -> ChangeKind | None:
    """Kind of change that a clause states: the one nearest to the finding's name.

    A change in the name itself ("enlargement") counts last. Of a finding that is denied only changes count that say so
    themselves ("no longer seen"): "no infarct, unchanged" is no unchanged infarct.
    """
    found = list(_CHANGE.finditer(words))
    outside = [m for m in found if not any(a <= m.start() and m.end() <= b for a, b in nouns)]
    moved = [m for m in found if _MOVED.search(words[: m.start()]) or m.group() in ("larger", "bigger")]

    def distance(match: re.Match[str]) -> int:
        return min((max(a - match.end(), match.start() - b) for a, b in nouns if 0 <= a < len(words)), default=0)

    nearest = min(outside or moved, key=distance, default=None)
    if nearest is None:
        return None
    kind = _WORDS[int(str(nearest.lastgroup)[1:])][0]
    return (
        None if denied and kind is not ChangeKind.GONE and not nearest.group().startswith(("no", "without")) else kind
    )


def _read(clean: str, tags: list[Match], start: int, end: int) -> list[_Stated]:
    """Changes that one sentence states, each finding by itself."""
    here = [found for found in tags if start <= found.start and found.end <= end]
    changed = {match.span() for match in _CHANGE.finditer(clean, start, end)}
    named = [found for found in here if found.tag is not Tag.CLASS or (found.start, found.end) not in changed]
    mentions = read_sentence(clean, named, start, end).mentions or read_sentence(clean, here, start, end).mentions
    if not mentions:
        return _of_ventricles(clean[start:end], here)
    nouns = [(mention.start, mention.end) for mention in mentions]
    ranges = segments(clean, mentions, start, end)
    kinds = [
        _kind(clean[a:b], [(x - a, y - a) for x, y in nouns], mention.denied)
        for mention, (a, b) in zip(mentions, ranges, strict=True)
    ]
    stated: list[_Stated] = []
    denied = False
    for at, (mention, (a, b)) in enumerate(zip(mentions, ranges, strict=True)):
        denied = bool(_NOT_NEW.search(clean[a:b])) or (denied and kinds[at] is None)
        if denied:
            continue
        shared = None if mention.denied else next((k for k in [*reversed(kinds[:at]), *kinds[at:]] if k), None)
        kind = kinds[at] or shared
        was, now = _attributes(mention.kind, kind, clean[a:b])
        for finding in mention.findings:
            bare = Finding(kind=finding.kind, side=finding.side, region=finding.region)
            stated.append(_Stated(bare, kind, was, now))
    return stated


def _of_ventricles(words: str, tags: list[Match]) -> list[_Stated]:
    """Larger or smaller ventricles, which no class names."""
    kind = _kind(words, [])
    if kind not in (ChangeKind.LARGER, ChangeKind.SMALLER):
        return []
    if not any(found.tag is Tag.STRUCTURE and found.value == "ventricles" for found in tags):
        return []
    ventricles = FindingClass.VENTRICULAR_ENLARGEMENT
    finding = Finding(kind=ventricles, side=Side.BILATERAL, region=Region.VENTRICLES)
    return [_Stated(finding, kind, *_attributes(ventricles, kind, words))]


@dataclass
class _Reading:
    """What has been read of a section so far."""

    stated: list[_Stated] = field(default_factory=list[_Stated])
    different: bool = False
    rest_unchanged: bool = False

    def add(self, clean: str, tags: list[Match], start: int, end: int) -> bool:
        """Read one sentence; True if it was understood."""
        words = clean[start:end]
        if _DIFFERENT.search(words):
            self.different = True
            return True
        if _NO_COMPARISON.search(words):
            return True
        found = [one for one in _read(clean, tags, start, end) if one.change()]
        self.stated += found
        if found:
            return True
        if _NOT_NEW.search(words) or self._more_of_the_last(words):
            return True
        named = any(t.tag in (Tag.CLASS, Tag.STRUCTURE) for t in tags if start <= t.start and t.end <= end)
        unchanged = _kind(words, []) is ChangeKind.UNCHANGED and not named
        self.rest_unchanged |= unchanged
        return unchanged

    def _more_of_the_last(self, words: str) -> bool:
        """Take sizes of a sentence about the same finding ("It was 15 mm before.")."""
        if not self.stated or self.stated[-1].was or self.stated[-1].now or not _SIZE.search(words):
            return False
        last = self.stated[-1]
        last.was, last.now = _attributes(last.finding.kind, last.kind, words)
        return bool(last.was or last.now)


def _completed(changes: list[Change], findings: tuple[Finding, ...]) -> tuple[list[Change], list[Finding]]:
    """Changes with what FINDINGS adds to them, and the findings of which none speaks."""
    left = list(findings)
    done = list(changes)
    sized = [at for at, change in enumerate(changes) if change.after and (change.after.size_mm or change.after.grade)]
    for at in sized + [at for at in range(len(changes)) if at not in sized]:
        after = changes[at].after
        for finding in left if after else []:
            whole = complete(after, finding) if after and after.kind is finding.kind else None
            if whole is None:
                continue
            left.remove(finding)
            before = changes[at].before
            if before is not None:
                before = before.model_copy(update={"side": whole.side, "region": whole.region})
                if changes[at].kind is ChangeKind.UNCHANGED:
                    before = complete(before, whole) or before
            done[at] = changes[at].model_copy(update={"before": before, "after": whole})
            break
    return done, left


def _words(finding: Finding) -> str:
    return " ".join(str(part) for part in (finding.side, finding.region, finding.kind) if part)


def _contradictions(changes: list[Change], findings: tuple[Finding, ...], unsaid: list[Finding]) -> list[str]:
    """Where COMPARISON disagrees with FINDINGS or with its own sizes."""
    places = {place_key(finding) for finding in findings}
    spare = {place_key(finding) for finding in unsaid}
    found = [f"{_words(finding)} in FINDINGS but not in COMPARISON" for finding in unsaid] if changes else []
    for change in changes:
        key = place_key(change.finding)
        if change.kind is ChangeKind.GONE and key in spare:
            found.append(f"{_words(change.finding)} gone in COMPARISON but in FINDINGS")
        elif change.kind is not ChangeKind.GONE and key not in places:
            found.append(f"{_words(change.finding)} in COMPARISON but not in FINDINGS")
        moved = change.size_change_mm or 0.0
        if (
            (change.kind is ChangeKind.LARGER and moved < 0)
            or (change.kind is ChangeKind.SMALLER and moved > 0)
            or (change.kind is ChangeKind.UNCHANGED and abs(moved) >= SAME_MM)
        ):
            found.append(f"{_words(change.finding)} {change.kind}, but its size changes by {moved:+g} mm")
    return found


def parse_comparison(text: str) -> ParsedComparison:
    """Read what a report says has changed.

    Args:
        text: a whole report. Without a COMPARISON section, or if that says nothing of change (it may only name the scan
            before), FINDINGS and IMPRESSION are searched for words of change.

    Returns:
        The changes, sizes in mm. What FINDINGS states of a finding that is still there completes its change.
    """
    sections, body = named_sections(text)
    text = _VERSUS.sub("vs ", text)
    clean = _VERSUS.sub("vs ", plain(body))
    tags = tag(clean)
    reading, missed, count = _Reading(), list[str](), 0
    for name, start, end in sections:
        for left, right in sentence_ranges(text, start, end) if name == "comparison" else []:
            count += 1
            if not reading.add(clean, tags, left, right):
                missed.append(text[left:right])
    in_section = reading != _Reading()
    for part in ("findings", "impression"):
        for name, start, end in sections if reading == _Reading() else []:
            for left, right in sentence_ranges(text, start, end) if name == part else []:
                if _TIMED.search(clean[left:right]):
                    reading.add(clean, tags, left, right)
    findings = parse_report(text).findings
    changes, unsaid = _completed([c for c in (one.change() for one in reading.stated) if c], findings)
    nothing = reading.rest_unchanged and not changes
    if reading.rest_unchanged:
        changes += [Change(kind=ChangeKind.UNCHANGED, before=finding, after=finding) for finding in unsaid]
        unsaid = []
    contradictions = _contradictions(changes, findings, unsaid) if in_section else []
    if reading.different and changes:
        contradictions.append("different heads, and yet changes")
    return ParsedComparison(
        changes=tuple(changes),
        same_head=not reading.different,
        nothing=nothing,
        has_section=count > 0,
        coverage=1 - len(missed) / count if count else 0.0,
        unparsed=tuple(missed),
        contradictions=tuple(contradictions),
    )
