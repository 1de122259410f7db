"""Datasets as people keep them: zeros, capital letters, byte order marks, odd subjects, folders of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuroflamingo_preprocessing.bids.index import bids_index
from neuroflamingo_preprocessing.bids.sidecars import read_sidecar
from neuroflamingo_preprocessing.functional.confounds import find_confounds
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.user_files import decode_text
from tests.preprocessing.bids.bids_trees import BOLD, T1W, plant

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
FUNC = "sub-01/func/sub-01_task-rest"


def names(root: Path, spec: Any, notes: list[str] | None = None, **how: Any) -> list[str]:
    return [one.path.name for one in find_inputs(root, spec, notes=notes, **how)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_texts_with_byte_order_marks(encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    assert decode_text((mark + "Müller\r\n").encode(encoding)) == "Müller\r\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bidsignore_is_heeded_from_its_first_line(tmp_path: Path, encoding: str) -> None:
    root = plant(tmp_path / "ds", [f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (1, 2)])
    (root / ".bidsignore").write_bytes("sub-02/\r\n# other\r\n".encode(encoding))
    notes: list[str] = []
    assert names(root, T1W, notes) == ["sub-01_T1w.nii.gz"]
    assert notes == ["1 files are left out: .bidsignore names them"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_manifests_and_filter_files(tmp_path: Path, encoding: str) -> None:
    root = plant(tmp_path / "ds", [f"{FUNC}_run-{n}_bold.nii.gz" for n in (1, 2)])
    scan = f"{FUNC}_run-1_bold.nii.gz"
    for name, text in (
        ("m.csv", f"scan,repetition_time\n{scan},2\n"),
        ("m.jsonl", json.dumps({"scan": scan, "repetition_time": 2})),
    ):
        (root / name).write_bytes(text.encode(encoding))
        (found,) = find_inputs(root / name, BOLD)
        assert found.path == root / scan and found.repetition_time == 2
    (tmp_path / "f.json").write_bytes(json.dumps({"bold": {"run": "01"}}).encode(encoding))
    assert names(root, BOLD, filter_file=tmp_path / "f.json") == ["sub-01_task-rest_run-1_bold.nii.gz"]


@pytest.mark.parametrize(("scan", "table"), [("run-01", "run-1"), ("run-1", "run-001"), ("run-1_echo-02", "echo-2")])
@pytest.mark.parametrize("task", ["rest", "Rest"])
def test_confounds_and_sidecars_of_the_same_run(tmp_path: Path, scan: str, table: str, task: str) -> None:
    file = f"{FUNC}_{scan}_bold.nii.gz"
    root = plant(tmp_path / "ds", [file], {f"sub-01/sub-01_task-{task}_{table}_bold.json": {"RepetitionTime": 2.5}})
    beside = root / f"sub-01/func/sub-01_task-{task}_{table}_desc-confounds_timeseries.tsv"
    beside.write_text("x\n1\n")
    assert find_confounds(root / file) == beside
    assert read_sidecar(root / file).values == {"RepetitionTime": 2.5}
    exact = f"{FUNC}_{scan}_desc-confounds_timeseries.tsv"
    plant(root, [exact], {f"sub-01/sub-01_task-rest_{scan}_bold.json": {"RepetitionTime": 3}})
    assert find_confounds(root / file) == root / exact
    assert read_sidecar(root / file).values == {"RepetitionTime": 3}


def test_other_runs_stay_others(tmp_path: Path) -> None:
    file = f"{FUNC}_run-1_bold.nii.gz"
    root = plant(tmp_path / "ds", [file], {"run-10_bold.json": {"RepetitionTime": 9}})
    assert read_sidecar(root / file).values == {}


def test_other_capital_letters(tmp_path: Path) -> None:
    files = ["sub-01/anat/sub-01_T1w.nii.gz", "SUB-04/anat/SUB-04_T1w.nii.gz", "sub-05/anat/sub-05_t1w.NII.GZ"]
    root, notes = plant(tmp_path / "ds", files), list[str]()
    found = find_inputs(root, T1W, notes=notes)
    assert [one.path.relative_to(root).as_posix() for one in found] == sorted(files)
    assert [one.entities["sub"] for one in found] == ["04", "01", "05"]
    assert notes == ["2 files are named with other capital letters than BIDS has; they are taken as meant"]
    assert bids_index(root).recased == 2
    assert len(names(root, T1W, filters={"sub": ("SUB-04", "sub-05")})) == 2


def test_labels_of_filters_and_case(tmp_path: Path) -> None:
    root = plant(tmp_path / "ds", [f"sub-{s}/anat/sub-{s}_T1w.nii.gz" for s in ("a1", "B2")])
    assert names(root, T1W, filters={"sub": ("A1", "b2")}) == ["sub-B2_T1w.nii.gz", "sub-a1_T1w.nii.gz"]
    plant(root, ["sub-b2/anat/sub-b2_T1w.nii.gz"])
    assert names(root, T1W, filters={"sub": ("b2",)}) == ["sub-b2_T1w.nii.gz"]  # as it is written, if that is there
    assert names(root, T1W, filters={"sub": ("B2",)}) == ["sub-B2_T1w.nii.gz"]


def test_one_odd_subject_does_not_stop_a_dataset(tmp_path: Path) -> None:
    heads = [f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (1, 2)]
    echoes = [f"sub-03/anat/sub-03_echo-{n}_T1w.nii.gz" for n in (1, 2)]
    root, notes = plant(tmp_path / "ds", heads + echoes), list[str]()
    assert len(names(root, T1W, notes)) == 2
    (note,) = notes
    assert note.startswith("left out: sub-03_echo-1_T1w.nii.gz is one of 2 echoes") and "echo-1, echo-2" in note
    hint = note.partition("--bids-filter-file: ")[2]
    (tmp_path / "f.json").write_text(hint)
    assert names(root, T1W, filter_file=tmp_path / "f.json") == [
        "sub-01_T1w.nii.gz",
        "sub-02_T1w.nii.gz",
        "sub-03_echo-2_T1w.nii.gz",
    ]
    plant(root, ["sub-03/anat/sub-03_rec-rms_T1w.nii.gz"])
    assert names(root, T1W)[-1] == "sub-03_rec-rms_T1w.nii.gz"


def test_hints_of_versions_keep_the_others(tmp_path: Path) -> None:
    space = "space-MNI152NLin6Asym"
    files = [f"sub-0{n}/func/sub-0{n}_task-rest_{space}_desc-preproc_bold.nii.gz" for n in (1, 2)]
    odd = [f"sub-03/func/sub-03_task-rest_{space}_desc-{d}_bold.nii.gz" for d in ("a", "b")]
    root, notes = plant(tmp_path / "ds", files + odd), list[str]()
    assert len(names(root, BOLD, notes)) == 2
    (tmp_path / "f.json").write_text(notes[0].partition("--bids-filter-file: ")[2])
    found = names(root, BOLD, filter_file=tmp_path / "f.json")
    assert len(found) == 3 and found[-1] == f"sub-03_task-rest_{space}_desc-a_bold.nii.gz"


def test_the_same_run_under_two_numbers(tmp_path: Path) -> None:
    twice = [f"{FUNC}_run-{n}_bold.nii.gz" for n in ("1", "01")]
    root, notes = plant(tmp_path / "ds", [*twice, "sub-02/func/sub-02_task-rest_bold.nii.gz"]), list[str]()
    assert names(root, BOLD, notes) == ["sub-02_task-rest_bold.nii.gz"]
    assert all(name in notes[0] for name in twice) and ".bidsignore" in notes[0]


def test_a_copy_deeper_in_the_dataset(tmp_path: Path) -> None:
    file = "sub-01/anat/sub-01_T1w.nii.gz"
    root = plant(tmp_path / "ds", [file, "sub-01/anat/extra_data/sub-01_T1w.nii.gz"])
    assert [one.path for one in find_inputs(root, T1W)] == [root / file]


def test_subjects_without_files_and_contrast_agents_are_named(tmp_path: Path) -> None:
    root = plant(tmp_path / "ds", [f"sub-01/anat/sub-01_{x}T1w.nii.gz" for x in ("", "ce-gadolinium_")])
    (root / "sub-02").mkdir()
    (root / "sub-03" / "ses-a").mkdir(parents=True)
    notes: list[str] = []
    assert len(names(root, T1W, notes)) == 2
    empty, agents = notes
    assert empty.startswith("2 subjects have no files and are left out: sub-02, sub-03") and "datalad get" in empty
    assert agents == "1 of the scans were made with a contrast agent (ce-), by their names"


def test_a_folder_of_derivatives_without_descriptions(tmp_path: Path) -> None:
    mni = "space-MNI152NLin2009cAsym_res-1"
    ends = ["desc-preproc_T1w", "desc-brain_mask", "dseg", "label-GM_probseg", f"{mni}_desc-preproc_T1w"]
    files = [f"fmriprep/sub-0{n}/anat/sub-0{n}_{end}.nii.gz" for n in (1, 2) for end in ends]
    files += [f"freesurfer/sub-01/mri/{name}.mgz" for name in ("T1", "orig", "aseg", "wm.seg")] + ["other/head.nii"]
    for file in files:
        (tmp_path / "derivatives" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "derivatives" / file).touch()
    notes: list[str] = []
    found = names(tmp_path / "derivatives", T1W, notes)
    assert sorted(found) == ["T1.mgz", "head.nii", "sub-01_desc-preproc_T1w.nii.gz", "sub-02_desc-preproc_T1w.nii.gz"]
    left, versions = notes
    assert left.startswith("9 files are left out, by their names: a FreeSurfer volume beside T1.mgz (3), mask (2)")
    assert versions == "2 scans exist in several versions; used: desc-preproc for 2"


def test_two_sites_with_the_same_labels(tmp_path: Path) -> None:
    for site in "ab":
        (tmp_path / site).mkdir()
        (tmp_path / site / "sub-01_T1w.nii.gz").touch()
    assert len(names(tmp_path, T1W)) == 2


def test_spaces_in_other_capital_letters(tmp_path: Path) -> None:
    files = [f"{FUNC}_space-{space}_desc-Preproc_bold.nii.gz" for space in ("T1w", "mni152nlin6asym")]
    assert names(plant(tmp_path / "ds", files), BOLD) == [Path(files[1]).name]
