"""Scans in zarr folders: read only where they say how they lie, and never believed further than their files go."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zarr
from numcodecs import Zstd
from zarr.core.array import ShardsConfigParam

from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.formats.zarr.chunks import check_frames
from neuroflamingo_preprocessing.formats.zarr.metadata import read_array_metadata
from neuroflamingo_preprocessing.read import claimed_sizes, is_run, read_run, read_scan
from neuroflamingo_preprocessing.stores.scans import ScanStore

SHAPE = (12, 14, 11)
AFFINE = np.array([[-12.0, 0, 0, 70], [0, 0, 12, -80], [0, -12, 0, 60], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
STATED = {"neuroflamingo": {"affine": AFFINE.tolist(), "world": "RAS+ mm"}}


def plain(path: Path, attributes: Any = STATED, values: np.ndarray = VALUES, names: Any = ("x", "y", "z"), **how: Any):
    """An array that states its affine."""
    array = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, chunks=(8,) * values.ndim, dimension_names=names, **how
    )
    array[...] = values
    array.attrs.update(attributes)
    return path


def nifti_zarr(path: Path, version: int = 3, change: Callable[[Any], None] | None = None) -> Path:
    """As the draft 1.0.rc1 says: levels [t, c, z, y, x] and the binary header beside them."""
    header = nib.Nifti1Image(VALUES, AFFINE).header  # type: ignore[attr-defined]
    header.set_sform(AFFINE, 1)
    header.set_qform(AFFINE, 1)
    header["scl_slope"], header["scl_inter"] = 2, 1
    if change:
        change(header)
    group = zarr.create_group(path, zarr_format=version)  # type: ignore[arg-type]
    levels = [VALUES.transpose(2, 1, 0)[None, None], VALUES[::2, ::2, ::2].transpose(2, 1, 0)[None, None]]
    raw = np.frombuffer(header.binaryblock, np.uint8)
    for name, values in (("0", levels[0]), ("1", levels[1]), ("nifti", raw)):
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=values.shape)
        array[...] = values
    axes = [{"name": n} for n in "tczyx"]
    image = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}]}
    group.attrs.update({"ome": image} if version == 3 else image)
    return path


def refused(path: Path, words: str) -> ScanError:
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(path)
    error = caught.value
    assert error.exit_code == 65 and path.name in str(error) and error.seen and error.expected and error.hint
    return error


@pytest.mark.parametrize("version", [2, 3])
def test_nifti_zarr(tmp_path: Path, version: int) -> None:
    path = nifti_zarr(tmp_path / "sub-01_T1w.nii.zarr", version)
    scan = read_scan(path)
    assert np.array_equal(scan.voxels, VALUES * 2.0 + 1) and np.allclose(scan.affine, AFFINE)
    assert scan.modality == "T1w" and scan.provenance.header["format"] == f"NIfTI-Zarr, version {version}"
    assert scan.provenance.header["affine from"] == "sform" and not scan.provenance.warnings
    assert read_scan(path, xform="qform").provenance.header["affine from"] == "qform, as asked"
    assert not is_run(path) and claimed_sizes(path)[:3] == SHAPE


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_that_states_its_affine(tmp_path: Path, version: int) -> None:
    names = None if version == 2 else ("x", "y", "z")
    stated = STATED | ({"_ARRAY_DIMENSIONS": ["x", "y", "z"]} if version == 2 else {})
    path = plain(tmp_path / "a.zarr", stated, names=names, zarr_format=version)
    scan = read_scan(path)
    assert np.array_equal(scan.voxels, VALUES) and np.array_equal(scan.affine, AFFINE)
    assert scan.provenance.header["affine from"] == "attributes" and scan.provenance.header["orientation"] == "LIA"
    digest = scan.provenance.sha256
    assert read_scan(path).provenance.sha256 == digest and str(tmp_path) not in str(scan.provenance)
    turned = plain(tmp_path / "b.zarr", stated, VALUES.transpose(2, 0, 1), names and ("z", "x", "y"), zarr_format=3)
    if version == 3:
        assert np.array_equal(read_scan(turned).voxels, VALUES)
        assert read_scan(turned).provenance.sha256 != digest


def test_sharded(tmp_path: Path) -> None:
    path = plain(tmp_path / "s.zarr", shards=(16, 16, 16))
    assert np.array_equal(read_scan(path).voxels, VALUES)


@pytest.mark.parametrize(
    "attributes", [{}, {"affine": AFFINE.tolist()}, {"neuroflamingo": {"affine": AFFINE.tolist()}}]
)
def test_no_orientation(tmp_path: Path, attributes: dict[str, Any]) -> None:
    refused(plain(tmp_path / "a.zarr", attributes), "left and right cannot be told")


def test_ome_zarr_alone_states_no_orientation(tmp_path: Path) -> None:
    path = nifti_zarr(tmp_path / "a.zarr")
    for file in sorted((path / "nifti").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    refused(path, "left and right cannot be told")


def test_items_of_a_store_are_no_scans(tmp_path: Path) -> None:
    store = ScanStore.create(tmp_path / "store", encoder="e", card_digest="0" * 64, spec_digest="0" * 64)
    store.put("0" * 64, [np.zeros((1, 12, 14, 11), np.float32)], ("channel", "x", "y", "z"), {})
    refused(store["0" * 64].folder / "tensor", "left and right cannot be told")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h["dim"].__setitem__(1, 11), "the array that the header describes"),
        (lambda h: h.__setitem__("datatype", 16) or h.__setitem__("bitpix", 32), "the array that the header describes"),
        (lambda h: h.__setitem__("sizeof_hdr", 7), "a NIfTI header of 348 or 540 bytes"),
        (lambda h: (h.__setitem__("sform_code", 0), h.__setitem__("qform_code", 0)), "cannot be told"),
        (lambda h: h.__setitem__("srow_x", -h["srow_x"]), "which side is left"),
    ],
)
def test_headers_that_do_not_fit(tmp_path: Path, change: Callable[[Any], None], words: str) -> None:
    refused(nifti_zarr(tmp_path / "a.zarr", change=change), words)


def edited(path: Path, change: Callable[[dict[str, Any]], Any], file: str = "zarr.json") -> Path:
    said = json.loads((path / file).read_text())
    change(said)
    (path / file).write_text(json.dumps(said))
    return path


CLAIMS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m.update(shape=[60_000] * 3, chunk_grid=grid(64)), "are claimed"),
    (lambda m: m.update(shape=[10**8] * 3), "are claimed"),
    (lambda m: m.update(shape=[800, 800, 800], chunk_grid=grid(1)), "chunks"),
    (lambda m: m.update(chunk_grid=grid(10**6)), "are claimed"),
    (lambda m: m.update(shape=[12, 14]), "chunk sizes for 2 axes"),
    (lambda m: m.update(shape=[12, 14, -11]), "sizes"),
    (lambda m: m.update(shape=[12, 14, 1e3]), "sizes"),
    (lambda m: m.update(shape="abc"), "sizes"),
    (lambda m: m.update(shape=[]), "sizes"),
    (lambda m: m.update(data_type="complex128"), "type complex128"),
    (lambda m: m.update(data_type="object"), "type object"),
    (lambda m: m.update(codecs=[{"name": "numcodecs.pickle"}]), "codec 'numcodecs.pickle'"),
    (lambda m: m.update(storage_transformers=[{"name": "x"}]), "not a plain array"),
    (lambda m: m.update(node_type="thing"), "a zarr array or group"),
    (lambda m: m.update(attributes=[1]), "a zarr array or group"),
    (lambda m: m.pop("chunk_grid"), "KeyError"),
    (lambda m: m["attributes"]["neuroflamingo"].update(affine=[[1, 2], [3, 4]]), "4 x 4"),
    (lambda m: m["attributes"]["neuroflamingo"].update(affine=np.zeros((4, 4)).tolist()), "0 0 0 1"),
    (lambda m: m["attributes"]["neuroflamingo"].update(affine=np.diag([1.0, 1, 0, 1]).tolist()), "usable affine"),
    (lambda m: m.update(dimension_names=["a", "b", "c"]), "names for 3 axes"),
    (lambda m: m.update(dimension_names=["x", "x", "y"]), "names for 3 axes"),
]


def grid(size: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": [size] * 3}}


@pytest.mark.parametrize(("change", "words"), CLAIMS)
def test_metadata_that_cannot_be(tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    path = edited(plain(tmp_path / "a.zarr"), change)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused(path, words)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kilobytes
    assert time.process_time() - began < 2


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    """Version 2 of zarr may name numcodecs' pickle among its filters, which runs what it reads."""
    path = plain(tmp_path / "a.zarr", STATED | {"_ARRAY_DIMENSIONS": ["x", "y", "z"]}, names=None, zarr_format=2)
    edited(path, lambda m: m.update(filters=[{"id": "pickle"}]), ".zarray")
    refused(path, "filters")
    edited(path, lambda m: m.update(filters=None, dtype="|O"), ".zarray")
    refused(path, "type")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, '"a"', "\xff"])
