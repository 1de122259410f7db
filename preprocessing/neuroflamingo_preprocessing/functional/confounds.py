"""fMRIPrep confound tables: reading, selection of columns, framewise displacement."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo_preprocessing.bids.entities import entities_of, folded
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError, nearest
from neuroflamingo_preprocessing.files import read_json
from neuroflamingo_preprocessing.formats.dicom.archive import shown_name
from neuroflamingo_preprocessing.user_files import decode_text

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import NDArray

MAX_TABLE_BYTES = 2**27
ENDINGS = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv")
"""File names since fMRIPrep 20.2, and before."""
RIGID = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
HEAD_RADIUS_MM = 50.0
STEADY = "non_steady_state_outlier*"
COMPONENTS = 5
"""Number of CompCor components, as in Behzadi et al. 2007 and in XCP-D."""


def _expanded(names: Sequence[str]) -> tuple[str, ...]:
    """Columns with their derivatives, squares and squared derivatives, under fMRIPrep's names."""
    return tuple(n + more for n in names for more in ("", "_derivative1", "_power2", "_derivative1_power2"))


_TISSUES = ("white_matter", "csf")
SETS: dict[str, tuple[str, ...]] = {
    "6p": RIGID,
    "12p": tuple(n + more for n in RIGID for more in ("", "_derivative1")),
    "24p": _expanded(RIGID),
    "2p": _TISSUES,
    "8p": (*RIGID, *_TISSUES),
    "9p": (*RIGID, *_TISSUES, "global_signal"),
    "36p": _expanded((*RIGID, *_TISSUES, "global_signal")),
    "gsr": ("global_signal",),
    "cosine": ("cosine*",),
}
"""Strategies (Ciric et al. 2017; 24p: Friston et al. 1996) as columns of fMRIPrep; see `choose` for CompCor."""


