"""`select_versions`: choose one version of each scan among spaces, resolutions and echoes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.spec import ScanSpec

Row = Mapping[str, Any]
VERSION = ("space", "res", "den", "desc")
"""Entities that distinguish versions of one scan, not scans."""
APART = {*VERSION, "echo", "ext", "path"}
MNI_SPACES = ("mni152nlin6asym", "mni152nlin2009casym")
"""In order of preference: encoders of runs were trained on FSL's MNI152, the 6th generation."""
PREPROCESSED = {"preproc": 0, None: 1}
COMBINATIONS = ("rms", "sos", "sum", "avg", "mean", "comb", "combined", "optcom")
"""Labels of `rec` for echoes that were combined into one image."""


def select_versions(rows: Sequence[Row], spec: ScanSpec, notes: list[str]) -> list[Row]:
    """Choose the version of each scan that an encoder takes.

    For encoders of runs MNI152 space is preferred, then unsmoothed `desc-preproc`, then the 6th generation to 2009c and
    others, then the encoder's own resolution. For volumes the native space is preferred: they are aligned here.
    Combined echoes are preferred to single ones, files at their place in the dataset to others deeper in it. A scan
    between whose versions only the user can choose is left out with a note, if there are others.

    Args:
        rows: files with their entities, as `BidsIndex.files` gives them.
        spec: `card.scan` of the encoder.
        notes: extended in place by what was chosen, and what was left out.

    Raises:
        UsageError: of no scan a version can be chosen, such as the echoes of a run.
    """
    chosen: list[Row] = []
    several: list[Row] = []
    faults: list[UsageError] = []
    for versions in _scans(rows):
        try:
            best = _best(_combined(versions), spec, rows)
        except UsageError as fault:
            faults.append(fault)
            continue
        chosen.append(best)
        several += [best] if len(versions) > 1 else []
    if faults and not chosen:
        raise faults[0]
    notes += [f"left out: {fault.what} ({fault.seen}); {fault.hint}" for fault in faults]
    if several:
        counts = Counter(_version(row) or "the one in its own space" for row in several).most_common()
        taken = ", ".join(f"{version} for {count}" for version, count in counts)
        notes.append(f"{len(several)} scans exist in several versions; used: {taken}")
    spaces = Counter(str(row.get("space", "none named")) for row in chosen)
    if len(spaces) > 1 and spec.takes_runs:
        found = ", ".join(f"{space} ({count})" for space, count in spaces.most_common())
        notes.append(f"the runs are in different spaces: {found}; a filter file keeps one")
    return sorted(chosen, key=lambda row: str(row["path"]))


def _scans(rows: Sequence[Row]) -> list[list[Row]]:
    """Files by scan; an image that combines the echoes of a scan is a version of it."""
    scans: dict[Any, list[Row]] = defaultdict(list)
    with_echoes = {_key(row) for row in rows if "echo" in row}
    for row in rows:
        plain = _key({key: value for key, value in row.items() if key != "rec"})
        combines = str(row.get("rec", "")).lower() in COMBINATIONS and plain in with_echoes
        scans[plain if combines else _key(row)].append(row)
    return list(scans.values())


def _key(row: Row) -> Any:
    return tuple((key, str(row[key])) for key in sorted(row) if key not in APART)


def _combined(versions: list[Row]) -> list[Row]:
    whole = [row for row in versions if "echo" not in row]
    echoes = {row["echo"] for row in versions if "echo" in row}
    if not whole and len(echoes) > 1:
        raise UsageError(
            f"{_name(versions[0])} is one of {len(echoes)} echoes of a scan",
            expected="the echoes combined into one series (fMRIPrep and tedana do it), or one of them",
            seen="echo-" + ", echo-".join(str(echo) for echo in sorted(echoes, key=str)),
            hint=_filter(versions[0], "echo", [sorted(echoes, key=str)[1], None]),
        )
    return whole or versions


def _best(versions: list[Row], spec: ScanSpec, rows: Sequence[Row]) -> Row:
    ranked = sorted((_rank(row, spec), str(row["path"]), row) for row in versions)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        equal = [row for rank, _, row in ranked if rank == ranked[0][0]]
        apart = next((entity for entity in VERSION if len({row.get(entity) for row in equal}) > 1), None)
        raise UsageError(
            f"{_name(equal[0])} is one of {len(equal)} versions of a scan",
            expected="one version preferred to the others: MNI152 space, desc-preproc, the encoder's resolution",
            seen=", ".join(_version(row) if apart else str(row["path"]) for row in equal),
            hint=_filter(equal[0], apart, _all_but(rows, apart, equal))
            if apart
            else "remove or rename all of them but one, or name them in .bidsignore",
        )
    return ranked[0][2]


def _all_but(rows: Sequence[Row], entity: str, equal: Sequence[Row]) -> list[Any]:
    """Labels of a filter that settles one scan and keeps the others: the first of the equal ones, and all the rest."""
    given = {row.get(entity) for row in equal[1:]}
    left = {row.get(entity) for row in rows} - given | {equal[0].get(entity)}
    return [*sorted((label for label in left if label is not None), key=str), *([None] if None in left else [])]


def _filter(row: Row, entity: str, labels: list[Any]) -> str:
    return f"choose with --bids-filter-file: {json.dumps({str(row['suffix']).lower(): {entity: labels}})}"


def _name(row: Row) -> str:
    return str(row["path"]).rpartition("/")[2]


def _rank(row: Row, spec: ScanSpec) -> tuple[Any, ...]:
    """Rank of a version, smaller is better; versions of equal rank are left to the user."""
    space, description = (row[name].casefold() if name in row else None for name in ("space", "desc"))
    other = 2 if space == "mni" or str(space).startswith("mni152") else None
    mni = MNI_SPACES.index(space) if space in MNI_SPACES else other
    own = 3 if space is None else 4
    place: tuple[Any, ...] = (0 if space is None else 1 + (own if mni is None else mni),)
    if spec.takes_runs:  # smoothed or denoised runs (fMRIPrep's AROMA) behind those that were only preprocessed
        place = (mni is None, description not in PREPROCESSED, own if mni is None else mni)
    depth = str(row["path"]).count("/")
    return *place, PREPROCESSED.get(description, 2), _distance(row.get("res"), spec), str(row["ext"]), depth


def _distance(label: Any, spec: ScanSpec) -> tuple[float, float]:
    """Distance of a `res` label from the encoder's voxel size in mm; no label ranks behind the exact one only."""
    if label is None or not str(label).isdigit():
        return (0.5, 0.0 if label is None else 1.0)
    wanted = spec.spacing_mm[0] if spec.spacing_mm else 2.0
    return (abs(float(label) - wanted), float(label))


def _version(row: Row) -> str:
    return "_".join(f"{entity}-{row[entity]}" for entity in VERSION if entity in row)
