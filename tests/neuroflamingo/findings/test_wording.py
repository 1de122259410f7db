"""Rendered reports: round trip through the parser, spans, determinism, vocabulary and length."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.findings import phrases
from neuroflamingo.findings.parsing import parse_report, place_key
from neuroflamingo.findings.vocabulary import (
    FOCAL,
    FOCAL_REGIONS,
    LOBES,
    SIGNAL_OF,
    Finding,
    FindingClass,
    Region,
    Side,
    report_order,
)
from neuroflamingo.findings.wording import render_report
from tests.neuroflamingo.findings.finding_strategies import finding_lists


def painted(rng: random.Random) -> list[Finding]:
    """A finding list as cases have them: often none, up to three focal ones, real-valued sizes."""
    if rng.random() < 0.35:
        return []
    findings = []
    for _ in range(rng.randint(0, 3)):
        kind, region = rng.choice(FOCAL), rng.choice(FOCAL_REGIONS)
        side = rng.choice((Side.LEFT, Side.RIGHT) + ((Side.MIDLINE,) if region is Region.BRAINSTEM else ()))
        size = round(rng.uniform(8, 45), 1)
        findings.append(Finding(kind=kind, side=side, region=region, size_mm=size, signal=SIGNAL_OF[kind]))
    for kind, region in (
        (FindingClass.WHITE_MATTER_LESIONS, Region.WHITE_MATTER),
        (FindingClass.VENTRICULAR_ENLARGEMENT, Region.VENTRICLES),
    ):
        if rng.random() < 0.3:
            findings.append(Finding(kind=kind, side=Side.BILATERAL, region=region, grade=rng.randint(1, 3)))
    if rng.random() < 0.3:
        side = rng.choice((Side.LEFT, Side.RIGHT, Side.BILATERAL))
        findings.append(Finding(kind=FindingClass.ATROPHY, side=side, region=rng.choice(LOBES)))
    return findings


def whole_millimetres(findings: list[Finding]) -> Counter[Finding]:
    """The multiset of findings that a text with whole millimetres can hold."""
    return Counter(
        f if f.size_mm is None else f.model_copy(update={"size_mm": float(f"{f.size_mm:.0f}")}) for f in findings
    )


def assert_round_trip(findings: list[Finding], seed: int) -> None:
    text = render_report(findings, seed).text
    parsed = parse_report(text)
    assert Counter(parsed.findings) == whole_millimetres(findings), text
    assert Counter(map(place_key, parsed.impression)) == Counter(map(place_key, findings)), text
    assert parsed.coverage == 1.0, (text, parsed.unparsed)
    assert not parsed.contradictions, (text, parsed.contradictions)
    assert parsed.denied == set(FindingClass) - {finding.kind for finding in findings}, text
    assert parsed.agrees


@pytest.mark.slow
def test_round_trip_of_painted_lists() -> None:
    rng = random.Random(0)
    for seed in range(1500):
        assert_round_trip(painted(rng), seed)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(finding_lists(), st.integers(0, 2**31))
def test_round_trip_of_any_list(findings: list[Finding], seed: int) -> None:
    assert_round_trip(findings, seed)


def test_deterministic_and_independent_of_order() -> None:
    rng = random.Random(3)
    for seed in range(50):
        findings = painted(rng)
        first = render_report(findings, seed)
        assert first == render_report(list(reversed(findings)), seed)
        assert len({render_report(findings, other).text for other in range(20)}) > 10


def test_texts_are_what_they_were() -> None:
    """Models are trained on these texts: the same findings and seed give the same report in every version."""
    rng = random.Random(7)
    digest = hashlib.sha256()
    for seed in range(100):
        findings = painted(rng)
        for report in (render_report(findings, seed), render_report(findings, seed, style=seed % 6)):
            digest.update(f"{report.text} {report.spans}".encode())
    assert digest.hexdigest() == "8d6a38bb31264ff227c549fbeea7a89a3a69d371f654f6522222899d99a1f838"


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(finding_lists(), st.integers(0, 12))
def test_a_house_style_reads_back_and_words_a_statement_always_alike(findings: list[Finding], style: int) -> None:
    report = render_report(findings, 1, style)
    assert report == render_report(findings, 2, style)
    assert parse_report(report.text).findings == parse_report(render_report(findings, 1).text).findings


def test_a_house_style_has_one_opening_for_what_is_there_and_another_for_what_is_not() -> None:
    normal = render_report([], 0, 0).text
    infarct = Finding(kind=FindingClass.INFARCT, side=Side.LEFT, region=Region.FRONTAL, size_mm=20)
    ill = render_report([infarct], 0, 0).text
    assert "FINDINGS: No infarct" in normal and "FINDINGS: There is a" in ill
    assert len({render_report([infarct], 0, style).text for style in range(6)}) == 6


@pytest.mark.slow
def test_spans_cover_what_distinguishes_findings() -> None:
    """Spans are in order and apart, and hold every side, region, size, grade, class and negation word."""
    rng = random.Random(4)
    telling = re.compile(
        r"\b(left|right|bilateral|midline|both|frontal|parietal|temporal|occipital|insula|thalamus|brainstem|cerebellum"
        r"|basal ganglia|\d+(?= mm)|mild|moderate|severe|infarct|mass|hematoma|hemorrhage|atrophy|no|not|negative"
        r"|normal|unremarkable|preserved|enlarged|dilated|hypointense|bright)\b",
        re.IGNORECASE,
    )
    for seed in range(300):
        text, spans = (report := render_report(painted(rng), seed)).text, report.spans
        assert all(0 <= a < b <= len(text) for a, b in spans)
        assert all(b < c for (_, b), (c, _) in pairwise(spans))
        body = text.index("FINDINGS:")
        for word in telling.finditer(text, body + len("FINDINGS:")):
            diffuse = text[word.start() :].startswith(("both hemispheres.", "both lateral", "both sides."))
            assert diffuse or any(a <= word.start() and word.end() <= b for a, b in spans), (word, text)
        for sentence in parse_report(text).sentences:
            assert any(a <= sentence.start < b for a, b in spans), (sentence, text)
        assert 0.2 < sum(b - a for a, b in spans) / len(text) < 0.8


def test_vocabulary_is_small_and_reports_are_short() -> None:
    rng = random.Random(5)
    words: set[str] = set()
    lengths: dict[bool, list[int]] = defaultdict(list)
    for seed in range(1500):
        findings = painted(rng)
        text = render_report(findings, seed).text
        assert text.isascii()
        words |= set(re.findall(r"\w+", text))
        lengths[bool(findings)].append(len(text.split()))
    print(f"\n{len(words)} words; normal {max(lengths[False])}, with findings {max(lengths[True])} words at most")
    assert len(words) < 350
    assert max(lengths[False]) <= 70
    assert max(lengths[True]) <= 130


def test_at_least_six_wordings_of_every_statement() -> None:
    groups = [phrases.FOCAL_SENTENCES, phrases.NEGATIVE_SENTENCES, phrases.NORMAL_IMPRESSIONS, phrases.TECHNIQUES]
    groups += [*phrases.DIFFUSE_SENTENCES.values(), *phrases.NORMAL_SENTENCES.values()]
    assert len(groups) == 4 + 3 + 4
    assert all(len(set(group)) >= 6 for group in groups)
    for kind in FindingClass:
        finding = Finding(kind=kind, side=Side.LEFT, region=Region.FRONTAL, grade=None if kind in FOCAL else 2)
        texts = {render_report([finding], seed).text.partition("IMPRESSION:")[2] for seed in range(300)}
        assert len(texts) >= 6, kind


def test_slots_keep_their_order() -> None:
    rng = random.Random(6)
    for seed in range(200):
        findings = painted(rng)
        parsed = parse_report(render_report(findings, seed).text)
        assert [f.kind for f in parsed.findings] == [f.kind for f in report_order(findings)]
