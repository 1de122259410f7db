"""Layout of a report: its sections, its sentences, and the language that it is written in."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from neuroflamingo_preprocessing.errors import ScanError

_NAMES = {
    "findings": "findings?|reports?|body|description|observations?|results?|interpretation(?: of images)?|discussion"
    "|mri findings|ct findings|mr findings|brain findings|radiological findings|imaging findings",
    "impression": "impressions?|conclusions?|summary|opinion|assessment|diagnos[ie]s|final diagnosis"
    "|impression and recommendations?|radiological diagnosis|final impression",
    "silent": "techniques?|protocol|procedures?|sequences?|(?:clinical |medical |patient "
    ")?(?:history|information|details|data"
    "|indications?|context|question|background|notes?)|indications? for (?:procedure|exam|study)|reason for "
    "(?:the )?(?:exam"
    "(?:ination)?|study|visit|scan|consultation)|examinations?|exam|contrast|comparisons?(?: examination| studies)?"
    "|comparison study|anesthesia|fluoro time|recommendations?|procedure comments|referring (?:physician|diagnosis)"
    "|study|study type|modality|patient(?: name| id)?|age|sex|date|addendum|signed|electronically signed(?: by)?"
    "|prior studies|prior imaging|previous studies|quality|limitations?|disclaimer",
    "note": "cc|hx|pmh|pmh/fhx/shx|fhx|shx|meds(?: on "
    "admission)?|medications|allergies|ros|exam|ms|cn|motor|sensory|coord"
    "|coordination|station|gait|reflexes|gen exam|course|studies/course|studies|heent",
}
_COLON = re.compile(
    r"(?:^|(?<=[\n.,;]))[ \t#*_>,]*(?:\d{1,2}[.)] *)?(?:"
    + "|".join(f"(?P<{name}>{words})" for name, words in _NAMES.items())
    + r")[ \t*_]*(?:\([^)\n]{0,40}\))?[ \t*_]*(?::[*_]*|[-\u2013\u2014](?= ))",
    re.IGNORECASE,
)
_ALONE = re.compile(
    r"^[ \t#*_]*(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _NAMES.items()) + r")[ \t*_.]*$",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE = re.compile(
    r"\b(?:(?P<findings>FINDINGS)|(?P<impression>IMPRESSION|CONCLUSION)"
    r"|(?P<silent>TECHNIQUE|INDICATION|HISTORY|COMPARISON)) ?:"
)
_NOTE = re.compile(r"(?:^|[\n.,]) ?(?:CC|HX|COURSE) ?: ?,?")
_END = re.compile(
    r"(?<!\bdr)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\bapprox)(?<!\bca)"
    r"[.!?](?=\s|$|,|[*_)\"])|;(?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*•]|\d{1,2}[.)])\s)"
    r"|(?:^|(?<=[\s,]))(?:\d{1,2}[.)]|[-*•])(?=\s)|\n(?=\s*[A-Z#*])",
    re.IGNORECASE,
)

_COMMON = {
    "English": "the of and is are no in with there to a or normal without left right at for on has not this was",
    "German": "der die das und ist nicht kein keine mit im eine einer des dem den für rechts links wird bei",
    "French": "le la les des du une est dans avec pas sans gauche droite sur et au aux pour chez",
    "Spanish": "el la los las del una es en con sin izquierda derecha izquierdo derecho por se para y",
    "Italian": "il lo la gli della del una nel con senza sinistra destra non di si per e sono",
    "Portuguese": "o os as da do das dos uma com sem esquerda direita no na nao não em para",
    "Dutch": "de het een en van geen met links rechts niet zijn er wordt voor",
    "Turkish": "ve bir bu ile sol sağ olarak izlenmektedir izlenmiştir lob saptanmadı",
    "Polish": "w i nie z bez po na lewej prawej stronie jest oraz",
}
_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH = frozenset(_COMMON.pop("English").split())
_FOREIGN = {language: set(words.split()) - _ENGLISH for language, words in _COMMON.items()}
MIN_LATIN = 0.6
"""A text with a smaller share of Latin letters is in another script."""


MAX_SENTENCE = 800
"""Characters of the longest sentence; a text without full stops is read in pieces."""


class Stretch(NamedTuple):
    """A part of a text: characters [start, end), and the kind of section that they are in."""

    section: str
    start: int
    end: int


def check_language(text: str, name: str = "the report") -> None:
    """Refuse a text in another language than English.

    Raises:
        ScanError: words or letters of another language prevail (exit 65).
    """
    words = [word.lower() for word in _WORD.findall(text[:20_000])]
    letters = [letter for letter in text[:4_000] if letter.isalpha()]
    latin = sum("LATIN" in unicodedata.name(letter, "") for letter in letters)
    seen = None
    if letters and latin < MIN_LATIN * len(letters):
        seen = f"{1 - latin / len(letters):.0%} letters of another script"
    elif words:
        counts = {language: sum(word in common for word in words) for language, common in _FOREIGN.items()}
        language = max(counts, key=lambda language: counts[language])
        english = sum(word in _ENGLISH for word in words)
        if counts[language] >= 2 and counts[language] > english:
            seen = f"{counts[language]} common words of {language}, {english} of English"
    if seen:
        raise ScanError(
            f"{name} cannot be read", expected="a report in English", seen=seen, hint="translate it into English first"
        )


def is_note(text: str) -> bool:
    """Whether a text is a clinical note with an imaging result in it, by its headings (CC, HX, COURSE)."""
    return _NOTE.search(text) is not None


def stretches_of(text: str) -> list[Stretch]:
    """Sections of a text without their headings; what precedes the first heading counts as findings."""
    heads = {match.end(): match for pattern in (_INLINE, _ALONE, _COLON) for match in pattern.finditer(text)}
    found: list[Stretch] = []
    section, start = "note" if is_note(text) else "findings", 0
    for match in sorted(heads.values(), key=lambda match: (match.start(), -match.end())):
        if match.start() < start:
            continue
        found.append(Stretch(section, start, match.start()))
        section, start = str(match.lastgroup), match.end()
    found.append(Stretch(section, start, len(text)))
    if is_note(text):
        found = [s if s.section in ("findings", "impression") else s._replace(section="note") for s in found]
    return [stretch for stretch in found if text[stretch.start : stretch.end].strip(" \t\n\r.,*#_-")]


def _pieces(text: str, sentence: Stretch) -> list[Stretch]:
    """A sentence, or pieces of one that is too long to be one, cut at blanks."""
    found: list[Stretch] = []
    start = sentence.start
    while sentence.end - start > MAX_SENTENCE:
        blank = text.rfind(" ", start + 1, start + MAX_SENTENCE)
        end = blank if blank > start else start + MAX_SENTENCE
        found.append(sentence._replace(start=start, end=end))
        start = end
    return [*found, sentence._replace(start=start)]


def sentences_of(text: str, stretch: Stretch) -> list[Stretch]:
    """Sentences of a section, without blanks, list marks and closing marks but a question's."""
    found: list[Stretch] = []
    at = stretch.start
    for match in (*_END.finditer(text, stretch.start, stretch.end), None):
        end = stretch.end if match is None else match.end() if match.group() in ".!?" else match.start()
        left, right = at, end
        while left < right and not (text[left].isalnum() or text[left] in "?<>"):
            left += 1
        while left < right and (text[right - 1].isspace() or text[right - 1] in ",*_"):
            right -= 1
        if any(character.isalpha() for character in text[left:right]):
            found += _pieces(text, Stretch(stretch.section, left, right))
        at = end if match is None else match.end()
    return found
