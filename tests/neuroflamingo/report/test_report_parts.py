"""Sections, traced sentences and the methods text follow from what was written and done."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import Side
from neuroflamingo.report.methods import methods_of
from neuroflamingo.report.records import GeneratedText
from neuroflamingo.report.sections import split_sections, statements_of
from neuroflamingo.report.tracing import WHOLE, trace

TEXT = (
    "TECHNIQUE: T1-weighted MRI.\nFINDINGS: Chronic infarct in the left parietal lobe of 24 mm. "
    "Mass in the right temporal lobe, 30 mm.\nIMPRESSION: 1. Left parietal infarct. 2. Right temporal mass."
)
NORMAL = "FINDINGS: No infarct, mass lesion or hematoma is seen. Normal brain volume.\nIMPRESSION: Normal brain."


def written(text: str, looks_at: dict[str, np.ndarray], positions: np.ndarray) -> GeneratedText:
    """One token a character; each phrase's characters look at its own place, all others evenly."""
    looks = np.full((len(text), 1, len(positions)), 1 / len(positions))
    for phrase, place in looks_at.items():
        start = text.index(phrase)
        weights = np.exp(-((positions - place) ** 2).sum(1) / (2 * 12.0**2))
        looks[start : start + len(phrase), 0] = weights / weights.sum()
    return GeneratedText(text, tuple(range(len(text) + 1)), looks, positions, True, len(text))


def test_sections_are_split_at_their_headings() -> None:
    sections = split_sections(TEXT)
    assert sections.technique == "T1-weighted MRI."
    assert sections.findings.startswith("Chronic infarct") and sections.findings.endswith("30 mm.")
    assert sections.impression.startswith("1. Left")
    assert split_sections("No heading at all.").findings == "No heading at all."
    assert split_sections("") == split_sections("FINDINGS:")


def test_each_sentence_gets_the_place_its_own_words_looked_at(token_positions: np.ndarray) -> None:
    looks_at = {
        "Chronic infarct in the left parietal lobe": np.array([-36, -48, 48]),
        "Mass in the right temporal lobe": np.array([48, -24, -18]),
    }
    text = written(TEXT, looks_at, token_positions)
    statements, traces = trace(statements_of(parse_report(TEXT)), text)
    shown = [statement for statement in statements if statement.evidence]
    assert len(shown) == len(traces) == 2
    assert all(TEXT[item.start : item.end] == item.text for item in statements)
    infarct, mass = (statement.evidence for statement in shown)
    assert infarct and infarct.peak_side is Side.LEFT and infarct.peak_matches is True
    assert mass and mass.peak_side is Side.RIGHT and mass.peak_matches is True


def test_a_normal_report_shows_where_it_looked_as_a_whole(token_positions: np.ndarray) -> None:
    statements, traces = trace(statements_of(parse_report(NORMAL)), written(NORMAL, {}, token_positions))
    assert [found.statement for found in traces] == [WHOLE]
    whole = next(item for item in statements if item.id == WHOLE)
    assert whole.evidence and whole.text.startswith("No infarct") and whole.text.endswith("volume.")


def test_the_scan_that_got_most_attention_is_drawn(token_positions: np.ndarray) -> None:
    text = written(TEXT, {}, token_positions)
    two = np.concatenate([text.attention * 0.2, text.attention * 0.8], axis=1)
    both = GeneratedText(TEXT, text.boundaries, two, token_positions, True, 9)
    _, traces = trace(statements_of(parse_report(TEXT)), both)
    assert traces and all(found.evidence.scan == 1 for found in traces)


def test_models_without_places_make_reports_without_overlays() -> None:
    text = GeneratedText(TEXT, tuple(range(len(TEXT) + 1)), None, None, True, len(TEXT))
    statements, traces = trace(statements_of(parse_report(TEXT)), text)
    assert not traces and not any(item.evidence for item in statements)


@pytest.mark.parametrize("word", ["SimpleITK", "ICBM152"])
def test_methods_cite_what_was_used_and_only_that(make_report, word: str) -> None:
    provenance = make_report(pictures=False).provenance
    assert word in {citation.key for citation in methods_of(provenance).citations}
    unregistered = provenance.model_copy(update={"geometry": provenance.geometry[:1]})
    assert word not in {citation.key for citation in methods_of(unregistered).citations}


def test_methods_say_the_numbers_of_this_run(make_report) -> None:
    text = methods_of(make_report(pictures=False).provenance).text
    for fact in ("176 x 240 x 256", "LPS", "2 logged steps", "tiny-t1w", "greedily", "86 tokens", "not for diagnosis"):
        assert fact in text
