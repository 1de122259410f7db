"""DICOM: left is left after conversion, every voxel is where the headers put it, and what is in doubt is refused."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from neuroflamingo_preprocessing import dicom, dicom_conversion, dicom_headers, read_run, read_scan
from neuroflamingo_preprocessing.dicom import list_series
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, ScanError, UsageError
from neuroflamingo_preprocessing.scan import Scan
from tests.preprocessing.dicom_heads import (
    EPI,
    FLAIR,
    LPS_TO_RAS,
    MARK_MM,
    MPRAGE,
    PLANES,
    RUN,
    SMALL,
    T2W,
    Slab,
    oblique,
    write_enhanced,
    write_mosaic,
    write_series,
)

PLANAR: dict[str, Any] = {"planar": True, "echo_ms": 30.0, "repetition_ms": 1500.0, "contrast": "UNKNOWN"}


def place_of(voxels: Any, affine: Any) -> np.ndarray:
    """Where the middle of the bright ball lies, RAS mm."""
    return np.argwhere(voxels > 750).mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]


def assert_left_is_left(scan: Scan) -> None:
    found = place_of(scan.voxels, scan.affine)
    assert found[0] < -30
    assert np.linalg.norm(found - MARK_MM) < min(scan.spacing) / 2


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
    real = dicom_conversion._pick

    def swapped(found: list[Path], series: Any) -> Path:
        file = real(found, series)
        raw = bytearray(file.read_bytes())
        planes = np.frombuffer(raw, np.int16, offset=352).reshape(SMALL.slices, -1)
        planes[[0, 5]] = planes[[5, 0]]
        file.write_bytes(raw)
        return file

    monkeypatch.setattr(dicom_conversion, "_pick", swapped)
    with pytest.raises(ScanError, match="wrong place"):
        read_scan(folder)


def test_an_affine_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path, SMALL)
    real = dicom.sizes_and_affine

    def moved(file: Path, series: Any) -> Any:
        shape, affine = real(file, series)
        affine[0, 3] += 3.0
        return shape, affine

    monkeypatch.setattr(dicom, "sizes_and_affine", moved)
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


def study_of(folder: Path, *series: tuple[int, Any, Any, Any]) -> Path:
    """Several series of one examination, in one folder."""
    study = generate_uid()
    for number, tags, slab, edit in series:
        tagged = {**tags, "SeriesNumber": number}
        write_series(folder, slab, tagged, study=study, name=f"{number}-{{}}", edit=edit)
    return folder


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
    assert "of 3 T1w series DICOM series 3 was taken" in warning and "series 2" in warning and "series 4" in warning
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
    assert scan.provenance.warnings == ("1 of its images are there twice; the copies were left out",)


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
        patch.setattr(dicom_headers, "LOWEST_PYDICOM", (99, 0, 0))
        with pytest.raises(ScanError, match="pydicom 3"):
            read_scan(folder)
    with monkeypatch.context() as patch:
        patch.setattr(dicom_conversion, "TIMEOUT_SECONDS", 0)
        with pytest.raises(ScanError, match="was not done") as caught:
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
    with pytest.raises(ScanError, match="no pictures"):
        read_scan(tmp_path / "nothing")


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


# What packages ship


def shipped(package: str, *parts: str) -> Path:
    return Path(__import__(package).__file__ or "").parent.joinpath(*parts)


def test_real_siemens_mosaics(tmp_path: Path) -> None:
    """nibabel's two diffusion mosaics of 48 slices: a real CSA header, read as a run of two volumes."""
    for name in ("siemens_dwi_0", "siemens_dwi_1000"):
        packed = shipped("nibabel", "nicom", "tests", "data", f"{name}.dcm.gz")
        (tmp_path / name).write_bytes(gzip.decompress(packed.read_bytes()))
    (series,) = list_series(tmp_path)
    assert (series.kind, series.form, series.slices, series.volumes) == ("dwi", "mosaic", 48, 2)
    run = read_run(tmp_path, series=12)
    assert run.shape == (128, 128, 48) and run.repetition_time == 6.6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental
        import nibabel.nicom.dicomwrappers as wrappers
    expected = wrappers.wrapper_from_file(str(tmp_path / "siemens_dwi_0"))
    (_, block), *_ = run.blocks(2)
    to_ras = np.diag([-1.0, -1, 1, 1]) @ expected.affine
    pixels = np.asarray(expected.get_data())
    for index in ((64, 64, 24), (30, 90, 10), (100, 40, 40)):
        world = to_ras[:3, :3] @ index + to_ras[:3, 3]
        there = np.linalg.inv(run.affine)
        here = there[:3, :3] @ world + there[:3, 3]
        assert np.abs(here - np.round(here)).max() < 0.01
        assert block[..., 0][tuple(np.round(here).astype(int))] == pixels[index]


@pytest.mark.slow
def test_a_real_enhanced_header(tmp_path: Path) -> None:
    """nibabel's Philips MPRAGE: a real enhanced header of 176 frames; its pixels were set to 0, which is refused."""
    packed = shipped("nibabel", "nicom", "tests", "data", "philips_mprage.dcm.gz")
    (tmp_path / "head").write_bytes(gzip.decompress(packed.read_bytes()))
    (series,) = list_series(tmp_path)
    assert (series.number, series.kind, series.form, series.slices) == (301, "T1w", "enhanced", 176)
    with pytest.raises(ScanError, match="holds no picture"):
        read_scan(tmp_path)


def test_real_examination_with_a_dicomdir() -> None:
    """pydicom's examination of seven series, a DICOMDIR above it: listed from the images alone, none is a head."""
    folder = shipped("pydicom", "data", "test_files", "dicomdirtests", "98892003")
    kinds = [one.kind for one in list_series(folder)]
    assert kinds.count("derived") == 7 and kinds.count("T1w") == 4 and kinds.count("localizer") == 6
    with pytest.raises(ScanError, match="single slice"):
        read_scan(folder)


SYNTAXES = ["", "_RLE", "_implicit", "_bigendian", "_jp2klossless", "_jpeg_ls_lossless"]


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
def test_real_code_streams(syntax: str, tmp_path: Path) -> None:
    """pydicom's one MR slice as different packages stored it, stacked into a series: the same voxels each time."""
    stacks = []
    for name in ("", syntax):
        folder = tmp_path / f"x{name}"
        folder.mkdir()
        study, series = generate_uid(), generate_uid()
        for number in range(8):
            data = dcmread(shipped("pydicom", "data", "test_files", f"MR_small{name}.dcm"))
            data.StudyInstanceUID, data.SeriesInstanceUID = study, series
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            data.InstanceNumber, data.PixelSpacing = number + 1, [3.0, 3.0]
            data.ImagePositionPatient = [-96, -96, 20.0 * number]
            data.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
            data.save_as(folder / f"{number}")
        stacks.append(read_scan(folder, series=1).voxels)
    assert stacks[0].std() > 100
    assert np.array_equal(*stacks)


def test_a_real_truncated_file() -> None:
    with pytest.raises(ScanError, match="1 of 1 files are truncated"):
        read_scan(shipped("pydicom", "data", "test_files", "MR_truncated.dcm"), series=1)
