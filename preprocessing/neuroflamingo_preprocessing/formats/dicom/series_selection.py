"""Which of the series of a DICOM input is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neuroflamingo_preprocessing.errors import ScanError, UsageError

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.formats.dicom.series import Series


def choose_series(
    found: Sequence[Series], wanted: Literal["T1w", "bold"], number: int | None
) -> tuple[Series, list[str]]:
    """The series that is meant, and what there is to say about the choice.

    With a number: that series (of several parts the magnitude of the first echo). Without: the one of the wanted kind;
    of several the 3D one without contrast agent, complete, with the smallest voxels.

    Raises:
        UsageError: no series has this number.
        ScanError: none can be chosen, or the chosen one cannot be converted; the series are listed (exit 65).
    """
    if number is not None:
        candidates = [one for one in found if one.number == number]
        if not candidates:
            raise UsageError(
                f"there is no series {number}",
                expected=", ".join(map(str, sorted({one.number for one in found}))),
                seen=f"--series {number}",
            )
    else:
        candidates = [one for one in found if one.kind == wanted and one.head]
        alone = [one for one in found if one.kind == "unknown" and one.head and one.slices > 2 and one.volumes == 1]
        if not candidates and wanted == "T1w" and len(alone) == 1:
            candidates = alone
    if not candidates:
        raise ScanError(
            f"no series can be chosen: none is {_WANTED[wanted]} by its header",
            expected=f"one {wanted} series of the head",
            seen=_listed(found),
            hint="--series NUMBER, if you know that one of them is",
        )
    chosen = min(candidates, key=_rank)
    if chosen.fault:
        raise ScanError(
            f"{chosen.name} cannot be used: {chosen.fault}",
            expected="a complete series of parallel, evenly spaced slices",
            seen=_listed(found),
            hint="give the folder that holds the whole series"
            if len(chosen.files) == 1
            else "export the series again, or choose another with --series",
        )
    return chosen, _remarks(chosen, found, candidates, wanted, number)


_WANTED = {"T1w": "a T1-weighted volume", "bold": "an fMRI run"}


def _rank(one: Series) -> tuple[Any, ...]:
    size = float(np.prod(one.spacing)) if one.spacing else np.inf
    good = one.fault is not None, not one.three_d, one.agent
    return *good, one.component != "magnitude", round(size, 3), -one.slices * one.volumes, one.order, one.number


def _listed(found: Sequence[Series]) -> str:
    lines = [one.describe() for one in found[:40]]
    return (
        "\n    ".join([*lines, *([f"and {len(found) - 40} more"] if len(found) > 40 else [])]) or "none with a picture"
    )


def _remarks(
    chosen: Series, found: Sequence[Series], candidates: Sequence[Series], wanted: str, number: int | None
) -> list[str]:
    said = list(chosen.warnings)
    if chosen.kind not in (wanted, "unknown"):
        said.append(f"{chosen.name} was asked for; by its header it is {chosen.kind}, not {wanted}")
    if chosen.kind == "unknown":
        said.append(f"the header of {chosen.name} does not say how it is weighted; it is taken for {wanted}")
    others = [one for one in candidates if one is not chosen]
    if others and number is None:
        words = "; ".join(one.describe() for one in others[:5]) + ("; ..." if len(others) > 5 else "")
        said.append(f"of {len(candidates)} {wanted} series {chosen.name} was taken; --series chooses another ({words})")
    elif others:
        said.append(f"{chosen.name} has {len(candidates)} parts; the one taken is {chosen.part or 'the first'}")
    if chosen.agent and wanted == "T1w":
        said.append(f"{chosen.name} was made with a contrast agent")
    return said
