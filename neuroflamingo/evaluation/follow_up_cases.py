"""Painted pairs for evaluation: a baseline and a follow-up, each processed like a real scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from neuroflamingo.evaluation.painted_cases import encode_scans, held_out_outlines
from neuroflamingo.painting.follow_up import paint_follow_up
from neuroflamingo.painting.real_heads import find_heads
from neuroflamingo_preprocessing.errors import ScanError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from neuroflamingo.findings.changes import Comparison
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.painting.case import Case
    from neuroflamingo_encoders.contract import BrainEncoder
    from neuroflamingo_preprocessing.scan import Scan


@dataclass(frozen=True)
class PaintedPair:
    """A baseline and a follow-up that are painted on demand (picklable, for worker processes).

    Attributes:
        seed: of the pair.
        anatomy: name or file of the head.
        other: head of another person, whose baseline some pairs have (`is_of_two_people`); None: no other head.
        outlines: folder or archive of real lesions' masks, of which the held-out fifth is used.
    """

    seed: int
    anatomy: str
    other: str | None = None
    outlines: str | None = None

    def cases(self) -> tuple[Case, Case]:
        """Baseline and follow-up."""
        outlines = () if self.outlines is None else held_out_outlines(self.outlines)
        return paint_follow_up(self.seed, self.anatomy, outlines, self.other)


@dataclass(frozen=True)
class PaintedSession:
    """One scan of a pair: 0 is the baseline, 1 the follow-up."""

    pair: PaintedPair
    number: int

    def __call__(self) -> Scan:
        """Paint the scan."""
        torch.set_num_threads(1)
        return self.pair.cases()[self.number].scan()


def pairs_to_paint(seeds: range, anatomy: str, outlines: str | None = None) -> list[PaintedPair]:
    """Pairs in one head, or in equal parts in each head of a folder, head by head; another person has the next head.

    Args:
        anatomy, outlines: see `painted_cases.scans_to_paint`.
    """
    heads = find_heads(anatomy) if Path(anatomy).is_dir() else (anatomy,)
    turns = [at * len(heads) // len(seeds) for at in range(len(seeds))]
    return [
        PaintedPair(seed, heads[turn], heads[(turn + 1) % len(heads)] if len(heads) > 1 else None, outlines)
        for seed, turn in zip(seeds, turns, strict=True)
    ]


@dataclass(frozen=True)
class EncodedPairs:
    """Encoder tokens of pairs, and what is true of them.

    Attributes:
        baseline, findings: true findings of each pair's scans, also of those that could not be prepared.
        comparisons: what truly changed.
        tokens: of the prepared pairs, in order, `[pair, 2, token, width]`: baseline and follow-up.
        blank: tokens of an empty scan, `[1, token, width]`.
        heads: number of different heads among the pairs.
        failed: number and message of the pairs of which a scan could not be prepared: nothing is encoded for them, and
            the report that they do not get counts as an empty one.
    """

    baseline: list[tuple[Finding, ...]]
    findings: list[tuple[Finding, ...]]
    comparisons: list[Comparison]
    tokens: Float[Tensor, "pair 2 token width"]
    blank: Float[Tensor, "1 token width"]
    heads: int
    failed: dict[int, str]

    def of_all(self, prepared: Iterable[str]) -> list[str]:
        """Texts of the prepared pairs, and empty ones in the place of those that failed."""
        made = iter(prepared)
        return ["" if number in self.failed else next(made) for number in range(len(self.findings))]


def encode_pairs(
    pairs: Sequence[PaintedPair],
    encoder: BrainEncoder,
    *,
    processes: int | None = None,
    keep: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedPairs:
    """Paint, prepare and encode both scans of each pair, see `painted_cases.encode_scans`.

    Raises:
        ModelError, ScanError: see `painted_cases.encode_scans`; ScanError also if of no pair both scans were prepared.
    """
    sessions = [PaintedSession(pair, number) for pair in pairs for number in (0, 1)]
    encoded = encode_scans(sessions, encoder, processes=processes, keep=keep, progress=progress)
    failed = {at // 2: why for at, why in encoded.failed.items()}
    if len(failed) == len(pairs):
        raise ScanError("of no pair could both scans be prepared", seen=next(iter(failed.values())))
    done = [at for at in range(len(sessions)) if at not in encoded.failed]
    rows = [row for row, at in enumerate(done) if at // 2 not in failed]
    cases = [pair.cases() for pair in pairs]
    return EncodedPairs(
        [first.findings for first, _ in cases],
        [last.findings for _, last in cases],
        [last.comparison for _, last in cases if last.comparison],
        encoded.plain[rows, 0].unflatten(0, (-1, 2)),
        encoded.blank,
        len({pair.anatomy for pair in pairs}),
        failed,
    )