def test_no_metadata(tmp_path: Path, text: str) -> None:
    path = plain(tmp_path / "a.zarr")
    (path / "zarr.json").write_text(text, encoding="latin-1")
    refused(path, "zarr metadata cannot be used")
    (path / "zarr.json").write_text(" " * 2**21)
    refused(path, "zarr metadata cannot be used")


@pytest.mark.parametrize("place", ["c", "c/0/0/0", "zarr.json", "extra"])
def test_links_are_refused(tmp_path: Path, place: str) -> None:
    path = plain(tmp_path / "a.zarr")
    if (path / place).exists():
        (path / place).rename(tmp_path / "aside")
    else:
        (tmp_path / "aside").write_text("secret")
    os.symlink(tmp_path / "aside", path / place)
    refused(path, "holds a link")


@pytest.mark.parametrize("level", ["../b.zarr", "/etc", "0/../../b.zarr", "", 7, ".."])
def test_levels_stay_inside(tmp_path: Path, level: Any) -> None:
    plain(tmp_path / "b.zarr")
    path = nifti_zarr(tmp_path / "a.zarr")
    edited(path, lambda m: m["attributes"]["ome"]["multiscales"][0]["datasets"][0].update(path=level))
    refused(path, "the name of an array inside the folder")


def test_frames_that_do_not_say_their_size(tmp_path: Path) -> None:
    """As Java writes them; one that says too little, and one value too many, are refused."""
    path = plain(tmp_path / "a.zarr")
    chunk = path / "c" / "0" / "0" / "0"
    values = np.ascontiguousarray(VALUES[:8, :8, :8]).tobytes()
    head, block = b"\x28\xb5\x2f\xfd\x00\x58", (len(values) << 3 | 1).to_bytes(3, "little") + values
    chunk.write_bytes(head + block)
    assert np.array_equal(read_scan(path).voxels, VALUES)
    chunk.write_bytes(bytes(Zstd(level=1).encode(values + b"\0")))  # type: ignore[arg-type]
    refused(path, "a chunk would expand to more than it can hold")
    chunk.write_bytes(b"\x28\xb5\x2f\xfd\x60\x00\x00" + block)
    refused(path, "truncated or damaged")
    chunk.write_bytes(b"\x50\x2a\x4d\x18" + (2**21).to_bytes(4, "little") + bytes(2**21) + head + block)
    refused(path, "a chunk would expand to more than it can hold")


