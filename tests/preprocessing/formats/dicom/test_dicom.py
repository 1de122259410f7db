"""DICOM: left is left after conversion, every voxel is where the headers put it, and what is in doubt is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from neuroflamingo_preprocessing import read_run, read_scan
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.dicom import conversion, read_dicom
from neuroflamingo_preprocessing.formats.dicom.read_dicom import list_series
from tests.preprocessing.formats.dicom.dicom_heads import (
    EPI,
    LPS_TO_RAS,
    MARK_MM,
    PLANES,
    RUN,
    SMALL,
    Slab,
    assert_left_is_left,
    oblique,
    place_of,
    write_enhanced,
    write_mosaic,
    write_series,
)

PLANAR: dict[str, Any] = {"planar": True, "echo_ms": 30.0, "repetition_ms": 1500.0, "contrast": "UNKNOWN"}


def big_endian(data: Dataset, number: int) -> None:
    data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian


def implicit(data: Dataset, number: int) -> None:
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def rle(data: Dataset, number: int) -> None:
    data.compress(RLELossless, generate_instance_uid=False)


def backwards(data: Dataset, number: int) -> None:
    data.InstanceNumber = 1000 - number


def computed(data: Dataset, number: int) -> None:
    data.Modality, data.GantryDetectorTilt = "CT", "11.3"
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.RescaleSlope, data.RescaleIntercept = 1, 0


SAGITTAL = Slab(PLANES["sagittal"], 96, 80, 56, (2.5, 2.5, 3.0))
HEADS: dict[str, tuple[Slab, Callable[..., None] | None]] = {
    "axial": (Slab(), None),
    "sagittal": (SAGITTAL, None),
    "coronal": (Slab(PLANES["coronal"], 80, 80, 56, (2.5, 2.5, 3.5)), None),
    "oblique": (Slab(oblique()), None),
    "oblique by 50 degrees": (Slab(oblique(50.0)), None),
    "axial from the top down": (Slab(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, -1]])), None),
    "axial, rows from left to right": (Slab(np.array([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]])), None),
    "pixels that are not square": (Slab(rows=64, spacing=(2.5, 4.0, 3.5)), None),
    "instance numbers backwards": (Slab(), backwards),
    "implicit VR": (Slab(), implicit),
    "big endian": (Slab(), big_endian),
    "RLE": (Slab(slices=40, spacing=(2.5, 2.5, 4.0)), rle),
}


@pytest.mark.parametrize("name", HEADS)
def test_left_is_left(name: str, tmp_path: Path) -> None:
    slab, edit = HEADS[name]
    scan = read_scan(write_series(tmp_path, slab, edit=edit))
    assert scan.modality == "T1w" and scan.provenance.file == "DICOM series 1" and scan.provenance.warnings == ()
    assert [step.name for step in scan.geometry] == ["DICOM conversion"]
    assert scan.geometry[0].interpolation == "none"
    assert sorted(scan.voxels.shape) == sorted((slab.columns, slab.rows, slab.slices))
    assert_left_is_left(scan)


@pytest.mark.parametrize("directions", [*PLANES.values(), oblique(31.0)], ids=[*PLANES, "oblique"])
def test_each_voxel_is_where_the_headers_say(directions: Any, tmp_path: Path) -> None:
    slab = Slab(directions, SMALL.columns, SMALL.rows, SMALL.slices, SMALL.spacing)
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4000, (slab.slices, slab.rows, slab.columns)).astype(np.uint16)
    scan = read_scan(write_series(tmp_path, slab, voxels=voxels))
    back = np.linalg.inv(scan.affine)
    for k, j, i in rng.integers(0, voxels.shape, (50, 3)):
        world = (slab.origin + slab.steps @ (i, j, k)) * LPS_TO_RAS
        index = back[:3, :3] @ world + back[:3, 3]
        assert np.abs(index - np.round(index)).max() < 1e-3
        assert scan.voxels[tuple(np.round(index).astype(int))] == voxels[k, j, i]


@pytest.mark.parametrize("tilt", [0.2, -0.2, 0.45])
@pytest.mark.parametrize("edit", [None, computed], ids=["MR", "CT"])
def test_leaning_slices_are_straightened_and_logged(tilt: float, edit: Any, tmp_path: Path) -> None:
    scan = read_scan(write_series(tmp_path, Slab(tilt=tilt), edit=edit), series=1)
    assert_left_is_left(scan)
    step = scan.geometry[-1]
    assert step.name == "gantry tilt removed" and step.interpolation == "linear"
    assert step.shape_after == scan.voxels.shape != step.shape_before
    assert any("a tilted gantry" in warning for warning in scan.provenance.warnings)
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("slab", [Slab(), SAGITTAL, Slab(oblique())], ids=["axial", "sagittal", "oblique"])
def test_enhanced(slab: Slab, tmp_path: Path) -> None:
    file = write_enhanced(tmp_path / "no ending", slab)
    scan = read_scan(file)
    assert_left_is_left(scan)
    assert scan.provenance.header["format"] == "DICOM (enhanced)" and scan.modality == "T1w"
    assert read_scan(tmp_path).provenance.sha256 == scan.provenance.sha256


@pytest.mark.parametrize("directions", [PLANES["axial"], oblique()], ids=["axial", "oblique"])
@pytest.mark.parametrize("form", ["mosaic", "enhanced", "classic"])
def test_runs(form: str, directions: Any, tmp_path: Path) -> None:
    slab = Slab(directions, RUN.columns, RUN.rows, RUN.slices, RUN.spacing)
    heads = np.stack([slab.head() + 10 * volume for volume in range(6)]).astype(np.uint16)
    if form == "mosaic":
        source = write_mosaic(tmp_path, slab, 6, voxels=heads)
    elif form == "enhanced":
        source = write_enhanced(
            tmp_path / "run.dcm",
            slab,
            volumes=6,
            voxels=heads,
            planar=True,
            echo_ms=30,
            repetition_ms=1500,
            contrast="NO",
        )
    else:
        source, series, study = tmp_path, generate_uid(), generate_uid()
        for volume in range(6):

            def number(data: Dataset, k: int, volume: int = volume) -> None:
                data.InstanceNumber = 1 + volume * slab.slices + k
                data.AcquisitionNumber = volume + 1

            write_series(
                source, slab, EPI, series=series, study=study, voxels=heads[volume], name=f"{volume}-{{}}", edit=number
            )
    run = read_run(source)
    assert (run.frames, run.repetition_time, run.provenance.file) == (6, 1.5, "DICOM series 1")
    assert run.provenance.header["format"] == f"DICOM ({form})"
    (_, block), *_ = run.blocks(6)
    dark = [float(block[..., n].min()) for n in range(6)]
    assert dark == [20, 30, 40, 50, 60, 70]  # of each volume, and of no other
    for n in range(6):
        found = place_of(block[..., n] - 10 * n, run.affine)
        assert np.linalg.norm(found - MARK_MM) < 3.5
    kept = run.path
    assert kept.is_file()
    del run
    assert not kept.parent.exists()
    assert [one.kind for one in list_series(source)] == ["bold"]


def test_slices_that_dcm2niix_mixes_up_are_put_in_order(tmp_path: Path) -> None:
    """This version sorts this file by place, then time, and says nothing."""
    heads = np.stack([RUN.head() + 10 * volume for volume in range(6)]).astype(np.uint16)
    file = write_enhanced(tmp_path / "a.dcm", RUN, volumes=6, voxels=heads, **PLANAR)
    said = read_run(file).provenance.warnings
    assert any("mixed up" in warning for warning in said)


def test_pictures_in_other_places_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path, SMALL)
    real = conversion._pick

    def swapped(found: list[Path], series: Any) -> Path:
        file = real(found, series)
        raw = bytearray(file.read_bytes())
        planes = np.frombuffer(raw, np.int16, offset=352).reshape(SMALL.slices, -1)
        planes[[0, 5]] = planes[[5, 0]]
        file.write_bytes(raw)
        return file

    monkeypatch.setattr(conversion, "_pick", swapped)
    with pytest.raises(ScanError, match="wrong place"):
        read_scan(folder)


def test_an_affine_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path, SMALL)
    real = read_dicom.sizes_and_affine

    def moved(file: Path, series: Any) -> Any:
        shape, affine = real(file, series)
        affine[0, 3] += 3.0
        return shape, affine

    monkeypatch.setattr(read_dicom, "sizes_and_affine", moved)
    with pytest.raises(ScanError, match=r"a corner 3\.0 mm away"):
        read_scan(folder)


def without(*names: str) -> Callable[[Dataset, int], None]:
    def edit(data: Dataset, number: int) -> None:
        for name in names:
            delattr(data, name)

    return edit


def uneven(data: Dataset, number: int) -> None:
    data.ImagePositionPatient[2] += 0.3 * SMALL.spacing[2] * (number % 2)


def unknown_compression(data: Dataset, number: int) -> None:
    from pydicom.encaps import encapsulate

    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")  # HTJ2K
    data.PixelData = encapsulate([b"\xff\x4f" + bytes(100)])


def colour(data: Dataset, number: int) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PixelData = bytes(3 * SMALL.rows * SMALL.columns)


def huge(data: Dataset, number: int) -> None:
    data.compress(RLELossless, generate_instance_uid=False)
    data.Rows = data.Columns = 65000


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a missing slice": ({"skip": (9,)}, "1 slice is missing inside it"),
    "three missing slices": ({"skip": (5, 6, 9)}, "3 slices are missing inside it"),
    "uneven steps": ({"edit": uneven}, "mm apart"),
    "no position": ({"edit": without("ImagePositionPatient")}, "left and right cannot be told"),
    "no orientation": ({"edit": without("ImageOrientationPatient")}, "left and right cannot be told"),
    "no pixels": ({"edit": without("PixelData")}, "truncated"),
    "unknown compression": ({"edit": unknown_compression}, "1.2.840.10008.1.2.4.201"),
    "colour": ({"edit": colour}, "colour"),
    "a claim of gigabytes": ({"edit": huge}, "claim"),
    "one slice": ({"skip": tuple(range(1, SMALL.slices))}, "single slice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    how, words = REFUSED[name]
    with pytest.raises(ScanError) as caught:
        read_scan(write_series(tmp_path, SMALL, **how))
    assert words in str(caught.value) and caught.value.exit_code == 65 and caught.value.hint


def test_a_truncated_file_and_an_incomplete_run(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "cut", SMALL)
    file = folder / "IM0003"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ScanError, match="1 of 24 files are truncated"):
        read_scan(folder)
    study, series = generate_uid(), generate_uid()
    for volume in range(6):
        gone = (4,) if volume == 2 else ()
        write_series(tmp_path / "run", RUN, EPI, study=study, series=series, name=f"{volume}-{{}}", skip=gone)
    with pytest.raises(ScanError, match="71 images for 12 places"):
        read_run(tmp_path / "run", series=1)


def test_the_end_of_a_series_that_is_not_there(tmp_path: Path) -> None:
    def announce(data: Dataset, number: int) -> None:
        data.ImagesInAcquisition = 30

    (warning,) = read_scan(write_series(tmp_path, SMALL, edit=announce)).provenance.warnings
    assert "announces 30 images, 24 are here" in warning
