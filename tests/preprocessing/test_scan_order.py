"""Which of two scans is older, by what their files say; the dates themselves go nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuroflamingo_preprocessing.scan_order import acquisition_time, order_fault

DATES, SESSIONS = "by the dates of acquisition", "by the numbers of the sessions"


def scan(root: Path, name: str, stated: str | None = None) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    if stated is not None:
        path.with_name(path.name.split(".")[0] + ".json").write_text(json.dumps({"AcquisitionDateTime": stated}))
    return path


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        ("2020-01-02T10:10:10", "2021-01-02T10:10:10", None),
        ("2021-01-02T10:10:10.250000", "2020-01-02T10:10:10", DATES),
        ("2020-01-02T10:10:10Z", "2020-01-02T09:00:00", DATES),
        ("2020-01-02T10:10:10", "2020-01-02", None),  # the day only
        ("20210102101010", "20200102", DATES),
        ("2021-01-02", "about 2020", None),
        ("2021-01-02", "20209999", None),
        ("2021-01-02", "", None),
    ],
)
def test_dates_of_sidecars(tmp_path: Path, first: str, second: str, fault: str | None) -> None:
    assert order_fault(scan(tmp_path, "a.nii.gz", first), str(scan(tmp_path, "b.nii.gz", second))) == fault


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        ("sub-1/ses-2/anat/sub-1_ses-2_T1w.nii", "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii", SESSIONS),
        ("sub-1_ses-10_T1w.nii", "sub-1_ses-02_T1w.nii", SESSIONS),
        ("sub-1_ses-02_T1w.nii", "sub-1_ses-10_T1w.nii", None),
        ("sub-1_ses-2_T1w.nii", "sub-2_ses-1_T1w.nii", None),
        ("sub-1_ses-late_T1w.nii", "sub-1_ses-early_T1w.nii", None),
        ("sub-1_T1w.nii", "sub-1_ses-1_T1w.nii", None),
        ("a.nii", "b.nii", None),
    ],
)
def test_sessions_of_one_subject(tmp_path: Path, first: str, second: str, fault: str | None) -> None:
    assert order_fault(scan(tmp_path, first), scan(tmp_path, second)) == fault


def test_the_scans_table_of_a_dataset(tmp_path: Path) -> None:
    paths = [scan(tmp_path, f"sub-1/ses-{ses}/anat/sub-1_ses-{ses}_T1w.nii.gz") for ses in ("b", "a")]
    for path, date in zip(paths, ("2009-06-15T13:45:30", "2008-06-15T13:45:30"), strict=True):
        table = path.parent.parent / (path.name.replace("T1w.nii.gz", "scans.tsv"))
        table.write_text(f"filename\tacq_time\nanat/{path.name}\t{date}\nanat/other.nii.gz\tn/a\n")
    assert order_fault(*paths) == DATES and order_fault(*paths[::-1]) is None
    assert acquisition_time(paths[0]) is not None
    table.write_text("filename\tacq_time\n" + f"anat/{path.name}\tn/a\n")
    assert order_fault(*paths) is None


def test_sidecars_that_contradict_each_other_are_no_reason_to_stop(tmp_path: Path) -> None:
    path = scan(tmp_path, "a.nii.gz", "2020-01-01")
    path.with_name("a.json").write_text("{broken")
    assert acquisition_time(path) is None and order_fault(path, object()) is None


@pytest.mark.slow
def test_dates_of_dicom_headers(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.preprocessing.formats.dicom.dicom_heads import MPRAGE, SMALL, write_series

    dates = {"one": ("20031211", "134759.25"), "two": ("20031211", "080000")}
    for name, (day, hour) in dates.items():
        tags = {**MPRAGE, "AcquisitionDate": day, "AcquisitionTime": hour}
        write_series(tmp_path / name, SMALL, tags)
    assert order_fault(tmp_path / "one", tmp_path / "two") == DATES
    assert order_fault(tmp_path / "two", tmp_path / "one") is None