@pytest.mark.parametrize("shards", [None, (16, 16, 16)])
@pytest.mark.parametrize("location", ["start", "end"])
def test_claims_of_chunks_in_shards(tmp_path: Path, shards: Any, location: Any) -> None:
    """Found wherever the index lies; what is packed twice is not."""
    if shards:
        shards = ShardsConfigParam(shape=shards, index_location=location)
    path = plain(tmp_path / "a.zarr", values=np.full((24, 24, 24), 7, np.int16), shards=shards)
    whole = read_array_metadata(path, "a.zarr").packing
    assert whole is not None and whole.chunk_bytes == 1024
    check_frames(path, whole, "a.zarr")
    with pytest.raises(ScanError, match="more than it can hold") as caught:
        check_frames(path, replace(whole, chunk_bytes=1023), "a.zarr")
    assert "claim 1,024" in str(caught.value)


@pytest.mark.parametrize("names", ["bytes gzip zstd", "bytes zstd zstd", "sharding_indexed zstd"])
def test_what_is_packed_twice(tmp_path: Path, names: str) -> None:
    path = plain(tmp_path / "a.zarr", shards=(16, 16, 16) if "sharding" in names else None)
    more = [{"name": name, "configuration": {}} for name in names.split()[1:]]
    edited(path, lambda m: m.update(codecs=[m["codecs"][0], *more]))
    refused(path, "packed again")


def test_lost_and_damaged_chunks(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.zarr")
    chunk = path / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    refused(path, "truncated or damaged")
    chunk.unlink()
    scan = read_scan(path)
    assert "1 of 8 chunks are missing" in scan.provenance.warnings[0] and (scan.voxels[:8, :8, :8] == 0).all()


def test_runs_are_not_read_from_zarr(tmp_path: Path) -> None:
    path = plain(tmp_path / "r.zarr", values=np.stack([VALUES] * 3, -1), names=("x", "y", "z", "time"))
    assert is_run(path)
    refused(path, "holds 3 volumes")
    with pytest.raises(ScanError, match="runs are not read from zarr"):
        read_run(path)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="holds no DICOM files"):
        read_scan(tmp_path)
