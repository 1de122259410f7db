"""Attention over tokens becomes the right place, side and region."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side
from neuroflamingo.report.evidence import attention_map, locate, token_spacing, words_of


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
