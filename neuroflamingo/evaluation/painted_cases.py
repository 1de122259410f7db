"""Painted cases for evaluation, processed like real scans (storage, alignment, preprocessing, encoder)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from neuroflamingo.evaluation.grade_ranks import graded_volumes
from neuroflamingo.evaluation.kept_scans import prepared
from neuroflamingo.painting.case import Case, paint_case
from neuroflamingo.painting.outlines import load_outlines
from neuroflamingo.painting.real_heads import find_heads
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroflamingo.findings.vocabulary import Finding, FindingClass
    from neuroflamingo.painting.lesions import Outline
    from neuroflamingo_encoders.contract import BrainEncoder
    from neuroflamingo_preprocessing.scan import Scan

BATCH = 8
T = TypeVar("T")


@dataclass(frozen=True)
class PaintedScan:
    """A scan that is painted on demand (picklable, so that a worker process can paint and preprocess it)."""

    seed: int
    anatomy: str
    outlines: str | None = None

    def case(self) -> Case:
        """The case: its blueprint and head."""
        outlines = () if self.outlines is None else held_out_outlines(self.outlines)
        return paint_case(self.seed, self.anatomy, outlines=outlines)

    def __call__(self) -> Scan:
        """Paint the scan."""
        torch.set_num_threads(1)
        return self.case().scan()


@lru_cache(maxsize=1)
def held_out_outlines(path: str) -> tuple[Outline, ...]:
    """Outlines kept for testing, read once."""
    return load_outlines(path, "held out")


def scans_to_paint(seeds: range, anatomy: str, outlines: str | None = None) -> list[PaintedScan]:
    """Cases in one head, or in equal parts in each head of a folder, head by head.

    Args:
        anatomy: name or file of a head (see `neuroflamingo.painting.heads`), or a folder of heads.
        outlines: folder or archive of real lesions' masks, of which the held-out fifth is used (see `load_outlines`).
    """
    heads = find_heads(anatomy) if Path(anatomy).is_dir() else (anatomy,)
    return [PaintedScan(seed, heads[at * len(heads) // len(seeds)], outlines) for at, seed in enumerate(seeds)]


@dataclass(frozen=True)
class EncodedCases:
    """Encoder tokens of cases and their controls.

    Attributes:
        truth: findings of each case, also of those that could not be prepared.
        visible: for each of them whether a reader could see it.
        volumes: of graded findings, see `grade_ranks.graded_volumes`, one for each case.
        plain, mirrored: tokens of the prepared cases, in order, `[case, 1, token, width]`; mirrored heads are flipped
            in the symmetric template space.
        blank: tokens of an empty scan, `[1, token, width]`.
        failed: number and message of the cases that could not be prepared: nothing is encoded for them, and the report
            that they do not get counts as an empty one.
    """

    truth: list[tuple[Finding, ...]]
    visible: list[tuple[bool, ...]]
    volumes: list[dict[FindingClass, float]]
    plain: Float[Tensor, "case 1 token width"]
    mirrored: Float[Tensor, "case 1 token width"]
    blank: Float[Tensor, "1 token width"]
    failed: dict[int, str]

    def of_all(self, prepared: Iterable[T], missing: T) -> list[T]:
        """What was made of the prepared cases, for all of them: `missing` in the place of those that failed."""
        made = iter(prepared)
        return [missing if number in self.failed else next(made) for number in range(len(self.truth))]


@dataclass(frozen=True)
class EncodedScans:
    """Tokens of the scans that could be prepared, in order, and what became of the others.

    Attributes:
        plain, mirrored: `[scan, 1, token, width]`.
        blank: tokens of an empty scan, `[1, token, width]`.
        failed: number and message of the scans that could not be prepared.
    """

    plain: Float[Tensor, "scan 1 token width"]
    mirrored: Float[Tensor, "scan 1 token width"]
    blank: Float[Tensor, "1 token width"]
    failed: dict[int, str]


@torch.no_grad()
def encode_scans(
    sources: Sequence[Callable[[], Scan]],
    encoder: BrainEncoder,
    *,
    processes: int | None = None,
    keep: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedScans:
    """Make each scan as a scanner would store it, then align, preprocess and encode it, in float32.

    Args:
        sources: picklable functions that make a scan in a worker.
        processes: number of workers that paint and preprocess; None: one per core.
        keep: folder in which prepared scans are kept, see `KeptScans`.
        progress: called with (done, all).

    Raises:
        ModelError: the encoder's card asks for what cannot be done, which is no scan's fault.
        ScanError: not one scan could be prepared.
    """
    device = next(encoder.parameters()).device
    axes = {axis.name: axis.size or 0 for axis in encoder.card.scan.axes}
    _ = encoder.card.scan.grid_shape  # an encoder of other inputs than volumes is refused here
    empty = torch.zeros(1, 1, *axes.values(), device=device)
    blank = encoder(empty).tokens[0].cpu()
    plain: list[Tensor] = []
    mirrored: list[Tensor] = []
    failed: dict[int, str] = {}
    waiting: list[Tensor] = []

    def flush() -> None:
        if waiting:
            x = torch.stack(waiting)[:, None].to(device)
            plain.append(encoder(x).tokens.cpu())
            mirrored.append(encoder(x.flip(2 + list(axes).index("x"))).tokens.cpu())
            waiting.clear()

    for number, volume in enumerate(prepared(sources, encoder.card.scan, processes or os.cpu_count() or 1, keep)):
        if isinstance(volume, NeuroFlamingoError):
            failed[number] = volume.what
        else:
            waiting.append(torch.from_numpy(volume))
        if len(waiting) == BATCH:
            flush()
        if progress:
            progress(number + 1, len(sources))
    flush()
    if not plain:
        raise ScanError(
            f"not one of {len(sources)} painted cases could be prepared for {encoder.card.name}",
            expected="cases to score",
            seen=next(iter(failed.values())),
            hint=f"neuroflamingo encoders card {encoder.card.name} says what it takes",
        )
    return EncodedScans(torch.cat(plain), torch.cat(mirrored), blank, failed)


def encode_cases(
    scans: list[PaintedScan],
    encoder: BrainEncoder,
    *,
    processes: int | None = None,
    keep: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedCases:
    """Encode painted cases, see `encode_scans`, and keep what is true of them."""
    cases = (scan.case() for scan in scans)
    known = ((case.findings, case.visible, graded_volumes(case)) for case in cases)
    truth, visible, volumes = map(list, zip(*known, strict=True))
    encoded = encode_scans(scans, encoder, processes=processes, keep=keep, progress=progress)
    return EncodedCases(truth, visible, volumes, encoded.plain, encoded.mirrored, encoded.blank, encoded.failed)
