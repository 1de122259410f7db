"""`select_versions`: choose one version of each scan among spaces, resolutions and echoes."""

from __future__ import annotations

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
MNI_SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
"""In order of preference: encoders of runs were trained on FSL's MNI152, the 6th generation."""
PREPROCESSED = {"preproc": 0, None: 1}


def select_versions(rows: Sequence[Row], spec: ScanSpec, notes: list[str]) -> list[Row]:
    """Choose the version of each scan that an encoder takes.

    For encoders of runs MNI152 space is preferred (6th generation, 2009c, others), then `desc-preproc`, then the
    encoder's own resolution. For volumes the native space is preferred: they are aligned here. Combined echoes are
    preferred to single ones.

    Args:
        rows: files with their entities, as `BidsIndex.files` gives them.
        spec: `card.scan` of the encoder.
        notes: extended in place by what was chosen.

    Raises:
        UsageError: versions between which only the user can choose, such as the echoes of a run.
    """
    scans: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        scans[tuple((key, str(row[key])) for key in sorted(row) if key not in APART)].append(row)
    chosen = {key: _best(_combined(versions), spec) for key, versions in scans.items()}
    several = [chosen[key] for key, versions in scans.items() if len(versions) > 1]
    if several:
        counts = Counter(_version(row) or "the one in its own space" for row in several).most_common()
        taken = ", ".join(f"{version} for {count}" for version, count in counts)
        notes.append(f"{len(several)} scans exist in several versions; used: {taken}")
    spaces = Counter(str(row.get("space", "none named")) for row in chosen.values())
    if len(spaces) > 1 and spec.takes_runs:
        found = ", ".join(f"{space} ({count})" for space, count in spaces.most_common())
        notes.append(f"the runs are in different spaces: {found}; a filter file keeps one")
    return sorted(chosen.values(), key=lambda row: str(row["path"]))


def _combined(versions: list[Row]) -> list[Row]:
    whole = [row for row in versions if "echo" not in row]
    echoes = {row["echo"] for row in versions if "echo" in row}
    if not whole and len(echoes) > 1:
        raise UsageError(
            f"{versions[0]['path'].rpartition('/')[2]} is one of {len(echoes)} echoes of a scan",
            expected="the echoes combined into one series (fMRIPrep and tedana do it), or one of them",
            seen="echo-" + ", echo-".join(str(echo) for echo in sorted(echoes, key=str)),
            hint=f'choose with --bids-filter-file: {{"{versions[0]["suffix"].lower()}": {{"echo": 2}}}}',
        )
    return whole or versions


def _best(versions: list[Row], spec: ScanSpec) -> Row:
    ranked = sorted((_rank(row, spec), str(row["path"]), row) for row in versions)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        equal = [row for rank, _, row in ranked if rank == ranked[0][0]]
        raise UsageError(
            f"{equal[0]['path'].rpartition('/')[2]} is one of {len(equal)} versions of a scan",
            expected="one version preferred to the others: MNI152 space, desc-preproc, the encoder's resolution",
            seen=", ".join(_version(row) for row in equal),
            hint=f'choose with --bids-filter-file: {{"{equal[0]["suffix"].lower()}": {{"desc": "..."}}}}',
        )
    return ranked[0][2]


def _rank(row: Row, spec: ScanSpec) -> tuple[Any, ...]:
    """Rank of a version, smaller is better; versions of equal rank are left to the user."""
    space, description = row.get("space"), row.get("desc")
    other = 2 if space == "MNI" or str(space).startswith("MNI152") else None
    mni = MNI_SPACES.index(space) if space in MNI_SPACES else other
    own = 3 if space is None else 4
    place = (
        (own if mni is None else mni)
        if spec.takes_runs
        else (0 if space is None else 1 + (own if mni is None else mni))
    )
    return place, PREPROCESSED.get(description, 2), _distance(row.get("res"), spec), str(row["ext"])


def _distance(label: Any, spec: ScanSpec) -> tuple[float, float]:
    """Distance of a `res` label from the encoder's voxel size in mm; no label ranks behind the exact one only."""
    if label is None or not str(label).isdigit():
        return (0.5, 0.0 if label is None else 1.0)
    wanted = spec.spacing_mm[0] if spec.spacing_mm else 2.0
    return (abs(float(label) - wanted), float(label))


def _version(row: Row) -> str:
    return "_".join(f"{entity}-{row[entity]}" for entity in VERSION if entity in row)
