"""`prepare` on BIDS datasets: labels and filter files, sidecars that change, parts of a job array, the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroflamingo.cli import main
from neuroflamingo.cli.options import _one_option_each
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.inputs import Input
from neuroflamingo_preprocessing.stores.build import StoreOptions
from neuroflamingo_preprocessing.stores.scans import ScanStore
from tests.preprocessing.stores.run_datasets import COMMON, LABELS, run, save, summary


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of three subjects with two runs each whose headers say no time, and an atlas beside it."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        for space in ("T1w", "MNI152NLin6Asym"):
            name = f"sub-0{number}_task-rest_run-01_space-{space}_desc-preproc_bold.nii"
            save(tmp_path / "ds" / f"sub-0{number}" / "func" / name, run(number), tr=0.0)
    (tmp_path / "ds" / "dataset_description.json").write_text("{}")
    (tmp_path / "ds" / "task-rest_bold.json").write_text('{"RepetitionTime": 0.8}')
    save(tmp_path / "atlas.nii.gz", LABELS)
    return tmp_path


def plan(*words: str, capsys: Any) -> dict[str, Any]:
    assert main([*COMMON, *words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "scans"),
    [
        ((), "123"),
        (("--participant-label", "01", "03"), "13"),
        (("--participant-label", "sub-01", "sub-03", "--task-id", "rest"), "13"),
        (("--participant-label", "01,sub-02"), "12"),
        (("--participant-label", "01 02"), "12"),
        (("--participant_label", "01", "--participant-label", "02"), "12"),
        (("--participant-label=03",), "3"),
        (("--run-id", "1", "2", "--participant-label", "02"), "2"),
        (("--run-id", "run-01"), "123"),
        (("--bids-filter-file", "f.json"), "23"),
        (("--bids-filter-file", "f.json", "--participant-label", "01", "02"), "2"),
    ],
)
def test_labels(place: Path, capsys, words: tuple[str, ...], scans: str) -> None:
    Path("f.json").write_text('{"bold": {"subject": ["02", "03"], "session": null}}')
    said = plan(*words, capsys=capsys)
    assert [name[4:6] for name in said["first"]] == [f"0{n}" for n in scans]
    assert all("MNI152NLin6Asym" in name for name in said["first"]) and "several versions" in said["notes"][-1]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--participant-label", "9"), 66),
        (("--session-id", "a"), 66),
        (("--bids-filter-file", "gone.json"), 66),
        (("--bids-filter-file", "f.json"), 78),
        (("--num-parts", "2"), 2),
    ],
)
def test_faults(place: Path, capsys, words: tuple[str, ...], code: int) -> None:
    Path("f.json").write_text('{"bold": {"sesion": null}}')
    assert main([*COMMON, *words, "-q"]) == code
    assert "Traceback" not in capsys.readouterr().err and not Path("store").exists()


def test_labels_are_listed_only_behind_the_input() -> None:
    listed = ["ds", "--participant-label", "01", "02", "-q", "--task-id", "a", "b"]
    apart = ["ds", "--participant-label", "01", "--participant-label", "02", "-q", "--task-id", "a", "--task-id", "b"]
    assert _one_option_each(listed) == apart
    for words in ([], ["--participant-label", "01", "ds"], ["-h"], ["ds", "-o", "store", "--tr", "2"]):
        assert _one_option_each(words) == words


def test_encode_takes_the_same_datasets_and_filters(place: Path, capsys) -> None:
    Path("f.json").write_text('{"bold": {"subject": ["02", "03"]}}')
    common = ["encode", *COMMON[1:], "--participant-label", "01", "02"]
    assert main([*common, "--bids-filter-file", "f.json", "--dry-run", "--json"]) == 0
    assert [name[4:6] for name in json.loads(capsys.readouterr().out)["first"]] == ["02"]
    assert main([*common, "-q"]) == 0 and summary()["done"] == 2
    assert main([*common[:2], "-o", "one.npz", *common[4:], "--bids-filter-file", "f.json"]) == 2


def test_what_was_chosen_is_said_and_kept(place: Path, capsys) -> None:
    assert main([*COMMON, "--nprocs", "1"]) == 0
    assert "note: 3 scans exist in several versions" in capsys.readouterr().err
    assert summary()["notes"][0].startswith("3 scans exist in several versions; used: space-MNI152NLin6Asym")
    metadata = [ScanStore("store")[key].metadata for key in ScanStore("store")]
    assert {one["input"]["header"]["repetition time"] for one in metadata} == {"0.8 s, from task-rest_bold.json"}
    assert "/ds/" not in json.dumps(metadata) and str(place) not in json.dumps(summary())


def test_a_sidecar_that_changed_makes_another_item(place: Path) -> None:
    words = [*COMMON, "--nprocs", "1", "-q", "--participant-label", "01"]
    assert main(words) == 0 and main(words) == 0
    assert (summary()["present"], len(ScanStore("store"))) == (1, 1)
    Path("ds/task-rest_bold.json").write_text('{"RepetitionTime": 2.5}')
    assert main(words) == 0
    assert (summary()["done"], len(ScanStore("store"))) == (1, 2)
    times = {ScanStore("store")[key].metadata["repetition_time_s"] for key in ScanStore("store")}
    assert times == {0.8, 2.5}


def test_sidecars_of_one_subject_cost_that_subject(place: Path) -> None:
    for name in ("sub-02_bold.json", "sub-02_task-rest_bold.json"):
        Path("ds/sub-02", name).write_text("{}")
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 1
    assert (summary()["done"], summary()["failed"]) == (2, 1)
    (failure,) = summary()["failures"]
    assert failure["exit_code"] == 65 and "2 sidecars at one level" in failure["error"]


@pytest.mark.slow
@given(st.integers(0, 60), st.integers(1, 70))
def test_parts_are_disjoint_and_complete(scans: int, count: int) -> None:
    inputs = [Input(Path(str(number))) for number in range(scans)]
    parts = [StoreOptions(part=(number, count)).share(inputs) for number in range(1, count + 1)]
    assert sorted((one.path for part in parts for one in part), key=lambda p: int(p.name)) == [i.path for i in inputs]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for number in (0, count + 1):
        with pytest.raises(UsageError):
            StoreOptions(part=(number, count)).share(inputs)


def test_the_plan_counts_what_is_there(place: Path, capsys) -> None:
    """The figures of the plan for parcels are bytes of the tensors, and links without a file are counted."""
    said = plan("--nprocs", "2", capsys=capsys)
    assert said["store_mb_before_compression"] == round(3 * 4 * 30 * 12 / 2**20, 1) and said["workers"] == 2
    gone = next(Path("ds/sub-01/func").glob("*MNI*"))
    gone.unlink()
    gone.symlink_to("../../.git/annex/objects/gone")
    assert plan(capsys=capsys)["unreadable"] == 1
    assert main([*COMMON, "--dry-run"]) == 0
    words = capsys.readouterr().out
    assert "1 are missing or unreadable" in words and "under a minute" in words and "note     3 scans" in words
    assert main([*COMMON, "--nprocs", "1", "-q"]) == 1
    assert "git-annex or DataLad" in summary()["failures"][0]["error"]
