"""`choose_series`: choose among the series of a DICOM input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError, UsageError

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.dicom.series import Series


def choose_series(
    series: Sequence[Series], kind: Literal["T1w", "bold"], number: int | None
) -> tuple[Series, list[str]]:
    """Choose a series; also gives warnings about the choice.

    With a number: that series (of several parts, the magnitude of the first echo). Without: the series of the kind; of
    several the complete 3D one without contrast agent and with the smallest voxels.

    Args:
        series: all series of the input.
        kind: kind of series to choose.
        number: number of the series, or None.

    Raises:
        UsageError: no series has this number.
        ScanError: none can be chosen, or the chosen one cannot be converted; the series are listed (exit 65).
    """
    if number is not None:
        candidates = [candidate for candidate in series if candidate.number == number]
        if not candidates:
            raise UsageError(
                f"there is no series {number}",
                expected=", ".join(map(str, sorted({candidate.number for candidate in series}))),
                seen=f"--series {number}",
            )
    else:
        candidates = [candidate for candidate in series if candidate.kind == kind and candidate.head]
        alone = [
            candidate
            for candidate in series
            if candidate.kind == "unknown" and candidate.head and candidate.slices > 2 and candidate.volumes == 1
        ]
        if not candidates and kind == "T1w" and len(alone) == 1:
            candidates = alone
    if not candidates:
        raise ScanError(
            f"no series can be chosen: none is {_KIND_NAMES[kind]} by its header",
            expected=f"one {kind} series of the head",
            seen=_listed(series),
            hint="--series NUMBER, if you know that one of them is",
        )
    chosen = min(candidates, key=_rank)
    if chosen.fault:
        raise ScanError(
            f"{chosen.name} cannot be used: {chosen.fault}",
            expected="a complete series of parallel, evenly spaced slices",
            seen=_listed(series),
            hint="give the folder that holds the whole series"
            if len(chosen.files) == 1
            else "export the series again, or choose another with --series",
        )
    return chosen, _remarks(chosen, series, candidates, kind, number)


_KIND_NAMES = {"T1w": "a T1-weighted volume", "bold": "an fMRI run"}


def _rank(candidate: Series) -> tuple[Any, ...]:
    size = float(np.prod(candidate.spacing)) if candidate.spacing else np.inf
    good = candidate.fault is not None, not candidate.three_d, candidate.agent
    return (
        *good,
        candidate.component != "magnitude",
        round(size, 3),
        -candidate.slices * candidate.volumes,
        candidate.order,
        candidate.number,
    )


def _listed(series: Sequence[Series]) -> str:
    lines = [candidate.describe() for candidate in series[:40]]
    return (
        "\n    ".join([*lines, *([f"and {len(series) - 40} more"] if len(series) > 40 else [])]) or "none with images"
    )


def _remarks(
    chosen: Series, series: Sequence[Series], candidates: Sequence[Series], kind: str, number: int | None
) -> list[str]:
    warnings = list(chosen.warnings)
    if chosen.kind not in (kind, "unknown"):
        warnings.append(f"{chosen.name} was asked for; by its header it is {chosen.kind}, not {kind}")
    if chosen.kind == "unknown":
        warnings.append(f"the header of {chosen.name} does not say how it is weighted; it is read as {kind}")
    others = [candidate for candidate in candidates if candidate is not chosen]
    if others and number is None:
        words = "; ".join(candidate.describe() for candidate in others[:5]) + ("; ..." if len(others) > 5 else "")
        warnings.append(
            f"of {len(candidates)} {kind} series {chosen.name} was chosen; --series chooses another ({words})"
        )
    elif others:
        warnings.append(f"{chosen.name} has {len(candidates)} parts; the one chosen is {chosen.part or 'the first'}")
    if chosen.agent and kind == "T1w":
        warnings.append(f"{chosen.name} was made with a contrast agent")
    return warnings
