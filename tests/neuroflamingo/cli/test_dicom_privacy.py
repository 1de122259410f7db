"""What names a patient stays in the DICOM files: identifiers are planted everywhere and looked for in every output."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from nilearn.datasets import load_mni152_template
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from neuroflamingo.cli import main
from neuroflamingo_encoders import encoder_card
from neuroflamingo_preprocessing.stores.items import item_key
from neuroflamingo_preprocessing.stores.scans import ScanStore
from tests.preprocessing.formats.dicom.dicom_heads import LPS_TO_RAS, MPRAGE, PLANES, T2W, Slab, write_series

HEAD = Slab(PLANES["sagittal"], 96, 80, 60, (2.5, 2.5, 3.0))
STUDY, SERIES = "1.2.826.0.1.77001", "1.2.826.0.1.77002"
TEXTS = {  # keyword to a value that is nowhere else
    "PatientName": "QUARX^ZEBULON",
    "PatientID": "MRN7730412",
    "OtherPatientIDs": "OPI5512908",
    "PatientBirthDate": "19531117",
    "PatientBirthName": "VORPALDOTTIR",
    "PatientMotherBirthName": "JABBERWOCKSON",
    "PatientAddress": "42 TULGEY WOOD",
    "PatientTelephoneNumbers": "0044 7700 900461",
    "AccessionNumber": "ACC9917345",
    "StudyID": "STU66128",
    "ReferringPhysicianName": "HALLOWAY^XERXES",
    "PerformingPhysicianName": "UMBRIDGETON^IONA",
    "OperatorsName": "PLIMSOLLER",
    "InstitutionName": "SAINT ELSEWHERE",
    "InstitutionAddress": "9 KNOWHERE ROAD",
    "InstitutionalDepartmentName": "WARD XIIJ",
    "StationName": "STATIONQX7",
    "DeviceSerialNumber": "SER4410077",
    "StudyDate": "20031209",
    "SeriesDate": "20031210",
    "AcquisitionDate": "20031211",
    "AcquisitionTime": "134759.25",
    "StudyDescription": "QUERY GLIOMA ZQD",
    "SeriesDescription": "T1 OF ZEBULONX",
    "ProtocolName": "PROTOCOL OF QUARXY",
    "PatientComments": "LIKES CHESSMEN",
    "ImageComments": "MOVED HIS HEADZQ",
    "AdditionalPatientHistory": "FELL OFF A LADDERZQ",
    "RequestedProcedureDescription": "FOLLOWUPZQ",
    "ManufacturerModelName": "MODELOFZQ",
}
LATER = {  # in places of their own
    "study UID": STUDY,
    "series UID": SERIES,
    "private": "PRIVATEZQX",
    "nested": "NESTEDIDZQ",
    "maker": "ACMESCANZQ",
    "agent": "GADOZQUARX",
    "body part": "BRAINOFZQ",
    "sequence": "SEQNAMEZQ",
    "folder": "QUARX_Zebulon_1953",
    "file": "IMG_QUARXZ",
    "inner folder": "MRN-7730412x",
    "archive": "zebulon-quarx-brain",
}
FORMATTED = ["1953-11-17", "2003-12-09", "2003-12-10", "2003-12-11", "13:47:59", "Zebulon", "QUARX"]


def plant(data: Dataset, number: int) -> None:
    for keyword, value in TEXTS.items():
        setattr(data, keyword, value)
    block = data.private_block(0x0011, LATER["private"] + " CREATOR", create=True)
    block.add_new(0x01, "LO", LATER["private"])
    other = Dataset()
    other.PatientID = LATER["nested"]
    data.OtherPatientIDsSequence = Sequence([other])
    data.Manufacturer, data.ContrastBolusAgent = LATER["maker"], LATER["agent"]
    data.BodyPartExamined, data.SequenceName = LATER["body part"], LATER["sequence"]


def template_voxels(slab: Slab) -> np.ndarray:
    """The MNI152 head on a slab's voxels."""
    from scipy.ndimage import map_coordinates

    image: Any = load_mni152_template(resolution=2)
    k, j, i = np.indices((slab.slices, slab.rows, slab.columns))
    world = (np.stack([i, j, k], axis=-1) @ slab.steps.T + slab.origin) * LPS_TO_RAS
    back = np.linalg.inv(image.affine)
    index = world @ back[:3, :3].T + back[:3, 3]
    values = map_coordinates(np.asarray(image.dataobj), index.reshape(-1, 3).T, order=1).reshape(world.shape[:3])
    return (values * 1000 / values.max()).astype(np.uint16)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder called after the patient, with a T1-weighted series and a T2-weighted one, and an archive of it."""
    place = tmp_path_factory.mktemp("disk")
    folder = place / LATER["folder"]
    names = {"study": STUDY, "name": LATER["file"] + "{:03d}.dcm", "edit": plant}
    inner = folder / LATER["inner folder"]
    write_series(inner / "a", HEAD, {**MPRAGE, "SeriesNumber": 3}, series=SERIES, voxels=template_voxels(HEAD), **names)
    write_series(inner / "b", Slab(slices=5), {**T2W, "SeriesNumber": 4}, **names)
    with zipfile.ZipFile(place / f"{LATER['archive']}.zip", "w") as archive:
        for file in folder.rglob("*.dcm"):
            archive.write(file, file.relative_to(place))
    return folder


def assert_unnamed(text: str | bytes, what: str) -> None:
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    low = raw.lower()
    for name, word in {**TEXTS, **LATER, **{word: word for word in FORMATTED}}.items():
        assert word.lower().encode() not in low, f"{name} ({word}) is in {what}"


def assert_folder_unnamed(folder: Path) -> int:
    """Names and contents of all files; arrays of tokens and prepared scans are searched as they lie."""
    count = 0
    for path in folder.rglob("*"):
        assert_unnamed(str(path.relative_to(folder)), "the name of a file")
        if path.is_file():
            count += 1
            assert_unnamed(path.read_bytes(), path.name)
    return count


@pytest.fixture
def spoken(capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """Everything that was printed is looked through at the end."""
    kept: list[str] = []
    yield kept
    said = capfd.readouterr()
    for text in (*kept, said.out, said.err):
        assert_unnamed(text, "what was printed")


def test_enough_is_planted(patient: Path) -> None:
    from pydicom import dcmread

    assert len(TEXTS) + len(LATER) >= 30
    raw = next(patient.rglob("*.dcm")).read_bytes()
    held = [word for word in (*TEXTS.values(), *LATER.values()) if word.encode() in raw]
    assert len(held) >= 36
    assert dcmread(next(patient.rglob("*.dcm"))).PatientName == TEXTS["PatientName"]
    with pytest.raises(AssertionError, match="PatientID"):
        assert_unnamed("of MRN7730412", "this")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_reports(
    form: str, patient: Path, tiny_model: Path, tmp_path: Path, aligned: None, monkeypatch: Any, spoken: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = patient if form == "folder" else patient.with_name(f"{LATER['archive']}.zip")
    out = tmp_path / "out"
    assert main(["report", str(source), "--model", str(tiny_model), "-o", "out/"]) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "dicom.prov.json",
        "dicom.report.html",
        "dicom.report.json",
        "dicom.report.txt",
    ]
    provenance = json.loads((out / "dicom.prov.json").read_text())
    (scan,) = provenance["inputs"]
    assert scan["name"] == "DICOM series 3" and scan["header"]["maker"] == "another"
    assert scan["header"]["format"] == "DICOM (classic)" and len(scan["sha256"]) == 64
    assert provenance["command"][2] == "<DICOM>"
    assert provenance["geometry"][0]["name"] == "DICOM conversion"
    report = (out / "dicom.report.txt").read_text()
    assert "DICOM series 3" in report or "dcm2niix" in (out / "dicom.report.html").read_text()
    assert assert_folder_unnamed(out) == 4


@pytest.mark.slow
def test_a_relative_folder_and_several(
    patient: Path, tiny_model: Path, tmp_path: Path, aligned: None, monkeypatch: Any, spoken: list[str]
) -> None:
    monkeypatch.chdir(patient.parent)
    names = [patient.name, f"{LATER['archive']}.zip"]
    out = tmp_path / "out"
    assert (
        main(["report", *names, "--series", "3", "--model", str(tiny_model), "-o", f"{out}/", "--format", "prov"]) == 0
    )
    assert sorted(file.name for file in out.iterdir()) == ["dicom-1.prov.json", "dicom-2.prov.json"]
    assert assert_folder_unnamed(out) == 2


@pytest.mark.slow
def test_check_scan(patient: Path, aligned: None, capfd: Any, spoken: list[str]) -> None:
    assert main(["check-scan", str(patient)]) == 0
    words = capfd.readouterr().out
    assert words.startswith("DICOM series 3\n") and "series 3: T1w (3D)" in words and "(this one)" in words
    assert "series 4: T2w" in words
    spoken.append(words)
    archive, single = patient.with_name(f"{LATER['archive']}.zip"), next(patient.rglob("a/*.dcm"))
    assert main(["check-scan", "--json", str(patient), str(archive), str(single)]) == 65
    text = capfd.readouterr().out
    spoken.append(text)
    folder, packed, slice_ = json.loads(text)
    assert folder["sha256"] == packed["sha256"] and folder["usable"] and packed["usable"]
    assert [one["kind"] for one in folder["series"]] == ["T1w", "T2w"] and folder["file"] == "DICOM series 3"
    assert slice_["file"] == "DICOM input" and "single slice" in slice_["fault"]["what"]
    assert main(["check-scan", str(patient), "--encoder", "swift"]) == 65
    assert main(["check-scan", str(patient), "--series", "7"]) == 65


@pytest.mark.slow
def test_stores(patient: Path, tmp_path: Path, aligned: None, capfd: Any, spoken: list[str]) -> None:
    store = tmp_path / "store"
    prepare = ["prepare", str(patient.parent), "-o", str(store), "--encoder", "tiny-t1w-cnn", "--nprocs", "1"]
    assert main([*prepare, "--dry-run"]) == 0
    text = capfd.readouterr().out
    assert "2 scans" in text and "DICOM input 1, DICOM input 2" in text
    spoken.append(text)
    assert main(prepare) == 0
    text = capfd.readouterr().out
    assert "1 prepared, 1 already present, 0 failed" in text  # the archive holds the folder's series
    spoken.append(text)
    assert main(prepare) == 0
    assert "0 prepared, 2 already present" in capfd.readouterr().out
    assert assert_folder_unnamed(store) > 4
    (metadata,) = [json.loads(path.read_text()) for path in store.rglob("*about*.json")] or [None]
    assert metadata is None or metadata["input"]["kind"] == "DICOM"
    assert main([*prepare[:3], str(tmp_path / "other"), *prepare[4:], "--series", "4"]) == 1
    assert "series 4" in (tmp_path / "other" / "log.jsonl").read_text()
    assert_folder_unnamed(tmp_path / "other")


@pytest.mark.slow
def test_a_series_is_hashed_once(patient: Path, tmp_path: Path, aligned: None, monkeypatch: Any) -> None:
    """For the item's key, which is that of the sorted hashes of its files, and for the record."""
    from neuroflamingo_preprocessing.formats.dicom import read_dicom

    hashed, counted = [], read_dicom._digest
    monkeypatch.setattr(read_dicom, "_digest", lambda series: hashed.append(series.number) or counted(series))
    common = ["--encoder", "tiny-t1w-cnn", "--nprocs", "1", "-q"]
    assert main(["prepare", str(patient), "-o", str(tmp_path / "store"), *common]) == 0
    assert hashed == [3]
    files = (patient / LATER["inner folder"] / "a").iterdir()
    lines = "\n".join(sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    (item,) = map(ScanStore(tmp_path / "store").__getitem__, ScanStore(tmp_path / "store"))
    assert item.key == item_key(digest, encoder_card("tiny-t1w-cnn").scan.digest, {})
    assert item.metadata["input"]["sha256"] == item.metadata["made_of"]["input_sha256"] == digest
    assert main(["encode", str(patient), "-o", str(tmp_path / "tokens"), *common]) == 0
    assert hashed == [3, 3]
    with read_dicom.open_dicom(patient) as examination:
        assert examination.scan().provenance.sha256 == digest


@pytest.mark.slow
def test_tokens(patient: Path, tmp_path: Path, aligned: None, spoken: list[str]) -> None:
    out = tmp_path / "tokens.safetensors"
    assert main(["encode", str(patient), "--encoder", "tiny-t1w-cnn", "-o", str(out)]) == 0
    assert b"DICOM series 3" in out.read_bytes()
    assert_folder_unnamed(tmp_path)
    assert main(["encode", str(patient), "--encoder", "swift", "--init", "random", "-o", str(tmp_path / "b.npz")]) == 65
    assert (
        main(["encode", str(patient), "--series", "4", "--encoder", "tiny-t1w-cnn", "-o", str(tmp_path / "c.npz")])
        == 65
    )


def test_crash_files(patient: Path, tmp_path: Path, monkeypatch: Any, capfd: Any, spoken: list[str]) -> None:
    from neuroflamingo_preprocessing.formats.dicom import read_dicom

    def broken(file: Path, series: Any, stored: Any) -> bool:
        raise RuntimeError(f"bug at {str(series.files[0])!r} of {str(patient)!r}")

    monkeypatch.setattr(read_dicom, "verify_contents", broken)
    monkeypatch.setenv("NEUROFLAMINGO_HOME", str(tmp_path / "home"))
    assert main(["check-scan", str(patient)]) == 70
    said = capfd.readouterr().err
    assert "bug at '<DICOM>' of '<DICOM>'" in said
    spoken.append(said)
    (crash,) = (tmp_path / "home" / "crashes").iterdir()
    assert "Traceback" in crash.read_text() and "check-scan <DICOM>" in crash.read_text()
    assert assert_folder_unnamed(tmp_path / "home") == 1


def test_a_file_that_may_not_be_read(patient: Path, monkeypatch: Any, spoken: list[str], capfd: Any) -> None:
    from neuroflamingo_preprocessing.formats.dicom import read_dicom

    def refuse(series: Any) -> str:
        raise PermissionError(13, "Permission denied", str(series.files[0]))

    monkeypatch.setattr(read_dicom, "_digest", refuse)
    assert main(["check-scan", str(patient)]) == 65
    text = capfd.readouterr().out
    assert "cannot be read or converted" in text and "Permission denied" in text
    spoken.append(text)


def test_warnings_and_logs_of_the_library(tmp_path: Path, caplog: Any, recwarn: Any, capfd: Any) -> None:
    """pydicom repeats values that are against the standard."""
    from neuroflamingo_preprocessing.formats.dicom.read_dicom import list_series

    folder = write_series(tmp_path, Slab(columns=8, rows=8, slices=3), edit=plant)
    for file in folder.iterdir():
        raw = file.read_bytes()
        file.write_bytes(raw.replace(b"GADOZQUARX", b"GADO\xff\xfe\x01\x02ZQ").replace(b"2300", b"QUAR", 1))
    recwarn.clear()
    (series,) = list_series(folder)
    assert series.kind == "unknown"  # the repetition time is no number
    said = capfd.readouterr()
    assert_unnamed("".join(str(one.message) for one in recwarn) + caplog.text + said.out + said.err, "a warning")
    assert len(recwarn) == 0 and caplog.text == ""


@pytest.mark.slow
def test_nifti_texts(head_file: Path, tmp_path: Path, aligned: None, tiny_model: Path, capfd: Any, spoken: Any) -> None:
    """`descrip`, `aux_file`, `intent_name`, `db_name`, an extension, a sidecar and the folder's name stay behind."""
    folder = tmp_path / LATER["folder"]
    folder.mkdir()
    image: Any = nib.load(head_file)  # type: ignore[attr-defined]
    planted = {
        "descrip": "QUARX^ZEBULON",
        "aux_file": "MRN7730412",
        "intent_name": "VORPALDOTTIR",
        "db_name": "ACC9917345",
    }
    for field, text in planted.items():
        image.header[field] = text
    image.header.extensions.append(Nifti1Extension("comment", b"LIKES CHESSMEN 42 TULGEY WOOD"))
    path = folder / "head_T1w.nii"
    image.to_filename(path)
    (folder / "head_T1w.json").write_text(
        json.dumps({"PatientName": "QUARX^ZEBULON", "InstitutionName": "SAINT ELSEWHERE"})
    )
    raw = path.read_bytes()
    assert all(text.encode() in raw for text in (*planted.values(), "CHESSMEN"))
    out = tmp_path / "out"
    assert main(["report", str(path), "--model", str(tiny_model), "-o", f"{out}/", "--quiet"]) == 0
    said = capfd.readouterr()
    assert_unnamed(said.err, "standard error")
    assert main(["check-scan", str(path), "--json"]) == 0
    assert main(["check-scan", str(path)]) == 0
    prepare = ["prepare", str(folder), "-o", str(tmp_path / "store"), "--encoder", "tiny-t1w-cnn", "--nprocs", "1"]
    assert main([*prepare, "--quiet"]) == 0
    assert main(["encode", str(path), "--encoder", "tiny-t1w-cnn", "-o", str(tmp_path / "tokens.safetensors")]) == 0
    said = capfd.readouterr()
    for text in (said.out, said.err):
        assert_unnamed(text.replace(str(tmp_path), ""), "what was printed")
    for place in ("out", "store"):
        assert assert_folder_unnamed(tmp_path / place) > 3
    assert_unnamed((tmp_path / "tokens.safetensors").read_bytes(), "tokens")


def test_doctor_shows_the_extra(monkeypatch: Any) -> None:
    import sys

    from neuroflamingo.cli.environment import _extras

    (there,) = _extras()
    assert there.fine and "pydicom 3" in there.value and "dcm2niix 1" in there.value
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    (missing,) = _extras()
    assert missing.fine and missing.value == "no dcm2niix; pip install 'neuroflamingo[dicom]'"
