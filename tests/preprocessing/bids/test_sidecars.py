"""What sidecars say of a run: the nearest wins key by key, two at one level are refused, and the record names them."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import bids2table
import pytest

from neuroflamingo_preprocessing.bids.sidecars import read_sidecar, sidecar_files
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.read import read_run
from tests.preprocessing.bids.bids_trees import plant
from tests.preprocessing.formats.nifti.run_files import write

SCAN = "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1_bold.nii"
LEVELS = {
    "root": "task-rest_bold.json",
    "subject": "sub-01/sub-01_task-rest_bold.json",
    "session": "sub-01/ses-a/sub-01_ses-a_bold.json",
    "beside": SCAN.replace(".nii", ".json"),
}


@pytest.mark.parametrize("there", list(product((False, True), repeat=4)))
def test_inheritance(tmp_path: Path, there: tuple[bool, ...]) -> None:
    """All sixteen ways to have sidecars at four levels; bids2table agrees on the values."""
    said = {
        file: {"RepetitionTime": 1.0 + n, f"Only{n}": n, "EchoTime": 0.03}
        for n, (file, is_there) in enumerate(zip(LEVELS.values(), there, strict=True))
        if is_there
    }
    scan = plant(tmp_path / "ds", [SCAN], said) / SCAN
    sidecar = read_sidecar(scan)
    merged: dict[str, Any] = {}
    for one in said.values():
        merged |= one
    assert sidecar.values == merged == bids2table.load_bids_metadata(scan)
    assert [file.name for file in sidecar_files(scan)] == [Path(file).name for file in said]
    if said:
        assert sidecar.sources["RepetitionTime"] == Path(list(said)[-1]).name
        assert all(sidecar.sources[f"Only{list(LEVELS.values()).index(file)}"] == Path(file).name for file in said)


@pytest.mark.parametrize(
    "file",
    [
        "task-nback_bold.json",  # another label
        "task-rest_acq-fast_bold.json",  # an entity that the run lacks
        "task-rest_sbref.json",  # another suffix
        "sub-02_bold.json",
        "my copy of task-rest_bold.json",
        "sub-01/ses-b/sub-01_bold.json",  # not above the run
        "derivatives/bold.json",
        "task-rest_bold.json.json",
        "task-rest_bold.JSON",
    ],
)
def test_what_does_not_apply(tmp_path: Path, file: str) -> None:
    scan = plant(tmp_path / "ds", [SCAN], {file: {"RepetitionTime": 9}, "bold.json": {"RepetitionTime": 2}}) / SCAN
    assert read_sidecar(scan).values == {"RepetitionTime": 2}


@pytest.mark.parametrize(
    "pair",
    [
        ("bold.json", "task-rest_bold.json"),
        ("run-1_bold.json", "task-rest_bold.json"),
        ("sub-01/sub-01_bold.json", "sub-01/task-rest_bold.json"),
        ("sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.json", SCAN.replace(".nii", ".json")),
    ],
)
def test_two_at_one_level_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    scan = plant(tmp_path / "ds", [SCAN], {file: {} for file in pair}) / SCAN
    with pytest.raises(ScanError, match="2 sidecars at one level apply to") as caught:
        read_sidecar(scan)
    assert all(Path(file).name in str(caught.value) for file in pair)
    assert str(tmp_path) not in str(caught.value) and caught.value.exit_code == 65


def test_outside_a_dataset_only_the_one_beside(tmp_path: Path) -> None:
    plant(tmp_path / "ds", [SCAN], {"bold.json": {"RepetitionTime": 2}, LEVELS["beside"]: {"EchoTime": 1}})
    (tmp_path / "ds/dataset_description.json").unlink()
    assert read_sidecar(tmp_path / "ds" / SCAN).values == {"EchoTime": 1}


def test_a_derivative_inherits_nothing_from_the_dataset_around_it(tmp_path: Path) -> None:
    root = plant(tmp_path / "ds", [], {"bold.json": {"RepetitionTime": 9}})
    derived = plant(root / "derivatives/fmriprep", [SCAN], {"task-rest_bold.json": {"RepetitionTime": 2}})
    assert read_sidecar(derived / SCAN).values == {"RepetitionTime": 2}


def test_a_scan_of_git_annex_belongs_where_its_link_lies(tmp_path: Path) -> None:
    root = plant(tmp_path / "ds", [], {"bold.json": {"RepetitionTime": 0.8}})
    (root / ".git/annex").mkdir(parents=True)
    write(root / ".git/annex/MD5E-s1.nii", tr=0.8)
    (root / SCAN).parent.mkdir(parents=True)
    (root / SCAN).symlink_to(os.path.relpath(root / ".git/annex/MD5E-s1.nii", (root / SCAN).parent))
    assert read_run(root / SCAN).provenance.header["repetition time"] == "0.8 s, from bold.json"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\udcff", " " * (2**20 + 1)])
def test_one_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    root = plant(tmp_path / "ds", [SCAN])
    (root / "bold.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ScanError, match=r"^bold\.json cannot be read") as caught:
        read_sidecar(root / SCAN)
    assert str(tmp_path) not in str(caught.value)
    (root / "bold.json").unlink()
    (root / "bold.json").symlink_to("gone")
    with pytest.raises(ScanError, match=r"^bold\.json cannot be read"):
        read_sidecar(root / SCAN)


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "ds", [SCAN], {"bold.json": {}})
    listed: dict[Path, list[str]] = {}
    first = sidecar_files(root / SCAN, listed)
    monkeypatch.setattr(os, "scandir", None)
    assert sidecar_files(root / SCAN, listed) == first and len(listed) == 4


# header, sidecar of the root, sidecar of the subject, given -> seconds and who said it, or words of the refusal
TIMES = [
    (2.0, None, None, None, (2.0, "the header")),
    (0.8, 0.8, None, None, (0.8, "task-rest_bold.json")),
    (0.8, 2.0, 0.8, None, (0.8, "sub-01_task-rest_bold.json")),
    (0.0, 2.0, None, None, (2.0, "task-rest_bold.json")),
    (1.0, 0.8, None, None, (0.8, "task-rest_bold.json")),
    (0.8, 0.8, 2.0, None, (2.0, "sub-01_task-rest_bold.json")),
    (1.0, 0.8, None, 0.8, (0.8, "the user")),
    (0.8, 800.0, None, None, "task-rest_bold.json states an impossible repetition time"),
    (0.8, "fast", None, None, r"task-rest_bold\.json cannot be read"),
]


@pytest.mark.parametrize(("header", "root", "subject", "given", "wanted"), TIMES)
def test_the_repetition_time_of_a_run(
    tmp_path: Path, header: float, root: Any, subject: Any, given: float | None, wanted: Any
) -> None:
    said = {LEVELS["root"]: root, LEVELS["subject"]: subject}
    sidecars = {file: {"RepetitionTime": seconds} for file, seconds in said.items() if seconds is not None}
    scan = plant(tmp_path / "ds", [SCAN], sidecars) / SCAN
    write(scan, tr=header)
    if isinstance(wanted, str):
        with pytest.raises(ScanError, match=wanted):
            read_run(scan, given)
        return
    run = read_run(scan, given)
    assert run.repetition_time == pytest.approx(wanted[0])
    assert run.provenance.header["repetition time"] == f"{wanted[0]:g} s, from {wanted[1]}"
    assert "ses-a/" not in repr(run.provenance) and json.dumps(dict(run.provenance.header))
