"""Sampling order: the n-th draw of a training run is a pure function of n, so resuming needs no state.

Differs from upstream: OpenFlamingo iterates over each kind of data with a separate loader, requires all kinds, and
resumes at epochs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.recipe.schema import KINDS
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 1024
"""Length of a block of draws within which the shares are exact."""


@dataclass(frozen=True)
class Mixture:
    """Endless sampling order over several kinds of samples; see `mix`.

    Attributes:
        counts: number of samples of each kind.
        shares: draws of each kind per block; other kinds are never drawn.
        seed: random seed of the order.
    """

    counts: Mapping[str, int]
    shares: Mapping[str, int]
    seed: int

    def draw(self, number: int) -> tuple[str, int]:
        """Kind and index of a draw, numbered from 0.

        Every block of 1024 draws has the exact shares, shuffled; every kind runs through all its samples, reshuffled
        each time, before any is repeated.
        """
        block, place = divmod(number, BLOCK)
        order, before = _block(self.seed, block, tuple(self.shares.items()))
        kind = KINDS[order[place]]
        epoch, index = divmod(block * self.shares[kind] + int(before[place]), self.counts[kind])
        return kind, int(_epoch(self.seed, KINDS.index(kind), epoch, self.counts[kind])[index])


def mix(counts: Mapping[str, int], weights: Mapping[str, float], seed: int) -> Mixture:
    """Mix the available kinds of samples by weight; smaller kinds are repeated.

    Args:
        counts: number of samples of each kind.
        weights: sampling weight of each kind, in any unit; kinds without samples or with weight 0 are ignored.
        seed: random seed of the order.

    Raises:
        ConfigError: nothing to draw from, or a negative weight.
    """
    wanted = {kind: float(weights.get(kind, 0.0)) for kind in KINDS if counts.get(kind, 0) > 0}
    total = sum(wanted.values())
    if total <= 0 or min(wanted.values()) < 0 or not np.isfinite(total):
        raise ConfigError(
            "there is nothing to draw samples from",
            expected="a kind of data with samples and a weight above 0 in data.mix",
            seen=f"samples {dict(counts)}, weights {dict(weights)}",
            hint="set data.mix.KIND=1",
        )
    exact = {kind: weight / total * BLOCK for kind, weight in wanted.items() if weight > 0}
    return Mixture({kind: counts[kind] for kind in exact}, _rounded(exact), seed)


def _rounded(exact: Mapping[str, float]) -> dict[str, int]:
    """Round to positive integers with the sum of a block, by largest remainders."""
    shares = {kind: max(1, int(share)) for kind, share in exact.items()}
    for kind in sorted(exact, key=lambda kind: shares[kind] - exact[kind])[: max(0, BLOCK - sum(shares.values()))]:
        shares[kind] += 1
    shares[max(shares, key=lambda kind: shares[kind])] += BLOCK - sum(shares.values())  # what the minimum took
    return shares


@lru_cache(maxsize=16)
def _block(seed: int, block: int, shares: tuple[tuple[str, int], ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kind index of each draw in a block, and the number of earlier draws of that kind in the block."""
    numbers = np.repeat([KINDS.index(kind) for kind, _ in shares], [share for _, share in shares])
    order = np.random.default_rng([seed, block]).permutation(numbers)
    before = np.zeros(BLOCK, np.int64)
    for number in set(numbers.tolist()):
        found = order == number
        before[found] = np.arange(found.sum())
    return order, before


@lru_cache(maxsize=16)
def _epoch(seed: int, kind: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, kind, epoch]).permutation(count)
