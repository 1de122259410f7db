"""DICOM series: which one is taken, what each is, what lies around it, and what is said and left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from neuroflamingo_preprocessing import read_run, read_scan
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError, UsageError
from neuroflamingo_preprocessing.formats.dicom import attributes, conversion
from neuroflamingo_preprocessing.formats.dicom.read_dicom import list_series
from neuroflamingo_preprocessing.formats.dicom.series_selection import choose_series
from tests.preprocessing.formats.dicom.dicom_heads import (
    EPI,
    FLAIR,
    MPRAGE,
    PLANES,
    RUN,
    SMALL,
    T2W,
    Slab,
    assert_left_is_left,
    write_series,
)


def study_of(folder: Path, *series: tuple[int, Any, Any, Any]) -> Path:
    """Several series of one examination, in one folder."""
    study = generate_uid()
    for number, tags, slab, edit in series:
        tagged = {**tags, "SeriesNumber": number}
        write_series(folder, slab, tagged, study=study, name=f"{number}-{{}}", edit=edit)
    return folder


@pytest.mark.slow
def test_the_chooser(tmp_path: Path) -> None:
    fine = Slab(columns=48, rows=56, slices=28, spacing=(4.2, 4.2, 5.6))

    def with_agent(data: Dataset, number: int) -> None:
        data.ContrastBolusAgent = "agent"

    def derived(data: Dataset, number: int) -> None:
        data.ImageType = ["DERIVED", "SECONDARY", "MPR"]

    def knee(data: Dataset, number: int) -> None:
        data.BodyPartExamined = "KNEE"

    folder = study_of(
        tmp_path,
        (1, T2W, RUN, None),
        (2, MPRAGE, SMALL, None),
        (3, MPRAGE, fine, None),
        (4, MPRAGE, fine, with_agent),
        (5, MPRAGE, fine, derived),
        (6, FLAIR, RUN, None),
        (7, MPRAGE, fine, knee),
    )
    kinds = {one.number: one.kind for one in list_series(folder)}
    assert kinds == {1: "T2w", 2: "T1w", 3: "T1w", 4: "T1w", 5: "derived", 6: "FLAIR", 7: "T1w"}
    scan = read_scan(folder)
    assert scan.provenance.header["series"] == "3"
    (warning,) = scan.provenance.warnings
    assert "of 3 T1w series DICOM series 3 was chosen" in warning and "series 2" in warning and "series 4" in warning
    chosen = read_scan(folder, series=1)
    assert chosen.modality == "T2w" and "by its header it is T2w, not T1w" in chosen.provenance.warnings[0]
    assert read_scan(folder, series=4).provenance.warnings == ("DICOM series 4 was made with a contrast agent",)
    with pytest.raises(UsageError, match="there is no series 9"):
        read_scan(folder, series=9)


def test_nothing_to_choose_lists_the_series(tmp_path: Path) -> None:
    folder = study_of(tmp_path, (1, T2W, RUN, None), (2, FLAIR, RUN, None))
    with pytest.raises(ScanError) as caught:
        read_scan(folder)
    text = str(caught.value)
    assert "series 1: T2w, 12 slices of 32 x 32, 7 x 7 x 12 mm" in text and "series 2: FLAIR" in text
    assert "--series NUMBER" in text
    with pytest.raises(ScanError, match="none is an fMRI run"):
        read_run(folder)


def test_times_that_are_not_stated(tmp_path: Path) -> None:
    scan = read_scan(write_series(tmp_path, SMALL, {}))
    assert scan.modality == "unknown" and "does not say how it is weighted" in scan.provenance.warnings[0]


@pytest.mark.slow
def test_echoes_and_phase_within_one_series(tmp_path: Path) -> None:
    study, series = generate_uid(), generate_uid()
    for echo, kind in ((2.98, "M"), (5.5, "M"), (2.98, "P")):

        def part(data: Dataset, number: int, kind: str = kind) -> None:
            data.ImageType = ["ORIGINAL", "PRIMARY", kind, "ND"]

        tags = {**MPRAGE, "EchoTime": str(echo), "EchoNumbers": 1 if echo < 5 else 2}
        head = SMALL.head() if kind == "M" and echo < 5 else SMALL.head() // 2
        write_series(
            tmp_path, SMALL, tags, study=study, series=series, name=f"{kind}{echo}-{{}}", edit=part, voxels=head
        )
    assert [(one.part, one.kind) for one in list_series(tmp_path)] == [
        ("echo 1 of 2", "T1w"),
        ("echo 2 of 2", "T1w"),
        ("echo 1 of 2, phase", "phase"),
    ]
    scan = read_scan(tmp_path)
    assert_left_is_left(scan)
    assert scan.voxels.max() == 1000 and scan.provenance.header["kind"] == "T1w, echo 1 of 2"


def test_slices_of_several_directions_are_a_localizer(tmp_path: Path) -> None:
    study, series = generate_uid(), generate_uid()
    for plane in PLANES:
        slab = Slab(PLANES[plane], 32, 32, 3, (8.0, 8.0, 20.0))
        write_series(tmp_path, slab, study=study, series=series, name=f"{plane}-{{}}")
    assert {one.kind for one in list_series(tmp_path)} == {"localizer"}


@pytest.mark.slow
def test_what_lies_around_a_series(tmp_path: Path) -> None:
    """No endings, no preamble, a copy, other files, an empty one, a `DICOMDIR`, a link to nowhere, all in a folder."""
    plain = read_scan(write_series(tmp_path / "plain", SMALL)).voxels
    folder = tmp_path / "around"
    write_series(folder / "a", SMALL, voxels=SMALL.head())
    files = sorted((folder / "a").iterdir())
    for file in files[:6]:
        file.write_bytes(file.read_bytes()[132:])  # as the standard never allowed, but as some programs write
    for file, syntax in zip(files[6:12], [ImplicitVRLittleEndian, ExplicitVRLittleEndian] * 3, strict=True):
        data = dcmread(file)
        bare = Dataset({element.tag: element for element in data})  # without file meta, as in the time before DICOM 3.0
        bare.save_as(file, implicit_vr=syntax.is_implicit_VR, little_endian=True, enforce_file_format=False)
        assert file.read_bytes()[:2] == b"\x08\0"
    copy = folder / "b"
    copy.mkdir()
    (copy / "again.dcm").write_bytes((folder / "a" / "IM0020").read_bytes())
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty.dcm").touch()
    (folder / "DICOMDIR").write_bytes((folder / "a" / "IM0020").read_bytes())
    (folder / "._IM0001").write_bytes(b"\0\5\x16\7" + bytes(200))
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "junk.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 500)
    scan = read_scan(folder)
    assert np.array_equal(scan.voxels, plain)
    copies, damaged = scan.provenance.warnings
    assert copies == "1 of its images exist twice; the copies were left out"
    assert damaged.startswith("2 DICOM files are damaged, cut off or empty")


def test_numbers_that_come_twice_are_counted_anew(tmp_path: Path) -> None:
    write_series(tmp_path / "one", SMALL)
    write_series(tmp_path / "two", SMALL, T2W)
    assert [one.number for one in list_series(tmp_path)] == [1, 2]


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "T1w": ("MPRAGE", dict(MPRAGE)),
    "T1w SPGR": ("T1w", {"ScanningSequence": "GR", "RepetitionTime": "8.2", "EchoTime": "3.2", "FlipAngle": "12"}),
    "T1w SPGR with inversion": (
        "T1w",
        {"ScanningSequence": "GR", "RepetitionTime": "8.2", "EchoTime": "3.2", "InversionTime": "450"},
    ),
    "T1w spin echo": ("T1w", {"ScanningSequence": "SE", "RepetitionTime": "550", "EchoTime": "12"}),
    "T2w": ("T2w", dict(T2W)),
    "FLAIR": ("FLAIR", dict(FLAIR)),
    "PDw": ("PDw", {**T2W, "EchoTime": "12"}),
    "susceptibility": ("other", {"ScanningSequence": "GR", "RepetitionTime": "28", "EchoTime": "20"}),
    "diffusion": ("dwi", {**EPI, "DiffusionBValue": 1000.0}),
    "diffusion, by the sequence": ("dwi", {**EPI, "SequenceName": "*ep_b1000#3"}),
    "a map": ("derived", {**EPI, "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}),
    "projection": ("derived", {**MPRAGE, "ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}),
    "localizer": ("localizer", {**MPRAGE, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "T2w called T1": ("T2w", {**T2W, "SeriesDescription": "t1_mprage_sag", "ProtocolName": "T1w"}),
    "T1w called T2": ("T1w", {**MPRAGE, "SeriesDescription": "t2_tse_tra", "ProtocolName": "T2w"}),
}
KINDS["T1w"] = ("T1w", dict(MPRAGE))


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_judged_by_physics(name: str, tmp_path: Path) -> None:
    kind, tags = KINDS[name]
    (series,) = list_series(write_series(tmp_path, Slab(columns=8, rows=8, slices=3), tags))
    assert series.kind == kind


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path, SMALL)
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "dcm2niix", None)
        with pytest.raises(ScanError) as caught:
            read_scan(folder)
    assert caught.value.exit_code == 69 and "pip install 'neuroflamingo[dicom]'" in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(attributes, "LOWEST_PYDICOM", (99, 0, 0))
        with pytest.raises(ScanError, match="pydicom 3"):
            read_scan(folder)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "TIMEOUT_SECONDS", 0)
        with pytest.raises(ScanError, match="did not finish") as caught:
            read_scan(folder)
    assert caught.value.exit_code == 75
    nifti = tmp_path / "a.nii"
    nifti.write_bytes(bytes(400))
    with pytest.raises(UsageError, match="has no series 2"):
        read_scan(nifti, series=2)
    with pytest.raises(UsageError, match="has no series 2"):
        read_run(nifti, series=2)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ScanError, match="no DICOM files"):
        read_scan(tmp_path / "nothing")
    real = next(folder.glob("IM*"))
    data = dcmread(real)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(data, name)
    data.save_as(tmp_path / "nothing" / "report")
    with pytest.raises(ScanError, match="no readable images"):
        read_scan(tmp_path / "nothing")


@pytest.mark.slow
def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    folder = write_series(tmp_path / "head", SMALL)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    read_scan(folder)
    with pytest.raises(NeuroFlamingoError):
        read_run(folder, series=1)
    import gc

    gc.collect()
    assert list(place.iterdir()) == []
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.slow
def test_the_hash_is_of_the_images_not_of_names(tmp_path: Path) -> None:
    import shutil

    one = write_series(tmp_path / "one", SMALL)
    two = tmp_path / "two" / "deeper"
    two.mkdir(parents=True)
    for number, file in enumerate(sorted(one.iterdir(), reverse=True)):
        shutil.copy(file, two / f"{number}.x")
    first, second = read_scan(one), read_scan(tmp_path / "two")
    assert first.provenance.sha256 == second.provenance.sha256
    assert np.array_equal(first.voxels, second.voxels)
    data = dcmread(one / "IM0000")
    data.PatientID = "1"
    data.save_as(one / "IM0000")
    assert read_scan(one).provenance.sha256 != first.provenance.sha256


SHOTS: dict[str, Any] = {**MPRAGE, "RepetitionTime": "5000", "SequenceVariant": ["SK", "SP", "MP"]}
FIRST, SECOND = {**SHOTS, "InversionTime": "700", "FlipAngle": "4"}, {**SHOTS, "InversionTime": "2500"}
UNIFORM = {**SHOTS, "ImageType": ["DERIVED", "PRIMARY", "M", "ND", "UNI"]}
T1MAP = {**SHOTS, "ImageType": ["DERIVED", "PRIMARY", "M", "ND", "T1 MAP"]}


def test_of_an_mp2rage_the_uniform_image_is_taken(tmp_path: Path) -> None:
    """By image type and inversion times, whatever the series are called; it lay behind the first inversion before."""
    folder = study_of(
        tmp_path, (1, FIRST, SMALL, None), (2, SECOND, SMALL, None), (3, UNIFORM, SMALL, None), (4, T1MAP, SMALL, None)
    )
    assert [one.kind for one in list_series(folder)] == ["other", "other", "T1w", "derived"]
    assert "series 1: MP2RAGE inversion image at 700 ms" in list_series(folder)[0].describe()
    assert choose_series(list_series(folder), "T1w", None)[0].number == 3
    read_scan(folder)
    asked = read_scan(folder, series=1)
    assert any("not its uniform image" in warning for warning in asked.provenance.warnings)


@pytest.mark.parametrize(
    ("others", "kinds"),
    [
        ([SECOND], ["other", "other"]),  # the uniform image was not sent
        ([UNIFORM], ["other", "T1w"]),  # one inversion was not sent
        ([{**FIRST, "InversionTime": "900"}], ["T1w", "T1w"]),  # two MPRAGE that are read a little apart
        ([{**SECOND, "RepetitionTime": "2300"}], ["T1w", "other"]),  # other shots
        ([T1MAP], ["T1w", "derived"]),
    ],
)
def test_an_inversion_is_known_by_what_lies_beside_it(others: list[Any], kinds: list[str], tmp_path: Path) -> None:
    series = [(number, tags, SMALL, None) for number, tags in enumerate([FIRST, *others], 1)]
    assert [one.kind for one in list_series(study_of(tmp_path, *series))] == kinds


def test_an_inversion_alone_is_doubted_by_its_repetition_time(tmp_path: Path) -> None:
    write_series(tmp_path / "a", SMALL, FIRST)
    assert any(
        "is that of an MP2RAGE's inversions" in warning for warning in read_scan(tmp_path / "a").provenance.warnings
    )
    write_series(tmp_path / "b", SMALL, MPRAGE)
    assert not any("MP2RAGE" in warning for warning in read_scan(tmp_path / "b").provenance.warnings)
    write_series(tmp_path / "c", SMALL, UNIFORM)
    assert not any("MP2RAGE" in warning for warning in read_scan(tmp_path / "c").provenance.warnings)


def test_a_reformatted_uniform_image_is_derived(tmp_path: Path) -> None:
    write_series(tmp_path, SMALL, {**SHOTS, "ImageType": ["DERIVED", "SECONDARY", "MPR", "M", "UNI"]})
    assert [one.kind for one in list_series(tmp_path)] == ["derived"]
