"""Attention over tokens becomes the right place, side and region."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side
from neuroflamingo.report.assessment import evidence_words
from neuroflamingo.report.evidence import attention_map, locate, same_peaks, token_spacing, words_of
from neuroflamingo.report.records import Evidence


def peaked(positions: np.ndarray, peak: tuple[float, float, float], height: float = 60.0) -> np.ndarray:
    weights = 1 + height * np.exp(-((positions - np.array(peak)) ** 2).sum(1) / (2 * 15.0**2))
    return weights / weights.sum()


def infarct(side: Side, region: Region) -> Finding:
    return Finding(kind=FindingClass.INFARCT, side=side, region=region, size_mm=20.0)


@pytest.mark.parametrize(
    ("peak", "side", "region"),
    [
        ((-36, -48, 48), Side.LEFT, Region.PARIETAL),
        ((36, -48, 48), Side.RIGHT, Region.PARIETAL),
        ((-48, -24, -18), Side.LEFT, Region.TEMPORAL),
        ((24, -66, -42), Side.RIGHT, Region.CEREBELLUM),
    ],
)
def test_peak_has_the_patients_side_and_region(token_positions: np.ndarray, peak, side: Side, region: Region) -> None:
    found = locate(peaked(token_positions, peak), token_positions, 0, (infarct(side, region),))
    assert found is not None
    assert np.linalg.norm(np.array(found.peak_mm) - peak) < 8.0, "finer than the 24 mm grid of tokens"
    assert (found.peak_side, found.peak_region) == (side, region)
    assert found.peak_matches is True
    assert found.share_near_peak > 3 * found.even_share


def test_a_sentence_about_the_other_side_does_not_match(token_positions: np.ndarray) -> None:
    weights = peaked(token_positions, (-36, -48, 48))
    wrong_side = locate(weights, token_positions, 0, (infarct(Side.RIGHT, Region.PARIETAL),))
    wrong_place = locate(weights, token_positions, 0, (infarct(Side.LEFT, Region.CEREBELLUM),))
    assert wrong_side and wrong_side.peak_matches is False
    assert wrong_place and wrong_place.peak_matches is False


def test_findings_without_a_place_are_not_compared(token_positions: np.ndarray) -> None:
    lesions = Finding(kind=FindingClass.WHITE_MATTER_LESIONS, side=Side.BILATERAL, region=Region.WHITE_MATTER, grade=2)
    found = locate(peaked(token_positions, (0, 0, 0)), token_positions, 0, (lesions,))
    assert found and found.peak_matches is None


def test_tokens_without_a_place_are_counted_apart(token_positions: np.ndarray) -> None:
    positions = np.concatenate([token_positions, np.full((2, 3), np.nan)])
    weights = np.concatenate([peaked(token_positions, (-36, -48, 48)) * 0.4, [0.3, 0.3]])
    found = locate(weights, positions, 0, ())
    assert found and found.placed_share == pytest.approx(0.4)
    assert found.peak_side is Side.LEFT
    assert locate(np.ones(2), np.full((2, 3), np.nan), 0, ()) is None


def test_even_attention_singles_nothing_out(token_positions: np.ndarray) -> None:
    even = np.full(len(token_positions), 1 / len(token_positions))
    found = locate(even, token_positions, 0, ())
    assert found and found.share_near_peak == pytest.approx(found.even_share)
    points = np.random.default_rng(0).uniform(-60, 60, (50, 3))
    np.testing.assert_allclose(attention_map(even, token_positions, points), 1.0, atol=1e-9)


def test_map_is_highest_at_the_peak_and_as_wide_as_the_tokens(token_positions: np.ndarray) -> None:
    one = np.zeros(len(token_positions))
    here = int(np.argmin(np.linalg.norm(token_positions - (-48, -30, 30), axis=1)))
    one[here] = 1.0
    line = token_positions[here] + np.linspace(-40, 40, 81)[:, None] * np.array([1.0, 0, 0])
    profile = attention_map(one, token_positions, line)
    assert np.argmax(profile) == 40
    assert token_spacing(token_positions) == 24.0
    assert 24 < (profile > profile.max() / 2).sum() < 40, "full width at half maximum in mm"


def test_words_are_found_by_the_characters_they_wrote() -> None:
    boundaries = (0, 3, 3, 8, 12)  # the second token wrote nothing yet: part of a character
    np.testing.assert_array_equal(words_of(boundaries, 2, 5), [True, False, True, False])
    np.testing.assert_array_equal(words_of(boundaries, 8, 12), [False, False, False, True])


def test_a_peak_outside_the_brain_is_no_evidence(token_positions: np.ndarray) -> None:
    brain = np.stack(np.meshgrid(*[np.arange(-48.0, 49, 6)] * 3, indexing="ij"), -1).reshape(-1, 3)
    words = (infarct(Side.LEFT, Region.PARIETAL),)
    inside = locate(peaked(token_positions, (-36, -48, 48)), token_positions, 0, words, brain)
    assert inside and inside.in_brain is True and inside.supports is True and inside.within_mm == 12.0
    assert evidence_words(inside, {}) == [("peak within 12 mm of the stated side and region", True)]
    below = locate(peaked(token_positions, (-24, -48, -78)), token_positions, 0, words, brain)
    assert below and below.in_brain is False and below.supports is False
    assert evidence_words(below, {}) == [("peak outside the brain: no evidence", False)]
    away = locate(peaked(token_positions, (36, 0, 0)), token_positions, 0, words, brain)
    assert away and evidence_words(away, {}) == [("peak more than 12 mm from the stated side and region", False)]


def test_several_sentences_with_one_peak_are_said_to_have_one(token_positions: np.ndarray) -> None:
    ventricles = Finding(kind=FindingClass.VENTRICULAR_ENLARGEMENT, side=Side.BILATERAL, region=Region.VENTRICLES)
    one = peaked(token_positions, (-36, -48, 48))

    def found(weights: np.ndarray, finding: Finding) -> Evidence:
        evidence = locate(weights, token_positions, 0, (finding,))
        assert evidence is not None
        return evidence

    first, other = found(one, infarct(Side.LEFT, Region.PARIETAL)), found(one, infarct(Side.LEFT, Region.TEMPORAL))
    apart = found(peaked(token_positions, (36, -48, 48)), infarct(Side.RIGHT, Region.PARIETAL))
    marked = same_peaks({"s1": first, "s2": other, "s3": apart})
    assert [marked[name].shared_with for name in marked] == [("s2",), ("s1",), ()]
    assert marked["s1"].peak_matches and marked["s1"].supports is False and marked["s3"].supports is True
    said = evidence_words(marked["s1"], {"s1": 1, "s2": 2})
    assert said[-1] == ("same peak as sentence 2: no evidence of its own", False)
    beside = same_peaks({"s1": first, "s2": found(one, ventricles)})
    assert beside["s1"].supports is True and beside["s2"].supports is None
    assert evidence_words(beside["s2"], {"s1": 1}) == [("same peak as sentence 1", None)]
