"""Words, numbers and sizes of a report, in normal form: lower-case, American, singular."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from neuroflamingo.reader.places import COMBINED

_NUMBER = r"\d{1,4}(?:[.,]\d{1,3})?"
_UNIT = r"(?:mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)(?![a-zA-Z0-9²³^])"
_AXIS = r"(?: ?\(?(?:AP|TR|TV|CC|ML|SI|RL|LR|W|L|H|transverse|craniocaudal)\)?)?"
_SIZE = rf"{_NUMBER}[ -]?(?:{_UNIT})?{_AXIS}(?: ?(?:x|×|X|\*|by|to|-|–) ?{_NUMBER}[ -]?(?:{_UNIT})?{_AXIS}){{0,3}}"
_TOKEN = re.compile(
    rf"(?P<size>(?<![\w.]){_SIZE})|(?P<word>[^\W\d_]+\d{{0,2}}(?![\w]))|(?P<piece>[^\W\d_]+)"
    r"|(?P<number>\d+(?:[.,]\d+)*)|(?P<mark>[?;:,.()>])"
)
_MEASURE = re.compile(rf"({_NUMBER})[ -]?({_UNIT})?", re.IGNORECASE)
_ALTERNATIVES = re.compile(r"\(([^()]*)\)")
_BRITISH = (
    ("haem", "hem"), ("oedema", "edema"), ("tumour", "tumor"), ("ischaem", "ischem"), ("leuco", "leuko"),
    ("centre", "center"), ("grey", "gray"), ("calibre", "caliber"), ("isation", "ization"), ("ised", "ized"),
    ("calcarin", "calcarin"), ("paraffin", "paraffin"), ("hydrocephaly", "hydrocephalus"),
)  # fmt: skip
_IRREGULAR = {"metastases": "metastasis", "foci": "focus", "gyri": "gyrus", "sulci": "sulcus", "thalami": "thalamus"}
_IRREGULAR |= {"lacunae": "lacuna", "hippocampi": "hippocampus", "diagnoses": "diagnosis", "stenoses": "stenosis"}
_IRREGULAR |= {
    "thromboses": "thrombosis",
    "ganglia": "ganglia",
    "abscesses": "abscess",
    "masses": "mass",
    "mets": "met",
}
_IRREGULAR |= {
    "thrombi": "thrombus",
    "globi": "globus",
    "pallidi": "pallidus",
    "infundibula": "infundibulum",
    "pons": "pons",
}
_IRREGULAR |= {"axes": "axis", "bodies": "body", "processes": "process", "crises": "crisis", "indices": "index"}
_KEPT_S = ("ss", "us", "is")
_SPLIT = re.compile(rf"^({'|'.join(COMBINED)})([a-z]{{4,}})$")
_BOTH = re.compile(r"^bi(frontal|parietal|temporal|occipital|thalamic|hemispher\w+|cerebellar|ventricular)$")
_ARTERY = re.compile(r"^([lrb])(mca|ica|aca|pca|cca|va)$")
_SIDE_LETTER = {"l": "left", "r": "right", "b": "bilateral"}
CENTIMETRE = 10.0


class Token(NamedTuple):
    """One word, number or mark: its normal form, and its characters [start, end) in the text."""

    word: str
    start: int
    end: int
    sizes_mm: tuple[float, ...] = ()
    is_range: bool = False


@lru_cache(maxsize=20_000)
def normal_form(word: str) -> str:
    """Lower-case, American and singular form of a word."""
    word = word.lower()
    for british, american in _BRITISH:
        if british in word:
            word = word.replace(british, american)
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(_KEPT_S):
        return word
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "uses")):
        return word[:-2]
    return word[:-1]


def expand(words: str) -> Iterator[tuple[str, ...]]:
    """Token sequences of a table's phrases: all choices of their alternatives, as normal forms."""
    for phrase in words.split(";"):
        parts = _ALTERNATIVES.split(phrase)
        choices = [part.split("|") if at % 2 else [part] for at, part in enumerate(parts)]
        for chosen in product(*choices):
            found = tuple(normal_form(word) for word in "".join(chosen).split())
            if found:
                yield found


def _sizes(text: str) -> tuple[tuple[float, ...], bool]:
    """Lengths in mm of a size such as "2.4 x 1.9 cm" (a unit serves the numbers before it); none without a unit."""
    found: list[tuple[float, str | None]] = [
        (float(number.replace(",", ".")), unit or None) for number, unit in _MEASURE.findall(text)
    ]
    unit: str | None = None
    lengths: list[float] = []
    for value, own in reversed(found):
        unit = own or unit
        if unit is None:
            return (), False
        lengths.append(round(value * (CENTIMETRE if unit.lower().startswith("c") else 1.0), 2))
    return tuple(reversed(lengths)), bool(re.search(r"\d[^\dx×X*]*(?:to|-|–) ?\d", text)) and len(lengths) == 2


def _words(token: Token, following: str) -> Iterator[Token]:
    """A word as one or two tokens: "bifrontal", "frontoparietal" and "LMCA" hold two; "L" before a word is a side."""
    word = token.word
    for pattern in (_BOTH, _ARTERY, _SPLIT):
        if match := pattern.match(word):
            first, second = (
                ("bilateral", match[1]) if pattern is _BOTH else (_SIDE_LETTER.get(match[1], match[1]), match[2])
            )
            yield token._replace(word=first)
            yield token._replace(word=normal_form(second))
            return
    if word in ("l", "r") and following.isupper():
        yield token._replace(word=_SIDE_LETTER[word])
    else:
        yield token


def tokens_of(text: str) -> list[Token]:
    """Words, numbers, sizes and marks of a text, in order."""
    found: list[Token] = []
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if match["size"] is not None:
            sizes, is_range = _sizes(match["size"])
            if sizes:
                found.append(Token("#", start, end, sizes, is_range))
                continue
            found += [
                Token(n[0].replace(",", "."), start + n.start(), start + n.end())
                for n in re.finditer(r"\d+(?:[.,]\d+)*", match["size"])
            ]
            continue
        raw = match[0]
        is_word = match["word"] or match["piece"]
        token = Token(normal_form(raw) if is_word else raw, start, end)
        beside = len(raw) == 1 and re.match(r"\)? *[A-Za-z]{2}|\)", text[end : end + 4])
        found += _words(token, raw if beside else "") if is_word else [token]
    return found