@dataclass(frozen=True)
class Confounds:
    """Confound table: a row for each frame of a run.

    Attributes:
        names: column names.
        values: `[frame, column]`, NaN where the table says `n/a`.
        file, sha256: name and hash of the table.
        components: metadata of CompCor's columns from the JSON beside the table; empty without one.
    """

    names: tuple[str, ...]
    values: Float64[np.ndarray, "frame column"]
    file: str
    sha256: str
    components: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def columns(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Values of the named columns, `[frame, name]`."""
        return self.values[:, [self.names.index(name) for name in names]]

    def non_steady(self) -> NDArray[np.intp]:
        """Indices of the non-steady-state frames that fMRIPrep marked."""
        marked = [name for name in self.names if fnmatchcase(name, STEADY)]
        return np.flatnonzero((self.columns(marked) > 0).any(axis=1))


def find_confounds(run: Path) -> Path:
    """Find the confound table that fMRIPrep wrote beside a run: all of its entities are the run's.

    `run-1` and `run-01` are the same run: fMRIPrep drops the zeros.

    Raises:
        NotFoundError: no such table (exit 66).
        ScanError: several tables fit equally well (exit 65).
    """
    written = entities_of(run)
    mine = folded(written)
    fitting: list[tuple[int, bool, Path]] = []
    for path in sorted(p for p in run.parent.iterdir() if p.name.endswith(ENDINGS)):
        theirs = {key: value for key, value in entities_of(path).items() if key != "desc"}
        if theirs and folded(theirs).items() <= mine.items():
            fitting.append((len(theirs), theirs.items() <= written.items(), path))
    if not fitting:
        raise NotFoundError(
            f"there are no confounds beside {shown_name(run)}",
            expected=f"a file *{ENDINGS[0]} with the run's entities",
            hint="--confounds FILE.tsv",
        )
    most = max(fit[:2] for fit in fitting)
    best = [path for *fit, path in fitting if tuple(fit) == most]
    if len(best) > 1:
        raise ScanError(
            f"several confound tables fit {shown_name(run)}",
            expected="one",
            seen=", ".join(path.name for path in best),
            hint="--confounds FILE.tsv",
        )
    return best[0]


def read_confounds(path: str | Path, frames: int | None = None) -> Confounds:
    """Read a tab-separated confound table with a header row; `n/a` and empty cells are NaN.

    Args:
        path: the file.
        frames: number of frames of the run, which must be the number of rows; None: not checked.

    Raises:
        NotFoundError: no such file (exit 66).
        ScanError: not a table of numbers, a duplicate name, another number of rows (exit 65).
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", expected="a table of confounds (.tsv)", hint="check the path")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise _no_table(path, f"{path.stat().st_size:,} bytes")
    raw = path.read_bytes()
    try:
        lines = [line.split("\t") for line in decode_text(raw).splitlines() if line.strip()]
        names, rows = tuple(word.strip() for word in lines[0]), lines[1:]
        widths = {len(row) for row in rows}
        if not rows or widths != {len(names)}:
            raise ValueError(f"{len(names)} names over lines of {sorted(widths)[:5]} values")
        values = np.array([[_number(word) for word in row] for row in rows])
    except (UnicodeDecodeError, ValueError, IndexError) as error:
        raise _no_table(path, str(error)[:200]) from error
    if len(set(names)) < len(names):
        raise _no_table(path, f"duplicate column '{next(n for n in names if names.count(n) > 1)}'")
    if frames is not None and len(values) != frames:
        raise ScanError(
            f"{path.name} does not belong to this run",
            expected=f"{frames} rows of values, one for each frame",
            seen=f"{len(values)}",
            hint="give the complete table of this run: frames are left out later",
        )
    return Confounds(names, values, path.name, hashlib.sha256(raw).hexdigest(), _components(path))


def _number(word: str) -> float:
    word = word.strip()
    return float("nan") if word in ("", "n/a", "NaN", "nan") else float(word)


def _no_table(path: Path, seen: str) -> ScanError:
    return ScanError(
        f"{path.name} is not a confound table",
        expected="a header row, then a row of numbers (or n/a) for each frame, separated by tabs",
        seen=seen,
        hint="give fMRIPrep's desc-confounds_timeseries.tsv, or a table like it",
    )


def component_file(path: Path) -> Path:
    """Path of the JSON file that describes the columns of a table."""
    return path.with_suffix(".json")


def _components(path: Path) -> dict[str, Mapping[str, Any]]:
    file = component_file(path)
    if not file.is_file():
        return {}
    expected = "the JSON file that fMRIPrep writes beside the confounds"
    columns = read_json(file, expected=expected, hint="correct or remove it")
    return {name: metadata for name, metadata in columns.items() if isinstance(metadata, dict)}


def choose(confounds: Confounds, strategy: Sequence[str], filtered: bool = False) -> tuple[str, ...]:
    """Select confound columns by strategies, names and patterns; each column once, in that order.

    Strategies are `6p`, `12p`, `24p` (rigid-body motion parameters and their expansions), `2p` (white matter and CSF),
    `8p`, `9p`, `36p`, `gsr` (global signal), `cosine`, `acompcor` (the first five components of white matter and CSF
    combined) and `tcompcor`. CompCor brings the cosines along, since fMRIPrep computes the components after high-pass
    filtering, unless the run is high-pass filtered here. Other words are column names, or patterns such as
    `motion_outlier*`.

    Args:
        confounds: the table.
        strategy: words of `--confound-strategy`.
        filtered: whether the run is high-pass filtered here.

    Raises:
        ScanError: columns that the table lacks, with the nearest names (exit 65).
    """
    wanted: list[str] = []
    for word in strategy:
        for column in _meant(confounds, word, filtered):
            if any(sign in column for sign in "*?["):
                wanted += [name for name in confounds.names if fnmatchcase(name, column)] or [column]
            else:
                wanted.append(column)
    missing = [name for name in dict.fromkeys(wanted) if name not in confounds.names]
    if missing:
        near = nearest(missing[:20], confounds.names, 2, 0.7)
        raise ScanError(
            f"{confounds.file} lacks columns of '{' '.join(strategy)}'",
            expected=", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else ""),
            seen=f"{len(confounds.names)} columns" + (f", the nearest are {', '.join(near[:6])}" if near else ""),
            hint=f"choose from {', '.join(SETS)}, acompcor, tcompcor, or name columns",
        )
    return tuple(dict.fromkeys(wanted))


def _meant(confounds: Confounds, word: str, filtered: bool) -> tuple[str, ...]:
    name = word.lower()
    if name in SETS:
        return SETS[name]
    if name not in ("acompcor", "tcompcor"):
        return (word,)
    columns = [n for n in confounds.names if re.fullmatch(rf"{name[0]}_comp_cor_\d+", n)]
    if name == "acompcor" and any(n in confounds.components for n in columns):
        columns = [n for n in columns if confounds.components.get(n, {}).get("Mask") == "combined"]
    retained = [n for n in columns if confounds.components.get(n, {}).get("Retained", True)]
    cosines = () if filtered else tuple(n for n in confounds.names if fnmatchcase(n, "cosine*"))  # none in short runs
    return (*(retained[:COMPONENTS] or [f"{name[0]}_comp_cor_*"]), *cosines)


def regressors(confounds: Confounds, names: Sequence[str]) -> NDArray[np.float64]:
    """Regressors `[frame, name]`, all finite.

    `n/a` in the first row, where derivatives have it, takes the value of the second row, as in nilearn's
    `load_confounds`.

    Raises:
        ScanError: other values that are not finite (exit 65).
    """
    values = confounds.columns(names)
    if len(values) > 1:
        values[0] = np.where(np.isnan(values[0]), values[1], values[0])
    bad = ~np.isfinite(values).all(axis=0)
    if bad.any():
        column = int(np.flatnonzero(bad)[0])
        row = int(np.flatnonzero(~np.isfinite(values[:, column]))[0])
        raise ScanError(
            f"{confounds.file} has values that are not numbers",
            expected="n/a in the first row of values at most",
            seen=f"{names[column]} in line {row + 2}"
            + (f", and {int(bad.sum()) - 1} more columns" * bool(bad.sum() > 1)),
            hint="leave out these columns: --confound-strategy",
        )
    return values


def framewise_displacement(confounds: Confounds) -> Float64[np.ndarray, " frame"] | None:
    """Framewise displacement in mm; 0 for the first frame.

    The sum of the absolute changes of the six rigid-body parameters, with rotations (radians) as arcs on a sphere of
    50 mm radius: Power et al. 2012, NeuroImage 59:2142. Without these columns the table's own
    `framewise_displacement` is used.

    Returns:
        `[frame]`, or None if the table has neither.

    Raises:
        ScanError: motion parameters that are not finite (exit 65).
    """
    if set(RIGID) <= set(confounds.names):
        moved = np.abs(np.diff(confounds.columns(RIGID), axis=0))
        displacement = moved[:, :3].sum(axis=1) + HEAD_RADIUS_MM * moved[:, 3:].sum(axis=1)
        displacement = np.concatenate([[0.0], displacement])
    elif "framewise_displacement" in confounds.names:
        displacement = confounds.columns(["framewise_displacement"])[:, 0]
        displacement[0] = np.nan_to_num(displacement[0])
    else:
        return None
    if not np.isfinite(displacement).all():
        raise ScanError(
            f"{confounds.file} has motion parameters that are not numbers",
            expected="numbers in all rows",
            seen=f"framewise displacement unknown from frame {int(np.flatnonzero(~np.isfinite(displacement))[0])} on",
            hint="give another table",
        )
    return displacement


def parse_strategy(text: str | None) -> tuple[str, ...]:
    """Split the words of `--confound-strategy` at commas, `+` or spaces.

    Raises:
        UsageError: `none` together with other words.
    """
    words = tuple(re.split(r"[,+\s]+", text.strip())) if text and text.strip() else ()
    if "none" in words and len(words) > 1:
        raise UsageError("--confound-strategy has 'none' and other words", expected="none alone", seen=str(text))
    return words
