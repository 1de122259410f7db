"""BIDS datasets: every scan is found and no other, filters mean what fMRIPrep's mean, sidecars are inherited."""

from __future__ import annotations

import json
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import bids2table
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroflamingo_preprocessing.bids import index as index_module
from neuroflamingo_preprocessing.bids.entities import parse_name
from neuroflamingo_preprocessing.bids.index import bids_index
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.inputs import find_inputs
from tests.preprocessing.bids.bids_trees import BOLD, T1W, datasets, plant


def found(root: Path, spec: Any, **how: Any) -> list[str]:
    """Paths below the root, with `/`."""
    return [one.path.relative_to(root).as_posix() for one in find_inputs(root, spec, **how)]


def names(root: Path, spec: Any, **how: Any) -> list[str]:
    return [one.path.name for one in find_inputs(root, spec, **how)]


class TestIndex:
    @pytest.mark.slow
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(datasets())
    def test_any_dataset_is_found_exactly(self, drawn: tuple[set[str], set[str], set[str]]) -> None:
        heads, runs, others = drawn
        with tempfile.TemporaryDirectory() as folder:
            root = plant(Path(folder) / "ds", heads | runs | others)
            assert found(root, T1W) == sorted(heads)
            assert not runs or found(root, BOLD) == sorted(runs)
            ours, theirs = bids_index(root).table, bids2table.index_dataset(root)
            assert sorted(ours["path"].to_pylist()) == sorted(theirs["path"].to_pylist())
            mine = {row["path"]: row for row in ours.to_pylist()}
            for row in theirs.to_pylist():
                said = {key: value for key, value in row.items() if key not in ("root", "dataset", "extra_entities")}
                assert {key: mine[row["path"]].get(key) for key in said} == said

    @pytest.mark.slow
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(datasets(), st.data())
    def test_filters_keep_what_they_name(self, drawn: tuple[set[str], set[str], set[str]], data: st.DataObject) -> None:
        heads, runs, others = drawn
        subjects = sorted({file.split("/")[0] for file in heads})
        chosen = data.draw(st.lists(st.sampled_from(subjects), min_size=1, unique=True))
        labels = tuple(name.removeprefix("sub-") if data.draw(st.booleans()) else name for name in chosen)
        with tempfile.TemporaryDirectory() as folder:
            root = plant(Path(folder) / "ds", heads | runs | others)
            wanted = sorted(file for file in heads if file.split("/")[0] in chosen)
            assert found(root, T1W, filters={"sub": labels}) == wanted
            (root / "f.json").write_text(json.dumps({"t1w": {"subject": list(labels)}}))
            assert found(root, T1W, filter_file=root / "f.json") == wanted

    def test_pybids_finds_the_same(self, tmp_path: Path) -> None:
        from bids import BIDSLayout, BIDSLayoutIndexer

        files = [
            f"sub-{s}/ses-{v}/func/sub-{s}_ses-{v}_task-rest_run-0{r}_bold.nii.gz"
            for s, v, r in product("AB1", "12", "12")
        ]
        root = plant(tmp_path / "ds", [*files, "sub-A/ses-1/anat/sub-A_ses-1_T1w.nii.gz", "sourcedata/sub-A_bold.nii"])
        layout = BIDSLayout(root, validate=False, indexer=BIDSLayoutIndexer(validate=False, index_metadata=False))
        theirs = layout.get(suffix="bold", extension=[".nii", ".nii.gz"], return_type="filename")
        assert sorted(str(one.path) for one in find_inputs(root, BOLD)) == sorted(theirs)
        section: dict[str, Any] = {"session": ["1"], "run": [1, 2], "acquisition": None, "task": "rest"}
        (root / "f.json").write_text(json.dumps({"bold": section}))
        from bids.layout import Query

        theirs = layout.get(suffix="bold", return_type="filename", **(section | {"acquisition": Query.NONE}))
        assert sorted(str(one.path) for one in find_inputs(root, BOLD, filter_file=root / "f.json")) == sorted(theirs)
        assert len(theirs) == 6

    def test_a_tree_that_nilearn_makes(self, tmp_path: Path) -> None:
        from nilearn._utils.data_gen import create_fake_bids_dataset

        root = create_fake_bids_dataset(tmp_path, n_sub=2, n_ses=1, tasks=["rest"], n_runs=[2], n_voxels=1)
        (root / "dataset_description.json").write_text("{}")
        assert len(find_inputs(root, BOLD)) == 4 and len(find_inputs(root, T1W)) == 2
        derived = root / "derivatives"
        (derived / "dataset_description.json").write_text("{}")
        notes: list[str] = []
        runs = find_inputs(derived, BOLD, notes=notes)
        assert [one.entities["space"] for one in runs] == ["MNI"] * 4 and "several versions" in notes[0]

    @pytest.mark.parametrize("name", ["ds000117-1.0.5", "my [new] *data*", ".hidden", "étude 1", "sub-folder"])
    def test_any_folder_name_will_do(self, tmp_path: Path, name: str) -> None:
        root = plant(tmp_path / "a[b]" / name, ["sub-01/anat/sub-01_T1w.nii.gz"])
        assert names(root, T1W) == ["sub-01_T1w.nii.gz"]

    def test_links(self, tmp_path: Path) -> None:
        """git-annex: a file's link whose content was not fetched is a scan; links that lead back are not followed."""
        root = plant(tmp_path / "ds", ["sub-01/anat/sub-01_T1w.nii.gz"])
        (tmp_path / "elsewhere/anat").mkdir(parents=True)
        (tmp_path / "elsewhere/anat/sub-02_T1w.nii.gz").touch()
        (root / "sub-02").symlink_to(tmp_path / "elsewhere")
        (root / "sub-03/anat").mkdir(parents=True)
        (root / "sub-03/anat/sub-03_T1w.nii.gz").symlink_to("../../.git/annex/objects/gone")
        for number in range(4):  # with four of them, following forty levels would not end
            (root / f"sub-01/anat/loop{number}").symlink_to(root / "sub-01")
        notes: list[str] = []
        assert names(root, T1W, notes=notes) == [f"sub-0{n}_T1w.nii.gz" for n in (1, 2, 3)]
        assert notes == ["4 folders are skipped: links lead back to them"]

    def test_odd_names_are_left_out_and_counted(self, tmp_path: Path) -> None:
        odd = [
            "sub-01/anat/sub-01_T1w (copy).nii.gz",
            "sub-01/anat/T1w.nii.gz",
            "sub-01/anat/sub-02_T1w.nii.gz",
            "sub-01/anat/sub-01_acq-fran\u00e7ais_T1w.nii.gz",
            "sub-01_old/anat/sub-01_T1w.nii.gz",
            os.fsdecode(b"sub-01/anat/sub-01_\xff_T1w.nii.gz"),
        ]
        root = plant(tmp_path / "ds", ["sub-01/anat/sub-01_T1w.nii.gz", "sub-a+b/anat/sub-a+b_T1w.nii.gz", *odd])
        notes: list[str] = []
        assert names(root, T1W, notes=notes) == ["sub-01_T1w.nii.gz", "sub-a+b_T1w.nii.gz"]
        assert notes == ["6 files are left out: they, or their subjects' folders, do not have BIDS names"]

    def test_bidsignore(self, tmp_path: Path) -> None:
        root = plant(
            tmp_path / "ds", [f"sub-0{n}/anat/sub-0{n}_{x}T1w.nii.gz" for n in (1, 2) for x in ("", "acq-bad_")]
        )
        (root / ".bidsignore").write_text("# bad ones\n*acq-bad*\nsub-02/\n!sub-02/anat/keep\n")
        notes: list[str] = []
        assert names(root, T1W, notes=notes) == ["sub-01_T1w.nii.gz"]
        assert notes == ["3 files are left out: .bidsignore names them"]
        (root / ".bidsignore").write_bytes(b"\xff")
        with pytest.raises(ScanError, match=r"\.bidsignore of ds cannot be read"):
            find_inputs(root, T1W)

    def test_a_subjects_folder_is_a_part_of_its_dataset(self, tmp_path: Path) -> None:
        root = plant(
            tmp_path / "ds",
            [f"sub-0{n}/ses-{s}/anat/sub-0{n}_ses-{s}_{x}.nii" for n in (1, 10) for s in "ab" for x in ("T1w", "T2w")],
        )
        assert names(root / "sub-01", T1W) == ["sub-01_ses-a_T1w.nii", "sub-01_ses-b_T1w.nii"]
        assert names(root / "sub-01" / "ses-b", T1W) == ["sub-01_ses-b_T1w.nii"]

    def test_a_folder_without_a_description_says_so(self, tmp_path: Path) -> None:
        root = plant(tmp_path / "ds", ["sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T2w.nii"])
        (root / "dataset_description.json").unlink()
        notes: list[str] = []
        assert len(find_inputs(root, T1W, notes=notes)) == 1 and "no dataset_description.json" in notes[0]
        assert notes[1] == "1 files are left out, by their names: T2w (1)"
        (tmp_path / "f.json").write_text("{}")
        with pytest.raises(UsageError, match="is not a BIDS dataset"):
            find_inputs(root, T1W, filter_file=tmp_path / "f.json")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset whose index is kept at once, and the cache folder beside it."""
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(index_module, "SETTLED_NS", 0)
    root = plant(tmp_path / "ds", [f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (1, 2)])
    time.sleep(0.02)
    bids_index(root)
    return root


def refuse(*_: Any) -> Any:
    raise AssertionError("the dataset was read again")


class TestKeptIndex:
    def test_it_is_read_while_nothing_changed(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = index_module._fresh(kept, kept.parent / "unused")
        (file,) = (kept.parent / "home" / "bids").iterdir()
        assert file.suffix == ".parquet" and not list(kept.glob("*.parquet"))
        monkeypatch.setattr(index_module, "_fresh", refuse)
        again = bids_index(kept)
        assert again.table.equals(first.table) and (again.misnamed, again.ignored) == (first.misnamed, first.ignored)
        assert bids_index(kept.parent / "home" / ".." / "ds").table.equals(first.table)

    @pytest.mark.parametrize(
        "change",
        [
            lambda root: (root / "sub-02/anat/sub-02_acq-b_T1w.nii.gz").touch(),
            lambda root: (root / "sub-02/anat/sub-02_T1w.nii.gz").unlink(),
            lambda root: (root / "sub-02/anat/sub-02_T1w.nii.gz").rename(root / "sub-02/anat/sub-02_run-1_T1w.nii.gz"),
            lambda root: (root / "sub-02").rename(root / "sub-03"),
            lambda root: plant(root, ["sub-04/anat/sub-04_T1w.nii"]),
            lambda root: (root / ".bidsignore").write_text("sub-02"),
        ],
    )
    def test_it_is_dropped_when_something_changed(self, kept: Path, change: Any) -> None:
        before = bids_index(kept).table["path"].to_pylist()
        change(kept)
        after = bids_index(kept).table["path"].to_pylist()
        assert after != before and after == index_module._fresh(kept, kept.parent / "unused").table["path"].to_pylist()

    def test_times_that_were_set_back_do_not_deceive(self, kept: Path) -> None:
        folder = kept / "sub-02/anat"
        before = os.stat(folder)
        (folder / "sub-02_run-9_T1w.nii").touch()
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and tar do
        assert len(bids_index(kept).table) == 3

    def test_what_has_just_changed_is_not_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
        bids_index(plant(tmp_path / "ds", ["sub-01/anat/sub-01_T1w.nii.gz"]))
        assert not (tmp_path / "home").exists()

    @pytest.mark.parametrize("damage", [b"", b"PAR1", b"junk" * 100, None])
    def test_a_damaged_one_is_made_again(self, kept: Path, damage: bytes | None) -> None:
        (file,) = (kept.parent / "home" / "bids").iterdir()
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
        assert len(bids_index(kept).table) == 2
        assert file.read_bytes() == whole

    def test_a_cache_folder_that_cannot_be_written_costs_time_only(
        self, kept: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (kept / "file").touch()
        monkeypatch.setenv("NEUROFLAMINGO_HOME", str(kept / "file" / "home"))
        assert len(bids_index(kept).table) == 2


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["sub-01__T1w.nii", "sub-01_sub-02_T1w.nii", "sub-é_T1w.nii", "sub-01_T1w copy.nii", "sub-01.nii", "_T1w.nii"],
    )
    def test_what_is_no_bids_name(self, name: str) -> None:
        assert parse_name(name) is None

    @pytest.mark.parametrize(("wanted", "count"), [("1", 2), ("01", 2), ("001", 2), ("run-1", 2), ("10", 1), ("a", 0)])
    def test_runs_are_numbers(self, tmp_path: Path, wanted: str, count: int) -> None:
        files = [f"sub-01/func/sub-01_task-{t}_run-{r}_bold.nii" for t, r in (("a", "1"), ("b", "01"), ("a", "10"))]
        root = plant(tmp_path / "ds", files)
        if count:
            assert len(find_inputs(root, BOLD, {"run": (wanted,)})) == count
        else:
            with pytest.raises(NotFoundError, match=r"run: a"):
                find_inputs(root, BOLD, {"run": (wanted,)})

    def test_a_label_that_no_scan_has_is_named(self, tmp_path: Path) -> None:
        root = plant(tmp_path / "ds", ["sub-01/anat/sub-01_T1w.nii"])
        notes: list[str] = []
        assert len(find_inputs(root, T1W, {"sub": ("01", "1")}, notes=notes)) == 1
        assert notes == ["no scan has sub-1 (did you mean 01?)"]
