"""Mixing: exact shares in every block, every sample once an epoch, and each draw known by its number alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.data import mixing
from neuroflamingo.data.mixing import BLOCK, mix
from neuroflamingo.recipe.schema import KINDS
from neuroflamingo_preprocessing.errors import ConfigError

COUNTS = {"pairs": 300, "interleaved": 7, "instructions": 40, "text": 0}
WEIGHTS = {"pairs": 0.6, "interleaved": 0.3, "instructions": 0.1, "text": 1.0}


def test_shares_are_exact_and_the_smaller_kinds_come_again() -> None:
    mixture = mix(COUNTS, WEIGHTS, seed=3)
    draws = [mixture.draw(number) for number in range(2 * BLOCK)]
    for block in (draws[:BLOCK], draws[BLOCK:]):
        assert Counter(kind for kind, _ in block) == {"pairs": 615, "interleaved": 307, "instructions": 102}
    for kind in mixture.shares:
        indices = [index for drawn, index in draws if drawn == kind]
        count = COUNTS[kind]
        epochs = [indices[first : first + count] for first in range(0, len(indices) - count + 1, count)]
        assert epochs and all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len(epochs) < 2 or epochs[0] != epochs[1]
    assert draws[:BLOCK] != draws[BLOCK:]
    assert sum(kind == "interleaved" for kind, _ in draws) == 614


def test_a_draw_is_a_function_of_its_number() -> None:
    mixture = mix(COUNTS, WEIGHTS, seed=3)
    forwards = {number: mixture.draw(number) for number in (0, 5, 1023, 1024, 99_999)}
    mixing._block.cache_clear()
    mixing._epoch.cache_clear()
    again = mix(COUNTS, WEIGHTS, seed=3)
    assert {number: again.draw(number) for number in reversed(forwards)} == forwards
    others = [mix(COUNTS, WEIGHTS, seed=4).draw(number) for number in range(50)]
    assert others != [mixture.draw(number) for number in range(50)]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.dictionaries(st.sampled_from(KINDS), st.integers(0, 9), min_size=1),
    weights=st.dictionaries(st.sampled_from(KINDS), st.floats(0, 1e6), min_size=4),
)
def test_any_subset_with_any_weights(counts, weights) -> None:
    wanted = {kind for kind, count in counts.items() if count and weights[kind] > 0}
    if not wanted:
        with pytest.raises(ConfigError, match="nothing to draw"):
            mix(counts, weights, 0)
        return
    mixture = mix(counts, weights, 0)
    assert set(mixture.shares) == wanted and sum(mixture.shares.values()) == BLOCK
    assert all(0 <= index < counts[kind] for kind, index in map(mixture.draw, range(20)))
    total = sum(weights[kind] for kind in wanted)
    for kind, share in mixture.shares.items():
        assert abs(share - weights[kind] / total * BLOCK) <= 4


def test_nothing_to_draw_from() -> None:
    for weights in ({"pairs": 0.0}, {"pairs": -1.0, "interleaved": 2.0}, {"text": 1.0}):
        with pytest.raises(ConfigError, match="nothing to draw") as caught:
            mix(COUNTS, weights, 0)
        assert caught.value.exit_code == 78 and "data.mix" in str(caught.value)
