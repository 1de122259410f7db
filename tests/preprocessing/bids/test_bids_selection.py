"""Filter files as fMRIPrep reads them, and one version of each scan: spaces, resolutions, echoes, phases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuroflamingo_preprocessing.bids.filters import KINDS, entity_names, read_filter_file
from neuroflamingo_preprocessing.errors import ConfigError, NotFoundError, UsageError
from neuroflamingo_preprocessing.inputs import find_inputs
from tests.preprocessing.bids.bids_trees import BOLD, T1W, plant

PARCELS = BOLD.model_copy(update={"modality": "parcels", "spacing_mm": None, "origin_mm": None, "template": None})
FUNC = "sub-01/func/sub-01_task-rest"


def names(root: Path, spec: Any, **how: Any) -> list[str]:
    return [one.path.name for one in find_inputs(root, spec, **how)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    begins = [f"sub-0{n}/ses-{s}/func/sub-0{n}_ses-{s}_task-" for n in (1, 2) for s in ("pre", "post")]
    runs = [
        f"{begin}{end}_bold.nii.gz"
        for begin in begins
        for end in ("rest", "rest_acq-fast", "nback_run-01", "nback_run-02")
    ]
    return plant(tmp_path / "ds", [*runs, "sub-01/ses-pre/anat/sub-01_ses-pre_T1w.nii.gz"])


# a section of a filter file -> how many of the 16 runs are left
SECTIONS: list[tuple[dict[str, Any], int]] = [
    ({}, 16),
    ({"datatype": "func", "suffix": "bold"}, 16),
    ({"session": "pre"}, 8),
    ({"session": ["pre", "ses-post"]}, 16),
    ({"ses": ["pre"], "sub": "sub-02"}, 4),
    ({"acquisition": None}, 12),
    ({"acquisition": "*"}, 4),
    ({"acquisition": "fast"}, 4),
    ({"acquisition": ["fast", None], "task": "rest"}, 8),
    ({"run": 1}, 4),
    ({"run": "01"}, 4),
    ({"run": [1, 2, None]}, 16),
    ({"run": None, "acq": None}, 4),
    ({"task": "n.*k", "regex_search": True}, 8),
    ({"task": ["^rest$", "zz"], "regex_search": True}, 8),
    ({"task": "es", "regex_search": False, "session": "pre"}, 0),
    ({"task": "BACK", "regex_search": True}, 0),
    ({"extension": "nii.gz"}, 16),
    ({"extension": [".nii"]}, 0),
    ({"suffix": "sbref"}, 0),
    ({"subject": "1"}, 0),
    ({"echo": None, "space": None, "desc": None, "direction": None}, 16),
]


@pytest.mark.parametrize(("section", "count"), SECTIONS)
def test_filter_files(raw: Path, tmp_path: Path, section: dict[str, Any], count: int) -> None:
    (tmp_path / "f.json").write_text(json.dumps({"bold": section, "t1w": {"session": "pre"}, "fmap": {}}))
    if not count:
        with pytest.raises(NotFoundError) as caught:
            find_inputs(raw, BOLD, filter_file=tmp_path / "f.json")
        assert caught.value.exit_code == 66
        return
    assert len(find_inputs(raw, BOLD, filter_file=tmp_path / "f.json")) == count
    assert len(find_inputs(raw, T1W, filter_file=tmp_path / "f.json")) == 1


def test_filter_file_and_labels_both_hold(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"bold": {"session": "pre"}}')
    assert len(find_inputs(raw, BOLD, {"sub": ("01",)}, filter_file=tmp_path / "f.json")) == 4
    with pytest.raises(NotFoundError, match=r"none with all of these"):
        find_inputs(raw, BOLD, {"ses": ("post",)}, filter_file=tmp_path / "f.json")
    with pytest.raises(NotFoundError, match=r"did you mean nback\?"):
        find_inputs(raw, BOLD, {"task": ("nbak",)}, filter_file=tmp_path / "f.json")


FAULTS: list[tuple[Any, str]] = [
    ({"bolt": {}}, "there is no kind 'bolt' (did you mean bold?)"),
    ({"xyz": {}}, "there is no kind 'xyz' (known: t1w, t2w"),
    ({"bold": {"sesion": "pre"}}, "bold: there is no entity 'sesion' (did you mean session?)"),
    ({"t1w": {"aquisition": None}}, "t1w: there is no entity 'aquisition' (did you mean acquisition?)"),
    ({"bold": ["rest"]}, "bold: not a mapping"),
    ({"bold": {"task": {"a": 1}}}, "task is"),
    ({"bold": {"task": True}}, "task is true, not a label"),
    ({"bold": {"task": []}}, "task is [], not a label"),
    ({"bold": {"run": 1.5}}, "run is 1.5"),
    ({"bold": {"task": [["rest"]]}}, "task is"),
    ({"bold": {"regex_search": "yes"}}, "regex_search must be true or false"),
    ({"bold": {"task": "(", "regex_search": True}}, "task is not a regular expression"),
]


@pytest.mark.parametrize(("content", "words"), FAULTS)
def test_faults_of_filter_files(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        read_filter_file(tmp_path / "f.json", "bold")
    assert words in str(caught.value) and caught.value.exit_code == 78 and str(tmp_path) not in str(caught.value)


def test_all_faults_at_once_and_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"bolt": {}, "bold": {"tsk": "a", "run": true}}')
    with pytest.raises(ConfigError, match=r"f\.json has 3 faults"):
        read_filter_file(tmp_path / "f.json", "bold")
    for text in ("", "{", "[]", "3", "[" * 100_000, '{"bold": {}}'.encode("utf-16-le").decode("latin-1")):
        (tmp_path / "g.json").write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"g\.json cannot be read\n.*a filter file"):
            read_filter_file(tmp_path / "g.json", "bold")
    with pytest.raises(NotFoundError, match="there is no filter file"):
        read_filter_file(tmp_path / "gone.json", "bold")


def test_the_names_that_pybids_knows_are_known() -> None:
    import bids

    config = Path(bids.__file__).parent / "layout" / "config" / "bids.json"
    theirs = {entity["name"] for entity in json.loads(config.read_text())["entities"]} - {
        "scans",
        "fmap",
        "staining",
    }  # the schema says stain
    assert theirs <= set(entity_names())
    assert {"t1w", "t2w", "flair", "bold", "sbref", "fmap", "roi"} <= set(KINDS)


SPACES = [
    "desc-preproc",
    "space-T1w_desc-preproc",
    "space-MNI152NLin2009cAsym_desc-preproc",
    "space-MNI152NLin2009cAsym_res-2_desc-preproc",
    "space-MNI152NLin6Asym_res-1_desc-preproc",
    "space-MNI152NLin6Asym_res-02_desc-preproc",
    "space-MNI152NLin6Asym_desc-smoothAROMAnonaggr",
    "space-MNIPediatricAsym_cohort-1_res-2_desc-preproc",
]
NEVER = [
    "space-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz",
    "space-MNI152NLin6Asym_res-02_boldref.nii.gz",
    "space-MNI152NLin6Asym_res-02_desc-aseg_dseg.nii.gz",
    "space-fsLR_den-91k_bold.dtseries.nii",
    "desc-confounds_timeseries.tsv",
]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (range(7), 5),
        ((0, 1, 2, 3, 4, 6), 4),  # a preprocessed run at another resolution before one that is not
        ((0, 1, 2, 3), 3),
        ((0, 1, 2), 2),
        ((0, 1), 0),
        ((1,), 1),
        ((6, 2), 2),  # smoothed and denoised behind what was only preprocessed
        ((6, 1), 6),  # but before a run in another space
        ((6,), 6),
    ],
)
def test_runs_of_a_derivative(tmp_path: Path, there: Any, taken: int) -> None:
    anat = ["", "space-MNI152NLin6Asym_res-2_"]
    heads = [f"sub-01/anat/sub-01_{x}desc-{y}.nii.gz" for x in anat for y in ("preproc_T1w", "brain_mask")]
    files = [f"{FUNC}_{SPACES[n]}_bold.nii.gz" for n in there] + [f"{FUNC}_{end}" for end in NEVER]
    root, notes = plant(tmp_path / "ds", files + heads), []
    assert names(root, BOLD, notes=notes) == [f"sub-01_task-rest_{SPACES[taken]}_bold.nii.gz"]
    assert notes == ([f"1 scans exist in several versions; used: {SPACES[taken]} for 1"] if len(there) > 1 else [])
    assert names(root, T1W) == ["sub-01_desc-preproc_T1w.nii.gz"]  # in its own space: it is aligned here
    assert len(names(root, PARCELS)) == 1


def test_a_filter_goes_before_the_choice(tmp_path: Path) -> None:
    root = plant(tmp_path / "ds", [f"{FUNC}_{space}_bold.nii.gz" for space in SPACES[:7]])
    (tmp_path / "f.json").write_text('{"bold": {"space": "MNI152NLin2009cAsym", "res": null}}')
    assert names(root, BOLD, filter_file=tmp_path / "f.json") == [f"sub-01_task-rest_{SPACES[2]}_bold.nii.gz"]


def test_what_cannot_be_chosen_is_asked_for(tmp_path: Path) -> None:
    root = plant(
        tmp_path / "ds", [f"{FUNC}_space-MNI152NLin6Asym_desc-{d}_bold.nii.gz" for d in ("denoised", "smoothed")]
    )
    with pytest.raises(UsageError, match="desc-denoised, space-MNI152NLin6Asym_desc-smoothed") as caught:
        find_inputs(root, BOLD)
    assert "--bids-filter-file" in str(caught.value) and caught.value.exit_code == 2


def test_runs_in_different_spaces_are_said(tmp_path: Path) -> None:
    files = [f"sub-0{n}/func/sub-0{n}_task-rest_{SPACES[2 + 3 * (n == 1)]}_bold.nii.gz" for n in (1, 2, 3)]
    notes: list[str] = []
    assert len(find_inputs(plant(tmp_path / "ds", files), BOLD, notes=notes)) == 3
    assert notes == [
        "the runs are in different spaces: MNI152NLin2009cAsym (2), MNI152NLin6Asym (1); a filter file keeps one"
    ]


def test_raw_runs_point_to_derivatives(tmp_path: Path) -> None:
    notes: list[str] = []
    find_inputs(plant(tmp_path / "ds", [f"{FUNC}_bold.nii.gz", f"derivatives/f/{FUNC}_bold.nii.gz"]), BOLD, notes=notes)
    assert notes == ["no file name states a space; preprocessed runs may be in a derivative: give its folder as input"]


def test_phase_images_are_left_out(tmp_path: Path) -> None:
    parts = ("mag", "phase", "real", "imag")
    root = plant(tmp_path / "ds", [f"{FUNC}_part-{part}_bold.nii.gz" for part in parts] + [f"{FUNC}_run-2_bold.nii.gz"])
    notes: list[str] = []
    assert names(root, BOLD, notes=notes) == [
        "sub-01_task-rest_part-mag_bold.nii.gz",
        "sub-01_task-rest_run-2_bold.nii.gz",
    ]
    assert notes == ["3 images of phase, real or imaginary part are left out"]
    (tmp_path / "f.json").write_text('{"bold": {"part": "phase"}}')
    assert names(root, BOLD, filter_file=tmp_path / "f.json") == ["sub-01_task-rest_part-phase_bold.nii.gz"]


def test_echoes(tmp_path: Path) -> None:
    echoes = [f"{FUNC}_echo-{n}_desc-preproc_bold.nii.gz" for n in (1, 2, 3)]
    root = plant(tmp_path / "ds", echoes)
    with pytest.raises(UsageError, match=r"one of 3 echoes") as caught:
        find_inputs(root, BOLD)
    assert '{"bold": {"echo": [2, null]}}' in str(caught.value)  # which keeps the runs without echoes
    (tmp_path / "f.json").write_text('{"bold": {"echo": 2}}')
    assert names(root, BOLD, filter_file=tmp_path / "f.json") == ["sub-01_task-rest_echo-2_desc-preproc_bold.nii.gz"]
    plant(root, [f"{FUNC}_desc-preproc_bold.nii.gz"])
    assert names(root, BOLD) == ["sub-01_task-rest_desc-preproc_bold.nii.gz"]  # the combined one


def test_the_same_scan_twice(tmp_path: Path) -> None:
    root = plant(tmp_path / "ds", ["sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T1w.nii.gz"])
    notes: list[str] = []
    assert names(root, T1W, notes=notes) == ["sub-01_T1w.nii"] and "several versions" in notes[0]
