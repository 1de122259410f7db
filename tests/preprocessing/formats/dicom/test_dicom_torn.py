"""Series are not torn apart by numbers that hardly differ, nor cut short, doubled or inverted without a word."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from neuroflamingo_preprocessing import read_run, read_scan
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.dicom.read_dicom import examinations, list_series
from neuroflamingo_preprocessing.formats.dicom.series import clusters
from tests.preprocessing.formats.dicom.dicom_heads import (
    EPI,
    MPRAGE,
    RUN,
    SMALL,
    T2W,
    Slab,
    assert_left_is_left,
    oblique,
    write_series,
)


def test_clusters_have_no_boundaries() -> None:
    assert clusters([2.9751, 2.9749, 5.5, 2.975], 0.05).tolist() == [0, 0, 1, 0]
    assert clusters([0.005, 0.00499, 0.0151], 0.01).tolist() == [0, 0, 1]
    assert clusters([30.0, 30.5, 44.0], 0.05, 0.02).tolist() == [0, 0, 1]


def times(*values: str) -> Callable[[Dataset, int], None]:
    def edit(data: Dataset, number: int) -> None:
        data.EchoTime = values[number % len(values)]

    return edit


def turned_a_little(data: Dataset, number: int) -> None:
    angle = (0.0052, 0.0048)[number % 3 == 0]  # on two sides of 0.005
    directions = [np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]
    data.ImageOrientationPatient = [f"{v:.6f}" for v in directions]


def pixels_a_little_larger(data: Dataset, number: int) -> None:
    data.PixelSpacing = [5.0, 5.0 + 1e-5 * (number % 2)]


NEARLY: dict[str, tuple[Slab, Callable[[Dataset, int], None]]] = {
    "echo times": (SMALL, times("2.9749", "2.9751", "2.9751")),
    "echo times, a hundredth apart": (SMALL, times("2.96", "2.97", "2.98")),
    "repetition times": (SMALL, lambda data, number: setattr(data, "RepetitionTime", 2300 + 0.001 * number)),
    "inversion times": (SMALL, lambda data, number: setattr(data, "InversionTime", 900 + 0.004 * (number % 2))),
    "flip angles": (SMALL, lambda data, number: setattr(data, "FlipAngle", 9 + 0.0001 * (number % 2))),
    "directions": (SMALL, turned_a_little),
    "pixel sizes": (SMALL, pixels_a_little_larger),
    "oblique": (Slab(oblique(), 40, 48, 24, (5.0, 5.0, 6.5)), times("4.0049", "4.0051")),
}


@pytest.mark.parametrize("name", NEARLY)
def test_one_series_stays_one(name: str, tmp_path: Path) -> None:
    slab, edit = NEARLY[name]
    folder = write_series(tmp_path, slab, edit=edit)
    (series,) = list_series(folder)
    assert (series.part, series.slices, series.fault) == ("", 24, None)
    scan = read_scan(folder)
    assert sorted(scan.voxels.shape) == [24, 40, 48] and scan.provenance.warnings == ()
    assert_left_is_left(scan)


def broken_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:253])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def garbled(file: Path) -> None:
    file.write_bytes(bytes(128) + b"DICM" + b"\xff" * 500)


@pytest.mark.parametrize("harm", [broken_off, emptied, zeroed, garbled])
@pytest.mark.parametrize("which", [range(20, 24), range(4)], ids=["last", "first"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_an_end_that_is_gone_is_said(harm: Any, which: range, packed: bool, tmp_path: Path) -> None:
    source = write_series(tmp_path / "head", SMALL)
    for number in which:
        harm(source / f"IM{number:04d}")
    if packed:
        archive = tmp_path / "head.zip"
        with zipfile.ZipFile(archive, "w") as out:
            for file in sorted(source.iterdir()):
                out.write(file, f"study/{file.name}")
        source = archive
    scan = read_scan(source)
    assert min(scan.voxels.shape) == 20
    (warning,) = scan.provenance.warnings
    assert warning.startswith("4 DICOM files are damaged, cut off or empty") and "at an end" in warning


def test_reports_and_other_empty_files_are_no_damage(tmp_path: Path) -> None:
    folder = write_series(tmp_path, SMALL)
    (folder / "notes.txt").touch()
    (folder / ".hidden").touch()
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", generate_uid()  # a structured report
    report = folder / "report"
    data.save_as(report, implicit_vr=False, little_endian=True, enforce_file_format=False)
    report.write_bytes(bytes(128) + b"DICM" + report.read_bytes())
    assert read_scan(folder).provenance.warnings == ()


def test_every_second_image_is_missing(tmp_path: Path) -> None:
    folder = write_series(tmp_path, Slab(slices=50, spacing=(2.5, 2.5, 3.5)), skip=tuple(range(1, 50, 2)))
    (warning,) = read_scan(folder).provenance.warnings
    assert "numbered from 1 to 49, but 25 are here" in warning


def test_compressed_pixels_that_are_cut(tmp_path: Path) -> None:
    folder = write_series(
        tmp_path, SMALL, edit=lambda data, number: data.compress(RLELossless, generate_instance_uid=False)
    )
    whole = read_scan(folder)
    assert whole.provenance.warnings == ()
    file = folder / "IM0023"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ScanError, match="1 of 24 files are truncated"):
        read_scan(folder)


@pytest.mark.parametrize("renumbered", [False, True])
def test_a_series_exported_twice(renumbered: bool, tmp_path: Path) -> None:
    study, series = generate_uid(), generate_uid()
    plain = read_scan(write_series(tmp_path / "plain", SMALL)).voxels
    for copy in range(2):

        def edit(data: Dataset, number: int, copy: int = copy) -> None:
            data.InstanceNumber = 1 + number + 24 * copy * renumbered

        write_series(tmp_path / "twice", SMALL, study=study, series=series, name=f"{copy}-{{}}", edit=edit)
    scan = read_scan(tmp_path / "twice")
    assert np.array_equal(scan.voxels, plain)
    (warning,) = scan.provenance.warnings
    assert "24 of its images exist twice" in warning and "other identifiers" in warning


def test_two_different_volumes_are_called_so(tmp_path: Path) -> None:
    study, series = generate_uid(), generate_uid()
    for copy in range(2):
        write_series(
            tmp_path, SMALL, study=study, series=series, name=f"{copy}-{{}}", voxels=SMALL.head() + np.uint16(copy)
        )
    with pytest.raises(ScanError, match="each of its 24 places is there 2 times") as caught:
        read_scan(tmp_path)
    assert "folder of their own" in str(caught.value.hint)


def test_one_identifier_for_all_images(tmp_path: Path) -> None:
    def same(data: Dataset, number: int) -> None:
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"

    folder = write_series(tmp_path / "one", SMALL, edit=same)
    scan = read_scan(folder)
    assert_left_is_left(scan)
    (warning,) = scan.provenance.warnings
    assert "24 of its images have one and the same identifier" in warning
    shutil.copytree(folder, folder / "again")
    first, second = read_scan(folder).provenance.warnings
    assert first == "24 of its images exist twice; the copies were left out" and "identifier" in second


def mono(interpretation: str) -> Callable[[Dataset, int], None]:
    return lambda data, number: setattr(data, "PhotometricInterpretation", interpretation)


@pytest.mark.parametrize(("interpretation", "words"), [("MONOCHROME1", "inverted"), ("PALETTE COLOR", "palette")])
def test_grey_values_that_mean_something_else(interpretation: str, words: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path, SMALL, edit=mono(interpretation))
    with pytest.raises(ScanError, match=words):
        read_scan(folder)


FINE = Slab(columns=48, rows=56, slices=28, spacing=(4.2, 4.2, 5.6))
GRE: dict[str, Any] = {
    "ScanningSequence": "GR",
    "SequenceVariant": "SP",
    "MRAcquisitionType": "3D",
    "RepetitionTime": "22",
    "EchoTime": "3.4",
    "FlipAngle": "18",
}
BESIDE: dict[str, tuple[dict[str, Any], str]] = {
    "TOF by its flag": ({**GRE, "AngioFlag": "Y"}, "angio"),
    "TOF by its sequence": ({**GRE, "SequenceName": "*fl3d1r_t70"}, "angio"),
    "TOF by its image type": ({**GRE, "ImageType": ["ORIGINAL", "PRIMARY", "M", "TOF"]}, "angio"),
    "phase contrast": ({**GRE, "SequenceName": "*pc3d1"}, "angio"),
    "PD FLASH": ({**GRE, "FlipAngle": "4", "SequenceName": "*fl3d1"}, "PDw"),
    "variable flip angle": ({**GRE, "RepetitionTime": "8", "FlipAngle": "3"}, "PDw"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_finer_series_of_another_kind_are_not_taken(name: str, tmp_path: Path) -> None:
    tags, kind = BESIDE[name]
    study = generate_uid()
    write_series(tmp_path, FINE, {**tags, "SeriesNumber": 2}, study=study, name="2-{}")
    write_series(tmp_path, SMALL, {**MPRAGE, "SeriesNumber": 3}, study=study, name="3-{}")
    assert [one.kind for one in list_series(tmp_path)] == [kind, "T1w"]
    scan = read_scan(tmp_path)
    assert scan.provenance.header["series"] == "3"
    (warning,) = scan.provenance.warnings
    assert f"not taken, since their headers do not say T1-weighted: series 2: {kind}" in warning


def test_what_was_not_chosen_and_why(tmp_path: Path) -> None:
    study = generate_uid()
    write_series(tmp_path, FINE, {**GRE, "SeriesNumber": 2}, study=study, name="2-{}")
    write_series(tmp_path, SMALL, {**MPRAGE, "SeriesNumber": 3}, study=study, name="3-{}")
    write_series(tmp_path, SMALL, {**MPRAGE, "SeriesNumber": 4, "ContrastBolusAgent": "x"}, study=study, name="4-{}")
    write_series(tmp_path, SMALL, {**T2W, "SeriesNumber": 5}, study=study, name="5-{}")
    (warning,) = read_scan(tmp_path).provenance.warnings
    assert "of 3 T1w series DICOM series 3 was chosen" in warning
    assert "without inversion, so less T1-weighted" in warning and "with contrast agent: with contrast" in warning


@pytest.mark.slow
def test_an_error_says_what_was_chosen_from(tmp_path: Path) -> None:
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_preprocessing.preparation import prepare

    study = generate_uid()
    noise = np.random.default_rng(0).integers(0, 4000, (28, 56, 48)).astype(np.uint16)
    write_series(tmp_path, FINE, {**MPRAGE, "SeriesNumber": 2}, study=study, name="2-{}", voxels=noise)
    write_series(tmp_path, SMALL, {**MPRAGE, "SeriesNumber": 3}, study=study, name="3-{}")
    with pytest.raises(ScanError, match=r"cannot be placed|no brain|far ") as caught:
        prepare(tmp_path, encoder_card("tiny-t1w-cnn").scan)
    assert "of 2 T1w series DICOM series 2 was chosen" in str(caught.value) and "series 3" in str(caught.value)


@pytest.mark.parametrize(("name", "words"), [("a.dcm.gz", "1 packed file"), ("a.tar", "1 packed file")])
def test_packed_files_are_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(tmp_path)
    assert "unpack" in str(caught.value.hint)


def test_runs_whose_echo_times_vary_from_slice_to_slice(tmp_path: Path) -> None:
    study, series = generate_uid(), generate_uid()
    for volume in range(6):

        def edit(data: Dataset, number: int, volume: int = volume) -> None:
            data.EchoTime = ("30.0049", "30.0051")[number % 2]
            data.InstanceNumber, data.AcquisitionNumber = 1 + volume * RUN.slices + number, volume + 1

        voxels = (RUN.head() + 10 * volume).astype(np.uint16)
        write_series(tmp_path, RUN, EPI, study=study, series=series, name=f"{volume}-{{}}", edit=edit, voxels=voxels)
    run = read_run(tmp_path)
    (_, block), *_ = run.blocks(6)
    assert run.frames == 6 and [float(block[..., n].min()) for n in range(6)] == [20, 30, 40, 50, 60, 70]


def test_an_examination_whose_first_files_are_damaged_is_one_input(tmp_path: Path) -> None:
    study = generate_uid()
    for number, name in enumerate(("t1", "t2")):
        write_series(tmp_path / name, SMALL, {**MPRAGE, "SeriesNumber": number + 1}, study=study)
    broken_off(tmp_path / "t1" / "IM0000")
    garbled(tmp_path / "t1" / "IM0001")
    assert examinations(tmp_path) == [tmp_path]
