"""`choose_series`: choose among the series of a DICOM input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError, UsageError
from neuroflamingo_preprocessing.formats.described import AGENT

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.dicom.series import Series


def choose_series(
    series: Sequence[Series], kind: Literal["T1w", "bold"], number: int | None
) -> tuple[Series, list[str]]:
    """Choose a series; also gives warnings about the choice.

    With a number: that series (of several parts, the magnitude of the first echo). Without: the series of the kind; of
    several the complete 3D one without contrast agent, prepared by inversion, and with the smallest voxels.

    Args:
        series: all series of the input.
        kind: kind of series to choose.
        number: number of the series, or None.

    Raises:
        UsageError: no series has this number.
        ScanError: none can be chosen, or the chosen one cannot be converted; the series are listed (exit 65).
    """
    candidates = _candidates(series, kind, number)
    if not candidates:
        raise ScanError(
            f"no series can be chosen: none is {_KIND_NAMES[kind]} by its header",
            expected=f"one {kind} series of the head",
            seen=_listed(series),
            hint="--series NUMBER, if you know that one of them is",
        )
    ranks = _ranks(candidates, kind)
    chosen = min(candidates, key=lambda candidate: [rank for rank, _ in ranks[candidate.order, candidate.number]])
    if chosen.fault or _several(chosen, kind):
        raise ScanError(
            f"{chosen.name} cannot be used: {chosen.fault or _several(chosen, kind)}",
            expected="a complete series of parallel, evenly spaced slices",
            seen=_listed(series),
            hint=_hint(chosen, kind),
        )
    return chosen, _remarks(chosen, series, candidates, ranks, kind, number)


def _candidates(series: Sequence[Series], kind: str, number: int | None) -> list[Series]:
    if number is not None:
        candidates = [candidate for candidate in series if candidate.number == number]
        if not candidates:
            raise UsageError(
                f"there is no series {number}",
                expected=", ".join(map(str, sorted({candidate.number for candidate in series}))),
                seen=f"--series {number}",
            )
        return candidates
    candidates = [candidate for candidate in series if candidate.kind == kind and candidate.head]
    alone = [
        candidate
        for candidate in series
        if candidate.kind == "unknown" and candidate.head and candidate.slices > 2 and candidate.volumes == 1
    ]
    return alone if not candidates and kind == "T1w" and len(alone) == 1 else candidates


def _several(chosen: Series, kind: str) -> str | None:
    """Fault of a series that should be one volume and shows its places several times."""
    if kind != "T1w" or chosen.volumes == 1 or chosen.form == "mosaic":
        return None
    return f"each of its {chosen.slices} places is there {chosen.volumes} times, with different images"


def _hint(chosen: Series, kind: str) -> str:
    if chosen.fault and len(chosen.files) == 1:
        return "give the folder that holds the whole series"
    if _several(chosen, kind) and not chosen.fault:
        return "put the files of one of the volumes into a folder of their own, or choose another with --series"
    return "export the series again, or choose another with --series"


_KIND_NAMES = {"T1w": "a T1-weighted volume", "bold": "an fMRI run"}
SAME_SIZE = 0.01
"""Largest difference of voxel volumes, as a share, that does not decide between two series."""
ALIKE = ("angio", "PDw", "unknown", "other")
"""Kinds of 3D series that people may look for as the T1-weighted one."""


def _ranks(candidates: Sequence[Series], kind: str) -> dict[tuple[int, int], list[tuple[Any, str]]]:
    """What decides between candidates, the weightiest first, each with the words for one that loses by it."""
    sizes = [float(np.prod(one.spacing)) if one.spacing else np.inf for one in candidates]
    smallest = min(sizes)
    return {
        (one.order, one.number): [
            (one.fault is not None or _several(one, kind) is not None, "cannot be used as it is"),
            (not one.three_d, "not acquired in 3D"),
            (one.agent, "with contrast agent"),
            (one.component != "magnitude", f"{one.component} image"),
            (kind == "T1w" and not one.prepared, "without inversion, so less T1-weighted"),
            (smallest if size <= smallest * (1 + SAME_SIZE) else size, "larger voxels"),
            (-one.slices * one.volumes, "fewer images"),
            (one.order, "a later echo"),
            (one.number, "a later series"),
        ]
        for one, size in zip(candidates, sizes, strict=True)
    }


def _listed(series: Sequence[Series]) -> str:
    lines = [candidate.describe() for candidate in series[:40]]
    return (
        "\n    ".join([*lines, *([f"and {len(series) - 40} more"] if len(series) > 40 else [])]) or "none with images"
    )


def _remarks(
    chosen: Series,
    series: Sequence[Series],
    candidates: Sequence[Series],
    ranks: dict[tuple[int, int], list[tuple[Any, str]]],
    kind: str,
    number: int | None,
) -> list[str]:
    warnings = list(chosen.warnings)
    if chosen.kind not in (kind, "unknown"):
        warnings.append(f"{chosen.name} was asked for; by its header it is {chosen.kind}, not {kind}")
    if chosen.kind == "unknown":
        warnings.append(f"the header of {chosen.name} does not say how it is weighted; it is read as {kind}")
    others = [candidate for candidate in candidates if candidate is not chosen]
    if others and number is None:
        best = ranks[chosen.order, chosen.number]
        said = [f"{one.describe()}: {_why_not(ranks[one.order, one.number], best)}" for one in others[:5]]
        words = "; ".join(said) + ("; ..." if len(others) > 5 else "")
        warnings.append(
            f"of {len(candidates)} {kind} series {chosen.name} was chosen; --series chooses another ({words})"
        )
    elif others:
        warnings.append(f"{chosen.name} has {len(candidates)} parts; the one chosen is {chosen.part or 'the first'}")
    alike = [one for one in series if one.kind in ALIKE and one.three_d and one.head and one.volumes == 1]
    if alike and kind == "T1w" and number is None and chosen not in alike:
        words = "; ".join(one.describe() for one in alike[:5]) + ("; ..." if len(alike) > 5 else "")
        warnings.append(f"not taken, since their headers do not say T1-weighted: {words}")
    said = [one for one in chosen.described if one != AGENT and not (one == kind == chosen.kind)]
    if said:
        warnings.append(f"the description of {chosen.name} says {', '.join(said)}, not {kind}")
    if chosen.agent and kind == "T1w":
        warnings.append(f"{chosen.name} was made with a contrast agent")
    return warnings


def _why_not(rank: list[tuple[Any, str]], best: list[tuple[Any, str]]) -> str:
    """The first thing by which a series ranks behind the chosen one."""
    return next(words for (one, words), (other, _) in zip(rank, best, strict=True) if one != other)
