"""Which scans an input names: files, folders, BIDS datasets and manifests; both spellings of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from neuroflamingo_preprocessing.bids.entities import entities_of
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.spec import Axis, ScanSpec

AXES: Any = tuple(Axis(name=name, size=4) for name in ("channel", "x", "y", "z"))
T1W = ScanSpec(modality="volume3d", axes=(Axis(name="channel", size=1), *AXES[1:]), channels=("T1w",))
BOLD = ScanSpec(modality="volume4d", axes=(*AXES, Axis(name="time", size=20)))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "ds"
    names = [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz",
        "sub-01/func/sub-01_task-rest_run-2_bold.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii",
        "sub-02/ses-b/func/sub-02_ses-b_task-nback_bold.nii.gz",
        "derivatives/fmriprep/sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "sub-01/anat/._sub-01_T1w.nii.gz",
    ]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "dataset_description.json").write_text("{}")
    return root


def names(found: list) -> list[str]:
    return [one.path.name for one in found]


def test_a_dataset(dataset: Path) -> None:
    assert names(find_inputs(dataset, T1W)) == ["sub-01_T1w.nii.gz", "sub-02_ses-a_T1w.nii", "sub-02_ses-b_T1w.nii"]
    assert len(find_inputs(dataset, BOLD)) == 3
    derived = dataset / "derivatives" / "fmriprep"
    (derived / "dataset_description.json").write_text("{}")
    assert len(find_inputs(derived, BOLD)) == 1
    assert find_inputs(dataset, BOLD)[0].entities == {"sub": "01", "task": "rest", "run": "1"}


@pytest.mark.parametrize("label", ["02", "sub-02", " 02 "])
def test_filters_take_both_spellings(dataset: Path, label: str) -> None:
    assert len(find_inputs(dataset, T1W, {"sub": (label,)})) == 2
    assert names(find_inputs(dataset, T1W, {"sub": (label, "01"), "ses": ("ses-b",)})) == ["sub-02_ses-b_T1w.nii"]
    assert len(find_inputs(dataset, BOLD, {"task": ("rest",), "run": ("2", "3")})) == 1
    assert len(find_inputs(dataset, BOLD, {"task": ()})) == 3


def test_nothing_found_says_what_was_looked_for(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean rest\?") as caught:
        find_inputs(dataset, BOLD, {"task": ("resst",)})
    assert "3 scans" in str(caught.value) and caught.value.exit_code == 66
    with pytest.raises(NotFoundError, match="none with all of these"):
        find_inputs(dataset, BOLD, {"sub": ("01",), "task": ("nback",)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"there are no scans in empty"):
        find_inputs(tmp_path / "empty", T1W)
    (tmp_path / "empty" / "dataset_description.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"\*_T1w\.nii"):
        find_inputs(tmp_path / "empty", T1W)
    with pytest.raises(NotFoundError, match="there is no file"):
        find_inputs(tmp_path / "gone", T1W)


def test_folders_and_files(dataset: Path) -> None:
    (dataset / "dataset_description.json").unlink()
    notes: list[str] = []
    assert [one.path.name for one in find_inputs(dataset, T1W, notes=notes)] == [
        "sub-01_T1w.nii.gz",
        "sub-02_ses-a_T1w.nii",
        "sub-02_ses-b_T1w.nii",
    ]
    assert notes == [
        "1 files in derivatives and sourcedata are left out: give such a folder itself",
        "there are sub- folders but no dataset_description.json: files are told apart by their names alone",
        "4 files are left out, by their names: bold (3), T2w (1)",
    ]
    one = dataset / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    assert [found.path for found in find_inputs(one, T1W)] == [one]


def test_manifests(dataset: Path) -> None:
    scan = "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz"
    rows = [{"scan": scan, "repetition_time": 0.8}, {"scan": scan}]
    (dataset / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (dataset / "m.csv").write_text(f"scan,repetition_time,site\n{scan},0.8,A\n{scan},,B\n")
    for name in ("m.jsonl", "m.csv"):
        found = find_inputs(dataset / name, BOLD)
        assert [one.repetition_time for one in found] == [0.8, None] and found[0].path == dataset / scan
        assert found[0].entities["run"] == "1"
    bad = ['{"scan": "gone.nii"}', "{", "[1]", '{"site": "A"}', json.dumps({"scan": scan, "repetition_time": "fast"})]
    (dataset / "bad.jsonl").write_text("\n".join([*bad, json.dumps({"scan": scan})]))
    with pytest.raises(ScanError, match="has 5 faults") as caught:
        find_inputs(dataset / "bad.jsonl", BOLD)
    for words in (
        "line 1: there is no file",
        "line 2: not JSON",
        "line 3: no JSON object",
        "line 4: no `scan`",
        "line 5: ",
    ):
        assert words in str(caught.value)
    for content in (b"\xff\xfe\x00", b"scan" * 2**19):
        (dataset / "binary.csv").write_bytes(content)
        with pytest.raises(ScanError, match="cannot be read"):
            find_inputs(dataset / "binary.csv", BOLD)


def test_manifests_of_training_data_give_each_scan_once(dataset: Path) -> None:
    scan = "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz"
    rows = [
        {"id": "a", "kind": "pairs", "scans": [scan]},
        {"id": "b", "kind": "text", "turns": []},
        {"id": "c", "kind": "instructions", "scans": [scan, "store:" + "0" * 64, scan]},
    ]
    (dataset / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [one.path for one in find_inputs(dataset / "train.jsonl", BOLD)] == [dataset / scan]
    bad = [{"kind": "pairs", "scans": ["gone.nii"]}, {"kind": "pairs", "scans": scan}, {"kind": "pairs"}]
    (dataset / "bad.jsonl").write_text("\n".join(map(json.dumps, bad)))
    with pytest.raises(ScanError, match="has 3 faults") as caught:
        find_inputs(dataset / "bad.jsonl", BOLD)
    for words in ("line 1: there is no file gone.nii", "line 2: `scans` is not a list", "line 3: no `scan`"):
        assert words in str(caught.value)


def test_manifests_name_confounds(dataset: Path) -> None:
    """Relative to the manifest; one that is not there is the error of `--confounds`, with the line."""
    scan = "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz"
    (dataset / "tables").mkdir()
    (dataset / "tables" / "a.tsv").write_text("x\n1\n")
    rows: list[dict[str, Any]] = [{"scan": scan, "confounds": "tables/a.tsv"}, {"scan": scan}]
    rows.append({"scan": scan, "confounds": None})
    (dataset / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (dataset / "m.csv").write_text(f"confounds,scan\ntables/a.tsv,{scan}\n,{scan}\n,{scan}\n")
    columns = {"scan": [scan] * 3, "confounds": ["tables/a.tsv", None, None], "site": ["A"] * 3}
    parquet.write_table(pyarrow.table(columns), dataset / "m.parquet")
    for name in ("m.jsonl", "m.csv", "m.parquet"):
        found = find_inputs(dataset / name, BOLD)
        assert [one.confounds for one in found] == [dataset / "tables/a.tsv", None, None]
    for wrong in ("tables/b.tsv", "tables", 7, "a\0b", "n" * 5000):
        (dataset / "gone.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"scan": scan, "confounds": wrong}])))
        with pytest.raises(NotFoundError, match="line 4: there is no file") as caught:
            find_inputs(dataset / "gone.jsonl", BOLD)
        assert caught.value.exit_code == 66 and caught.value.expected and caught.value.hint
    (dataset / "bad.jsonl").write_text('{"scan": "gone.nii"}\n' + json.dumps({"scan": scan, "confounds": "b.tsv"}))
    with pytest.raises(ScanError, match="has 2 faults") as both:
        find_inputs(dataset / "bad.jsonl", BOLD)
    assert "line 2: there is no file b.tsv" in str(both.value)


@pytest.mark.parametrize(
    ("name", "entities"),
    [
        (
            "sub-01_ses-a_task-rest_run-02_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
            "01 a rest 02 MNI152NLin6Asym preproc",
        ),
        ("head.nii", ""),
        ("sub-01.nii", "01"),
        ("my-scan_sub-02_T1w.nii", "scan 02"),
    ],
)
def test_entities(name: str, entities: str) -> None:
    assert " ".join(entities_of(Path(name)).values()) == entities


@pytest.mark.parametrize(
    ("channel", "kinds"),
    [
        ("T1w", ["T1w"]),
        ("T1w, T2w, FLAIR or T1 with contrast", ["FLAIR", "T1w", "T2w"]),  # as encoders of several contrasts say it
        ("CT or MR", ["FLAIR", "T1w", "T2w"]),
    ],
)
@pytest.mark.parametrize("described", [True, False])
def test_encoders_of_several_contrasts(channel: str, kinds: list[str], described: bool, tmp_path: Path) -> None:
    for kind in ("T1w", "T2w", "FLAIR", "mask", "bold"):
        file = tmp_path / "sub-01" / "anat" / f"sub-01_{kind}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if described:
        (tmp_path / "dataset_description.json").write_text("{}")
    found = find_inputs(tmp_path, T1W.model_copy(update={"channels": (channel,)}))
    assert [one.path.name for one in found] == [f"sub-01_{kind}.nii.gz" for kind in kinds]
