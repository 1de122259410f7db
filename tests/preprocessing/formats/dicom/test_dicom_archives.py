"""Zip archives of DICOM: read like the folder, unpacked under numbers, and refused where they mean harm."""

from __future__ import annotations

import io
import stat
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo_preprocessing import find_inputs, read_scan
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.dicom.archive import holds_dicom, is_dicom_input, shown_name
from neuroflamingo_preprocessing.formats.dicom.read_dicom import examinations
from neuroflamingo_preprocessing.spec import ScanSpec
from tests.preprocessing.formats.dicom.dicom_heads import SMALL, write_series


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("series") / "head", SMALL)


def pack(target: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"A^NAME/{file.name}")
    return target


@pytest.mark.slow
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_an_archive_is_read_like_its_folder(method: int, series: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", series, method)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("notes.txt", "not DICOM")
        more.writestr("empty/", "")
    scan, plain = read_scan(archive), read_scan(series)
    assert np.array_equal(scan.voxels, plain.voxels) and np.array_equal(scan.affine, plain.affine)
    assert scan.provenance == plain.provenance  # the hash too: it is of the images
    assert is_dicom_input(archive) and shown_name(archive) == "DICOM input"


def one(name: str, content: bytes = b"x", mode: int | None = None) -> Callable[[Path, Path], None]:
    def write(target: Path, series: Path) -> None:
        pack(target, series)
        with zipfile.ZipFile(target, "a") as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode or 0) << 16
            archive.writestr(info, content)

    return write


def bomb(target: Path, series: Path) -> None:
    """100 MB of zeros after a DICOM head, in 100 kB."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(10**8))


def lying(target: Path, series: Path) -> None:
    """The same, but the table of contents says 1000 bytes."""
    bomb(target, series)
    raw = target.read_bytes()
    size = struct.pack("<I", 10**8 + 132)
    assert raw.count(size) == 2
    target.write_bytes(raw.replace(size, struct.pack("<I", 1000)))


def overlapping(target: Path, series: Path) -> None:
    """Two hundred entries that all point to one member of 1 MB."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(10**6))
    raw = packed.getvalue()
    directory = raw.index(b"PK\x01\x02")
    entry, end = raw[directory : raw.index(b"PK\x05\x06")], raw[raw.index(b"PK\x05\x06") :]
    count = 200
    end = end[:8] + struct.pack("<HHI", count, count, len(entry) * count) + end[16:]
    target.write_bytes(raw[:directory] + entry * count + end)


def encrypted(target: Path, series: Path) -> None:
    pack(target, series)
    raw = bytearray(target.read_bytes())
    start = raw.index(b"PK\x01\x02")
    raw[start + 8] |= 1
    target.write_bytes(raw)


def damaged(target: Path, series: Path) -> None:
    raw = bytearray(pack(target, series).read_bytes())
    raw[200:4000] = bytes(3800)
    target.write_bytes(raw)


def cut(target: Path, series: Path) -> None:
    target.write_bytes(pack(target, series).read_bytes()[:-3000])


def endless_contents(target: Path, series: Path) -> None:
    """A table of contents of 20 MB."""
    pack(target, series)
    raw = target.read_bytes()
    end = raw.index(b"PK\x05\x06")
    entry = raw[raw.index(b"PK\x01\x02") : end]
    count = 20 * 2**20 // len(entry)
    tail = raw[end:][:8] + struct.pack("<HHI", 65535, 65535, len(entry) * count) + raw[end + 16 :]
    target.write_bytes(raw[: raw.index(b"PK\x01\x02")] + entry * count + tail)


def nested(target: Path, series: Path) -> None:
    inner = pack(target.with_suffix(".inner"), series)
    with zipfile.ZipFile(target, "w") as archive:
        archive.write(inner, "inner.zip")


