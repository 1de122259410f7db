"""Confounds: the columns that nilearn chooses, motion as Power computes it, tables that do not fit are refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from nilearn.interfaces.fmriprep import load_confounds

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.functional.confounds import (
    RIGID,
    SETS,
    choose,
    find_confounds,
    framewise_displacement,
    parse_strategy,
    read_confounds,
    regressors,
)

FOUND = importlib.util.find_spec("nilearn")
assert FOUND is not None and FOUND.submodule_search_locations
SHIPPED = Path(FOUND.submodule_search_locations[0]) / "interfaces" / "fmriprep" / "data"
"""Tables of real runs that nilearn ships: fMRIPrep before and since version 21."""
TABLES = {"old": "test_desc-confounds_regressors", "new": "test-v21_desc-confounds_timeseries"}
RUN = "sub-01_task-rest_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"


def place(folder: Path, which: str) -> Path:
    """A run's name with its table beside it, as fMRIPrep lays them out; gives the table."""
    if not (SHIPPED / f"{TABLES[which]}.tsv").is_file():
        pytest.skip("this nilearn ships no confounds")
    suffix = "timeseries" if which == "new" else "regressors"
    for ending in ("tsv", "json"):
        shutil.copy(
            SHIPPED / f"{TABLES[which]}.{ending}", folder / f"sub-01_task-rest_desc-confounds_{suffix}.{ending}"
        )
    (folder / RUN).write_bytes(b"")
    return folder / f"sub-01_task-rest_desc-confounds_{suffix}.tsv"


MATCHES = [
    ("6p", {"strategy": ["motion"], "motion": "basic"}),
    ("12p", {"strategy": ["motion"], "motion": "derivatives"}),
    ("24p", {"strategy": ["motion"], "motion": "full"}),
    ("2p", {"strategy": ["wm_csf"], "wm_csf": "basic"}),
    ("9p", {"strategy": ["motion", "wm_csf", "global_signal"], "motion": "basic"}),
    ("36p", {"strategy": ["motion", "wm_csf", "global_signal"], "wm_csf": "full", "global_signal": "full"}),
    ("cosine", {"strategy": ["high_pass"]}),
    ("acompcor", {"strategy": ["high_pass", "compcor"], "compcor": "anat_combined", "n_compcor": 5}),
    ("tcompcor", {"strategy": ["high_pass", "compcor"], "compcor": "temporal", "n_compcor": 5}),
]


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize(("name", "how"), MATCHES, ids=[name for name, _ in MATCHES])
def test_sets_are_the_columns_that_nilearn_loads(tmp_path: Path, which: str, name: str, how: dict) -> None:
    table = place(tmp_path, which)
    theirs, kept = load_confounds(str(tmp_path / RUN), demean=False, **how)
    confounds = read_confounds(find_confounds(tmp_path / RUN), 30)
    columns = choose(confounds, [name])
    assert confounds.file == table.name and sorted(columns) == sorted(theirs.columns)
    np.testing.assert_array_equal(regressors(confounds, list(theirs.columns)), theirs.to_numpy())
    unsteady = confounds.non_steady()
    assert (kept is None and not len(unsteady)) or np.array_equal(kept, np.setdiff1d(np.arange(30), unsteady))


@pytest.mark.parametrize(("which", "others"), [("old", 2), ("new", 0)])
def test_framewise_displacement_is_that_of_fmriprep(tmp_path: Path, which: str, others: int) -> None:
    """The shipped tables hold fMRIPrep's own figure; in two lines of the older one it is not that of its parameters."""
    confounds = read_confounds(place(tmp_path, which))
    theirs = confounds.columns(["framewise_displacement"])[:, 0]
    ours = framewise_displacement(confounds)
    assert ours is not None and ours[0] == 0 and np.isnan(theirs[0])
    assert int((np.abs(ours[1:] - theirs[1:]) > 1e-9).sum()) == others


def write(path: Path, names: list[str], rows: list[list[object]]) -> Path:
    path.write_text("\n".join("\t".join(map(str, row)) for row in [names, *rows]) + "\n")
    return path


