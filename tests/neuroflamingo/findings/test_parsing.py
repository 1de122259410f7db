"""The parser on other people's words, on any text at all, and on the sections of a report."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.unreadable import unreadable_report
from neuroflamingo.findings.vocabulary import Certainty, Finding, FindingClass, Region, Side, Signal
from neuroflamingo.findings.wording import render_report
from tests.neuroflamingo.findings.finding_strategies import finding_lists
from tests.neuroflamingo.findings.paraphrases import FIRST, HELD_OUT, SECOND


def understood(cases: list[tuple[str, list[Finding]]]) -> float:
    """Share of texts whose parsed findings equal the expected ones in every attribute; prints the others."""
    right = 0
    for text, expected in cases:
        parsed = parse_report(text)
        if Counter(parsed.findings) == Counter(expected):
            right += 1
        else:
            print(f"\n{text}\n  expected {[str(f) for f in expected]}\n  parsed   {[str(f) for f in parsed.findings]}")
    return right / len(cases)


def test_paraphrases_that_the_lexicon_has_seen() -> None:
    assert len(FIRST) == 60
    assert understood(FIRST) >= 0.95
    assert len(SECOND) == 20
    assert understood(SECOND) >= 0.95


def test_held_out_paraphrases() -> None:
    assert len(HELD_OUT) == 20
    assert understood(HELD_OUT) >= 0.95


def test_paraphrases_are_covered() -> None:
    coverage = [parse_report(text).coverage for text, _ in FIRST + SECOND + HELD_OUT]
    assert sum(coverage) / len(coverage) >= 0.95


MASS = Finding(kind=FindingClass.MASS, side=Side.LEFT, region=Region.FRONTAL, size_mm=23, signal=Signal.LOW)


@pytest.mark.parametrize(
    "text",
    [
        "There is a hypointense mass in the left frontal lobe, measuring 23 mm.",
        "LEFT FRONTAL LOBE: HYPOINTENSE MASS OF 23 MM.",
        "There is a hypointense mass\nin the left\nfrontal lobe, measuring 2.3 cm.",
        "A mass lies in the left frontal lobe. It is hypointense. It measures 2,3 cm.",
        "**Findings:** Hypo-intense 23-mm left-sided frontal mass.\n**Impression:** Mass.",
        "TECHNIQUE: T1 of a 45 mm right mass. FINDINGS: Dark left frontal mass, 23 mm. IMPRESSION: Mass.",
        "History: right tumor.\nFindings:\n1. Hypointense left frontal tumor of 23 x 18 x 9 mm.\n2. No bleed.",
        "No infarct. The hypointense mass, of 23 mm, is in the left frontal lobe and displaces the right frontal horn.",
    ],
)
def test_one_finding_in_many_layouts(text: str) -> None:
    assert parse_report(text).findings == (MASS,)


@pytest.mark.parametrize(
    "text",
    [
        "No mass.",
        "There is no mass, infarct, or hemorrhage.",
        "Mass, infarct and hemorrhage are not seen.",
        "Mass is absent.",
        "Without evidence of a left frontal mass.",
        "The patient does not show a mass in the left frontal lobe.",
        "There is neither a mass nor an infarct.",
        "Mass: none.",
        "No mass effect, no mass.",
    ],
)
def test_negations(text: str) -> None:
    parsed = parse_report(text)
    assert parsed.findings == ()
    assert FindingClass.MASS in parsed.denied
    assert parsed.coverage == 1.0


@pytest.mark.parametrize(
    ("text", "side", "certainty"),
    [
        ("Cannot exclude a mass of the left frontal lobe.", Side.LEFT, Certainty.POSSIBLE),
        ("Favored to represent a left frontal mass.", Side.LEFT, Certainty.POSSIBLE),
        ("The mass is not on the left but in the right frontal lobe.", Side.RIGHT, Certainty.DEFINITE),
        ("Mass in the left frontal lobe, not in the right.", Side.LEFT, Certainty.DEFINITE),
        ("Left frontal mass with 5 mm midline shift to the right.", Side.LEFT, Certainty.DEFINITE),
        ("Left frontal mass with midline shift to the right of 5 mm.", Side.LEFT, Certainty.DEFINITE),
        ("R frontal mass.", Side.RIGHT, Certainty.DEFINITE),
    ],
)
def test_doubt_and_sides_that_are_not_the_finding_s(text: str, side: Side, certainty: Certainty) -> None:
    mass = Finding(kind=FindingClass.MASS, side=side, region=Region.FRONTAL, certainty=certainty)
    assert parse_report(text).findings == (mass,)


@pytest.mark.parametrize("text", ["Neither ventricle is enlarged.", "No lateral ventricle is dilated."])
def test_a_denied_structure(text: str) -> None:
    parsed = parse_report(text)
    assert parsed.findings == ()
    assert FindingClass.VENTRICULAR_ENLARGEMENT in parsed.denied


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("No infarct but a mass.", {FindingClass.MASS}),
        ("No infarct, however a mass is present.", {FindingClass.MASS}),
        ("No infarct is seen and a mass is present.", {FindingClass.MASS}),
        ("Mass without hemorrhage.", {FindingClass.MASS}),
        ("A hematoma rather than a mass.", {FindingClass.HEMATOMA}),
        ("Not a mass but an infarct.", {FindingClass.INFARCT}),
        ("No abnormality except for a mass.", {FindingClass.MASS}),
        ("No change of the mass.", {FindingClass.MASS}),
        ("Resolution of the hematoma; the mass remains, with 4 mm midline shift.", {FindingClass.MASS}),
        ("Hemorrhage is not seen; there is a mass.", {FindingClass.MASS}),
    ],
)
def test_where_a_negation_ends(text: str, stated: set[FindingClass]) -> None:
    assert {finding.kind for finding in parse_report(text).findings} == stated


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("Normal brain MRI.", set(FindingClass)),
        ("No abnormality is seen.", set(FindingClass)),
        ("No other abnormality.", set()),
        ("The cerebellum is normal.", set()),
        ("The ventricles and sulci are normal.", {FindingClass.VENTRICULAR_ENLARGEMENT, FindingClass.ATROPHY}),
        ("The white matter shows no lesions.", {FindingClass.WHITE_MATTER_LESIONS}),
    ],
)
def test_how_much_a_normal_statement_denies(text: str, denied: set[FindingClass]) -> None:
    parsed = parse_report(text)
    assert parsed.denied == denied
    assert parsed.findings == ()
    assert parsed.coverage == 1.0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400))
@example("")
@example("İ\x00…: 23 mm x")
@example("FINDINGS:FINDINGS:IMPRESSION:")
@example("9" * 500 + " mm mass")
def test_never_fails_on_any_text(text: str) -> None:
    parsed = parse_report(text)
    assert 0.0 <= parsed.coverage <= 1.0
    assert all(text[s.start : s.end] == s.text for s in parsed.sentences)


_JUMBLE = (
    "no not the a left right both mass infarct bleed white matter lesions ventricles enlarged normal sulci and or but "
    ", . ; : 23 mm 2.3 cm x in of with frontal lobe thalamus without is are seen absent mild grade 2 it FINDINGS: "
    "IMPRESSION: 1. \n"
)
WORDS = st.sampled_from(re.findall(r"\S+|\n", _JUMBLE))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=60).map(" ".join))
def test_never_fails_on_jumbled_report_words(text: str) -> None:
    parsed = parse_report(text)
    ends = [(s.start, s.end) for s in parsed.sentences]
    assert ends == sorted(ends)
    assert all(text[s.start : s.end] == s.text for s in parsed.sentences)


def test_any_prefix_of_a_report_parses() -> None:
    """A generation cut short says only what stands before the cut."""
    text = render_report([MASS], seed=3).text
    assert parse_report(text).findings == (MASS,)
    for end in range(len(text)):
        assert {f.kind for f in parse_report(text[:end]).findings} <= {FindingClass.MASS}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(finding_lists(), st.integers(0, 1000))
def test_sentences_carry_their_findings(findings: list[Finding], seed: int) -> None:
    text = render_report(findings, seed).text
    parsed = parse_report(text)
    body = [s for s in parsed.sentences if s.section == "findings"]
    assert Counter(f for s in body for f in s.findings) == Counter(parsed.findings)
    for sentence in parsed.sentences:
        assert text[sentence.start : sentence.end] == sentence.text
        assert sentence.text.endswith(".")
        for finding in sentence.findings:
            if finding.size_mm is not None:
                assert f"{finding.size_mm:.0f}" in sentence.text


def test_coverage_counts_what_was_not_understood() -> None:
    parsed = parse_report("No mass. The quick brown fox jumps. Ventricles are normal. Lorem ipsum dolor.")
    assert parsed.coverage == 0.5
    assert parsed.unparsed == ("The quick brown fox jumps.", "Lorem ipsum dolor.")
    assert parse_report("").coverage == 0.0


def test_contradictions() -> None:
    both = parse_report("FINDINGS: No mass. There is a mass in the left insula.\nIMPRESSION: Mass of the left insula.")
    assert both.contradictions == ("mass both stated and denied",)
    assert both.agrees
    lost = parse_report("FINDINGS: There is a mass in the left insula.\nIMPRESSION: Normal brain MRI.")
    assert lost.contradictions == ("mass in FINDINGS but not in IMPRESSION",)
    assert not lost.agrees
    swapped = parse_report("FINDINGS: There is a mass in the left insula.\nIMPRESSION: 1. Mass of the right insula.")
    assert not swapped.contradictions
    assert not swapped.agrees


def test_impression_alone_is_read() -> None:
    parsed = parse_report("IMPRESSION: Left frontal mass.")
    assert parsed.findings == parsed.impression
    assert len(parsed.findings) == 1


def test_swapping_left_and_right_swaps_sides() -> None:
    swap = {Side.LEFT: Side.RIGHT, Side.RIGHT: Side.LEFT}
    rng = random.Random(0)
    for seed in range(50):
        side = rng.choice([Side.LEFT, Side.RIGHT])
        text = render_report([MASS.model_copy(update={"side": side})], seed).text
        mirrored = text.replace(str(side), str(swap[side])).replace(side.capitalize(), swap[side].capitalize())
        assert parse_report(mirrored).findings == (MASS.model_copy(update={"side": swap[side]}),)


@pytest.mark.parametrize("seed", range(3))
def test_an_unreadable_scan_is_understood_and_denies_nothing(seed: int) -> None:
    parsed = parse_report(unreadable_report(seed).text)
    assert parsed.findings == parsed.impression == ()
    assert parsed.denied == parsed.impression_denied == set()
    assert parsed.coverage == 1.0