def nothing(target: Path, series: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a.txt", "words")


HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "parent folder": (one("../../evil.dcm"), "leads out of it"),
    "parent folder inside": (one("a/../../evil.dcm"), "leads out of it"),
    "backslashes": (one("a\\..\\..\\evil.dcm"), "leads out of it"),
    "absolute": (one("/evil.dcm"), "leads out of it"),
    "drive letter": (one("C:/evil.dcm"), "leads out of it"),
    "link": (one("link.dcm", b"/etc/passwd", stat.S_IFLNK | 0o777), "link or a device"),
    "device": (one("null.dcm", b"", stat.S_IFCHR | 0o666), "link or a device"),
    "bomb": (bomb, "far more"),
    "bomb that lies": (lying, "damaged"),
    "overlapping members": (overlapping, "damaged|far more"),
    "encrypted": (encrypted, "encrypted"),
    "damaged": (damaged, "damaged"),
    "cut": (cut, "damaged"),
    "endless contents": (endless_contents, "table of contents"),
    "archive inside": (nested, "another archive"),
    "no DICOM": (nothing, "holds no DICOM files"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(name: str, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    write, words = HOSTILE[name]
    target, place = tmp_path / "a.zip", tmp_path / "temporary"
    write(target, series)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(target)
    spent, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.exit_code == 65 and caught.value.hint
    assert "evil" not in str(caught.value) and "A^NAME" not in str(caught.value)
    assert peak < 64e6 and spent < 10
    assert list(place.iterdir()) == [] and not list(tmp_path.rglob("evil*"))


def test_caps(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "a.zip", series)
    monkeypatch.setattr("neuroflamingo_preprocessing.formats.dicom.archive.MAX_FILES", 5)
    with pytest.raises(ScanError, match="too many members"):
        read_scan(archive)
    with pytest.raises(ScanError, match="too many files"):
        read_scan(series)
    assert holds_dicom(series)


def test_what_is_dicom(series: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "zarr.json").write_text("{}")
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "a.nii").write_bytes(b"\x5c\x01\0\0" + bytes(400))
    for other in ("store", "a.npz", "a.nii", "not there", "a\0b"):
        assert not is_dicom_input(tmp_path / other) and not holds_dicom(tmp_path / other)
    assert is_dicom_input(series) and is_dicom_input(next(series.iterdir())) and holds_dicom(series.parent)
    assert not holds_dicom(tmp_path / "store") and shown_name(tmp_path / "a.nii") == "a.nii"


def test_inputs(series: Path, tmp_path: Path, spec: ScanSpec) -> None:
    patients = tmp_path / "patients"
    for patient in ("DOE", "ROE"):
        for number in (1, 2):
            study = f"1.2.{patient == 'DOE':d}"
            write_series(patients / patient / f"S{number}", SMALL, {"SeriesNumber": number}, study=study)
    (patients / "notes.txt").write_text("x")
    archive = pack(patients / "MOE.zip", series)
    assert examinations(patients) == [patients / "DOE", archive, patients / "ROE"]
    found = find_inputs(patients, spec)
    assert [one.name for one in found] == ["DICOM input 1", "DICOM input 2", "DICOM input 3"]
    assert [one.path for one in find_inputs(patients / "DOE", spec)] == [patients / "DOE"]
    assert [one.path for one in find_inputs(archive, spec)] == [archive]
    manifest = tmp_path / "m.csv"
    manifest.write_text("scan,series\npatients/DOE,2\npatients/MOE.zip,\n")
    assert [(one.path.name, one.series) for one in find_inputs(manifest, spec)] == [("DOE", 2), ("MOE.zip", None)]
    manifest.write_text("scan,series\npatients/DOE,two\n")
    with pytest.raises(ScanError, match="the series 'two' is not a number"):
        find_inputs(manifest, spec)


def test_all_of_one_examination_flat(tmp_path: Path, spec: ScanSpec) -> None:
    for number in (1, 2):
        write_series(tmp_path / "all", SMALL, {"SeriesNumber": number}, study="1.2.3", name=f"{number}-{{}}")
    assert [one.path for one in find_inputs(tmp_path, spec)] == [tmp_path / "all"]