def test_framewise_displacement_by_hand(tmp_path: Path) -> None:
    """1 mm along x and -2 mm along z, then 0.01 rad about y: 3 mm, and 0.5 mm of arc at 50 mm."""
    rows = [[0.0] * 6, [1, 0, -2, 0, 0, 0], [1, 0, -2, 0, 0.01, 0]]
    table = read_confounds(write(tmp_path / "a.tsv", list(RIGID), rows))
    np.testing.assert_allclose(framewise_displacement(table), [0, 3, 0.5])  # type: ignore[arg-type]
    own = write(tmp_path / "b.tsv", ["framewise_displacement", "x"], [["n/a", 1], [0.3, 2]])
    np.testing.assert_allclose(framewise_displacement(read_confounds(own)), [0, 0.3])  # type: ignore[arg-type]
    assert framewise_displacement(read_confounds(write(tmp_path / "c.tsv", ["x"], [[1], [2]]))) is None
    with pytest.raises(ScanError, match="motion parameters that are not numbers"):
        framewise_displacement(read_confounds(write(tmp_path / "d.tsv", list(RIGID), [[0.0] * 6, ["n/a"] + [0] * 5])))


def test_columns_by_name_and_by_pattern(tmp_path: Path) -> None:
    confounds = read_confounds(place(tmp_path, "new"))
    assert choose(confounds, ["csf", "rot_x", "csf"]) == ("csf", "rot_x")
    assert len(choose(confounds, ["6P", "motion_outlier*"])) == 6 + 23
    assert "cosine00" not in choose(confounds, ["acompcor"], filtered=True)
    with pytest.raises(ScanError, match="lacks columns of 'csf_power3'") as caught:
        choose(confounds, ["csf_power3"])
    assert "csf_power2" in str(caught.value) and all(name in str(caught.value) for name in SETS)
    with pytest.raises(ScanError, match="lacks columns"):
        choose(read_confounds(write(tmp_path / "x.tsv", ["x"], [[1], [2]])), ["acompcor"])
    assert parse_strategy("24p, gsr+cosine") == ("24p", "gsr", "cosine") and parse_strategy(None) == ()
    with pytest.raises(UsageError, match="'none' and other words"):
        parse_strategy("none,6p")


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    table = read_confounds(write(tmp_path / "t.tsv", ["a", "b"], [["n/a", 1], [2, "n/a"], [3, 4]]))
    assert regressors(table, ["a"])[:, 0].tolist() == [2, 2, 3]
    with pytest.raises(ScanError, match="values that are not numbers") as caught:
        regressors(table, ["a", "b"])
    assert "b in line 3" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a confound table"),
        ("a\tb\n", "not a confound table"),
        ("a\tb\n1\t2\n3\n", "not a confound table"),
        ("a\tb\n1\tword\n", "not a confound table"),
        ("a\ta\n1\t2\n", "duplicate column 'a'"),
        ("a\n1\n2\n3\n", "does not belong to this run"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(ScanError, match=words) as caught:
        read_confounds(tmp_path / "t.tsv", 2)
    assert caught.value.exit_code == 65 and str(tmp_path) not in str(caught.value)


def test_which_table_is_the_runs(tmp_path: Path) -> None:
    run = tmp_path / "sub-01_task-rest_run-2_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    with pytest.raises(NotFoundError, match="no confounds beside"):
        find_confounds(run)
    for name in ("sub-02_task-rest_run-2", "sub-01_task-rest_run-1", "sub-01_task-rest", "sub-01_task-rest_run-2"):
        write(tmp_path / f"{name}_desc-confounds_timeseries.tsv", ["x"], [[1]])
    assert find_confounds(run).name == "sub-01_task-rest_run-2_desc-confounds_timeseries.tsv"
    write(tmp_path / "sub-01_task-rest_run-2_desc-confounds_regressors.tsv", ["x"], [[1]])
    with pytest.raises(ScanError, match="several confound tables"):
        find_confounds(run)
    (tmp_path / "j.tsv").write_text("x\n1\n")
    (tmp_path / "j.json").write_text("[")
    with pytest.raises(ScanError, match=r"j\.json cannot be read"):
        read_confounds(tmp_path / "j.tsv")
    with pytest.raises(NotFoundError):
        read_confounds(tmp_path / "gone.tsv")
