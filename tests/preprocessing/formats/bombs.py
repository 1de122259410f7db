"""Small files that claim or become much; what each costs is measured by `bomb_costs`.

Each maker writes into a folder and gives the call that must be refused; parents make the files, children open them.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from neuroflamingo_preprocessing import find_inputs, prepare_run, read_run, read_scan
from neuroflamingo_preprocessing.arrays import read_array
from neuroflamingo_preprocessing.functional.parcel_series import RobustScaling
from neuroflamingo_preprocessing.spec import Axis, ScanSpec, Step
from tests.preprocessing.formats.nifti.nifti_by_hand import build, header_of

Call = Callable[[], Any]
AFFINE = np.array([[-5.0, 0, 0, 75], [0, 5, 0, -85], [0, 0, 5, -65], [0, 0, 0, 1]])
SHAPE = (30, 34, 26)
ZEROS = gzip.compress(bytes(2**24), 9)  # 16 MB in some 16 kB

BOMBS: dict[str, Callable[[Path], Call]] = {}


def bomb(make: Callable[[Path], Call]) -> Callable[[Path], Call]:
    BOMBS[make.__name__] = make
    return make


def spec(modality: Any, **sizes: int) -> ScanSpec:
    axes: Any = tuple(Axis(name=name, size=size) for name, size in sizes.items())  # pyright: ignore[reportArgumentType]
    return ScanSpec(modality=modality, axes=axes)


PARCELS = spec("parcels", parcel=6, time=10)
GRID = spec("volume4d", channel=1, x=24, y=28, z=24, time=20).model_copy(
    update={"spacing_mm": (8.0, 8.0, 8.0), "origin_mm": (-92.0, -124.0, -72.0), "steps": (Step.named("to_grid"),)}
)


# --- NIfTI ---------------------------------------------------------------------------------------------------------


def nifti(version: int = 1, **fields: Any) -> bytes:
    """51 kB, good but for the fields given."""
    values = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)
    good = build(values, AFFINE, version=version, forms="sform", quaternion=((0, 0, 0), 1))
    header = header_of(good).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + good[header.dtype.itemsize :]


def in_mm(size: float) -> dict[str, Any]:
    """A head's width for large numbers of voxels."""
    affine = np.diag([size, size, size])
    return {"srow": np.hstack([affine, np.zeros((3, 1))]).ravel(), "pixdim": [1, size, size, size, 0, 0, 0, 0]}


def scan(folder: Path, content: bytes, name: str = "head.nii", tail: int = 0) -> Call:
    """A file to be read as a scan; `tail` gzip members of 16 MB of zeros follow."""
    packed = igzip.compress(content, 1) if name.endswith(".gz") else content
    with (folder / name).open("wb") as stream:
        stream.write(packed)
        for _ in range(tail):
            stream.write(ZEROS)
    return partial(read_scan, folder / name)


@bomb
def nifti_claims_2_tb(folder: Path) -> Call:
    return scan(folder, nifti(dim=[3, 10_000, 10_000, 10_000, 1, 1, 1, 1], **in_mm(0.02)))


@bomb
def nifti_gz_claims_4_gb(folder: Path) -> Call:
    return scan(folder, nifti(dim=[3, 800, 800, 800, 1, 1, 1, 1], datatype=64, bitpix=64, **in_mm(0.25)), "head.nii.gz")


@bomb
def nifti_gz_becomes_10_gb(folder: Path) -> Call:
    return scan(folder, nifti(), "head.nii.gz", tail=640)


@bomb
def nifti_gz_claims_1_gb_of_zeros_and_has_them(folder: Path) -> Call:
    claim = nifti(dim=[3, 512, 512, 512, 1, 1, 1, 1], datatype=64, bitpix=64, **in_mm(0.3))
    return scan(folder, claim[:352], "head.nii.gz", tail=64)


@bomb
def gzip_in_gzip_in_gzip(folder: Path) -> Call:
    return scan(folder, igzip.compress(ZEROS * 64, 3), "head.nii.gz")


@bomb
def header_offset_behind_10_gb(folder: Path) -> Call:
    return scan(folder, nifti(vox_offset=2.0**33), "head.nii.gz", tail=640)


@bomb
def header_offset_of_16_mb_in_a_bomb(folder: Path) -> Call:
    return scan(folder, nifti(vox_offset=2.0**24), "head.nii.gz", tail=640)


for _name, _fields in {
    "dims_overflow_64_bits": {"dim": [3, 2**32, 2**32, 2, 1, 1, 1, 1]},
    "dims_overflow_to_a_small_number": {"dim": [3, 2**32 + 1, 2**32, 2**32, 1, 1, 1, 1]},
    "dims_overflow_to_less_than_nothing": {"dim": [3, 2**62, 3, 3, 1, 1, 1, 1]},
    "dims_of_seven_axes": {"dim": [7, 30, 34, 26, 32767, 32767, 32767, 32767]},
    "offset_beyond_all_disks": {"vox_offset": 2**62},
}.items():
    BOMBS[_name] = partial(lambda fields, folder: scan(folder, nifti(2, **fields)), _fields)
BOMBS["offset_of_no_number"] = lambda folder: scan(folder, nifti(vox_offset=np.float32(1e30)))


@bomb
def extension_of_2_gb(folder: Path) -> Call:
    raw = nifti(vox_offset=352 + 32)
    extension = struct.pack("<ii", 2**31 - 16, 6) + bytes(24)
    return scan(folder, raw[:348] + b"\1\0\0\0" + extension + raw[352:])


def run(folder: Path, frames: int, name: str = "run.nii") -> Call:
    raw = nifti(2, dim=[4, *SHAPE, frames, 1, 1, 1], pixdim=[1, 5, 5, 5, 2, 0, 0, 0], xyzt_units=10)
    (folder / name).write_bytes(igzip.compress(raw, 1) if name.endswith(".gz") else raw)
    return lambda: prepare_run(read_run(folder / name), GRID)


BOMBS["run_of_a_million_million_frames"] = lambda folder: run(folder, 2**40)
BOMBS["run_gz_of_a_million_frames"] = lambda folder: run(folder, 10**6, "run.nii.gz")


def sidecar(folder: Path, write: Callable[[Path], Any]) -> Call:
    call = run(folder, 2)
    raw = nifti(2, dim=[4, *SHAPE, 2, 1, 1, 1], pixdim=[1, 5, 5, 5, 2, 0, 0, 0], xyzt_units=10)
    (folder / "run.nii").write_bytes(raw + raw[544:])
    write(folder / "run.json")
    return call


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(size)
    return path


DEEP = "[" * 900_000
BOMBS["sidecar_of_10_gb"] = lambda folder: sidecar(folder, lambda path: sparse(path, 10**10))
BOMBS["sidecar_nested"] = lambda folder: sidecar(folder, lambda path: path.write_text('{"RepetitionTime": ' + DEEP))
BOMBS["sidecar_number"] = lambda folder: sidecar(
    folder, lambda path: path.write_text('{"RepetitionTime": 1' + "0" * 4000 + "}")
)


# --- zarr scans ----------------------------------------------------------------------------------------------------


def frame_of_zeros(size: int, declared: int | None) -> bytes:
    """A zstandard frame by hand (RFC 8878): blocks of one byte 128 kB times; its header may say the size, or lie."""
    head = b"\x28\xb5\x2f\xfd" + (b"\x00\x58" if declared is None else b"\xc0\x58" + struct.pack("<Q", declared))
    count = size // 2**17
    return head + b"".join((2**17 << 3 | 2 | (n == count - 1)).to_bytes(3, "little") + b"\0" for n in range(count))


def zarr_scan(folder: Path, content: bytes | None, *, sharded: bool = False, change: Any = None) -> Call:
    """A small scan that states its affine, one of its chunks replaced; without content all are gone."""
    import zarr

    how: Any = {"chunks": (16, 16, 16), "shards": (32, 48, 32) if sharded else None}
    array = zarr.create_array(folder / "head.zarr", shape=SHAPE, dtype="int16", dimension_names=["x", "y", "z"], **how)
    array[...] = np.random.default_rng(0).integers(1, 99, SHAPE)
    array.attrs["neuroflamingo"] = {"affine": AFFINE.tolist(), "world": "RAS+ mm"}
    place = folder / "head.zarr" / "c" / "0" / "0" / "0"
    if content is None:
        shutil.rmtree(folder / "head.zarr" / "c")
    else:
        place.write_bytes(content)
    if change:
        told = json.loads((folder / "head.zarr" / "zarr.json").read_text())
        change(told)
        (folder / "head.zarr" / "zarr.json").write_text(json.dumps(told))
    return partial(read_scan, folder / "head.zarr")


GB = 2**30
ONE = frame_of_zeros(GB, GB)
FIRST = b"\x28\xb5\x2f\xfd\x20\x01\x09\x00\x00A"  # a frame of one byte, which says so
SKIPPED = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
INDEX = struct.pack("<QQ", 0, len(ONE)) + b"\xff" * 16 * 11


@bomb
def zarr_scan_in_a_shard(folder: Path) -> Call:
    import google_crc32c

    return zarr_scan(folder, ONE + INDEX + google_crc32c.value(INDEX).to_bytes(4, "little"), sharded=True)


@bomb
def zarr_scan_of_version_2(folder: Path) -> Call:
    from numcodecs import Zstd

    how = {"dtype": "<i2", "shape": SHAPE, "chunks": SHAPE, "compressor": Zstd(level=1).get_config(), "filters": None}
    head = {"zarr_format": 2, "fill_value": 0, "order": "C", **how}
    said = {"neuroflamingo": {"affine": AFFINE.tolist(), "world": "RAS+ mm"}, "_ARRAY_DIMENSIONS": list("xyz")}
    (folder / "head.zarr").mkdir()
    for name, content in ((".zarray", head), (".zattrs", said)):
        (folder / "head.zarr" / name).write_text(json.dumps(content))
    (folder / "head.zarr" / "0.0.0").write_bytes(ONE)
    return partial(read_scan, folder / "head.zarr")


def larger(told: dict[str, Any], shape: int, chunks: int) -> None:
    told["chunk_grid"]["configuration"]["chunk_shape"] = [chunks] * 3
    told["shape"], told["data_type"] = [shape] * 3, "float64"
    told["attributes"]["neuroflamingo"]["affine"] = np.diag([150 / shape] * 3 + [1.0]).tolist()


def claims_larger(shape: int, chunks: int) -> Callable[[dict[str, Any]], None]:
    return lambda told: larger(told, shape, chunks)


for _name, _content in {
    "becomes_1_gb": ONE,
    "becomes_1_gb_and_does_not_say": frame_of_zeros(GB, None),
    "in_a_second_frame": FIRST + ONE,
    "behind_what_is_skipped": SKIPPED + frame_of_zeros(GB, None),
}.items():
    BOMBS[f"zarr_scan_{_name}"] = partial(lambda content, folder: zarr_scan(folder, content), _content)
BOMBS["zarr_scan_of_one_huge_chunk"] = lambda folder: zarr_scan(folder, ONE, change=claims_larger(30, 512))
BOMBS["zarr_scan_of_512_mb_without_chunks"] = lambda folder: zarr_scan(folder, None, change=claims_larger(400, 400))


# --- arrays and tables ---------------------------------------------------------------------------------------------


def npy(text: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text.encode() + body


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 10000000)}"
NESTED = "{'descr': '<f8', 'fortran_order': False, 'shape': " + "-" * 8000 + "1}"
UNCLOSED = "{'descr': " + "[" * 3000


def array(folder: Path, name: str, content: bytes) -> Call:
    (folder / name).write_bytes(content)
    return partial(read_array, folder / name, PARCELS)


BOMBS["npy_claims_800_tb"] = lambda folder: array(folder, "a.npy", npy(HUGE, bytes(51_000)))
BOMBS["npy_header_nested"] = lambda folder: array(folder, "a.npy", npy(NESTED))
BOMBS["npy_header_unclosed"] = lambda folder: array(folder, "a.npy", npy(UNCLOSED))
BOMBS["npy_header_of_4_gb"] = lambda folder: array(folder, "a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'")


def zeros_in_zip(folder: Path, name: str, entry: str, megabytes: int) -> Path:
    body = npy(HUGE.replace("10000000, 10000000", f"{megabytes}, 131072"))
    deflated = zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with deflated as archive, archive.open(entry, "w", force_zip64=True) as stream:
        stream.write(body)
        for _ in range(megabytes):
            stream.write(bytes(2**20))
    return folder / name


@bomb
def npz_becomes_300_mb(folder: Path) -> Call:
    return partial(read_array, zeros_in_zip(folder, "a.npz", "data.npy", 300), PARCELS)


@bomb
def npz_with_a_lying_directory(folder: Path) -> Call:
    """The central directory says 100 bytes, the stream is 300 MB."""
    path = zeros_in_zip(folder, "a.npz", "data.npy", 300)
    raw = bytearray(path.read_bytes())
    place = raw.rindex(b"PK\x01\x02")
    raw[place + 24 : place + 28] = struct.pack("<I", 100)
    path.write_bytes(raw)
    return partial(read_array, path, PARCELS)


@bomb
def npz_with_one_member_a_thousand_times(folder: Path) -> Call:
    path = zeros_in_zip(folder, "a.npz", "data0000.npy", 8)
    raw = path.read_bytes()
    start, end = raw.rindex(b"PK\x01\x02"), raw.rindex(b"PK\x05\x06")
    entries = [raw[start:end].replace(b"data0000", f"data{i:04}".encode()) for i in range(1000)]
    last = bytearray(raw[end:])
    last[8:16] = struct.pack("<HHI", 1000, 1000, len(b"".join(entries)))
    path.write_bytes(raw[:start] + b"".join(entries) + last)
    return partial(read_array, path, PARCELS)


@bomb
def table_of_10_gb(folder: Path) -> Call:
    return partial(read_array, sparse(folder / "a.tsv", 10**10, b"1\t2\n"), PARCELS)


@bomb
def table_of_many_cells(folder: Path) -> Call:
    (folder / "a.tsv").write_bytes(b"1\t" * 2**24 + b"1\n")
    return partial(read_array, folder / "a.tsv", PARCELS)


@bomb
def table_of_32_mb_of_another_shape(folder: Path) -> Call:
    (folder / "a.tsv").write_bytes((b"1.234567\t" * 999 + b"1\n") * (2**25 // 8993))
    return partial(read_array, folder / "a.tsv", PARCELS)


# --- manifests and scalings ----------------------------------------------------------------------------------------


@bomb
def manifest_of_one_line_of_1_gb(folder: Path) -> Call:
    return partial(find_inputs, sparse(folder / "a.jsonl", 2**30, b'{"scan": "'), PARCELS)


@bomb
def csv_of_one_line_of_1_gb(folder: Path) -> Call:
    return partial(find_inputs, sparse(folder / "a.csv", 2**30, b'scan,repetition_time\n"'), PARCELS)


@bomb
def csv_of_a_quoted_field_without_end(folder: Path) -> Call:
    with (folder / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerow(["scan"])
        stream.write('"' + ("head.nii\n" * 10**6))
    return partial(find_inputs, folder / "a.csv", PARCELS)


@bomb
def manifest_nested(folder: Path) -> Call:
    (folder / "a.jsonl").write_text('{"scan": ' + DEEP)
    return partial(find_inputs, folder / "a.jsonl", PARCELS)


@bomb
def manifest_number(folder: Path) -> Call:
    (folder / "a.jsonl").write_text('{"scan": "a.nii", "repetition_time": 1' + "0" * 4000 + "}\n")
    return partial(find_inputs, folder / "a.jsonl", PARCELS)


@bomb
def scaling_of_10_gb(folder: Path) -> Call:
    return partial(RobustScaling.load, sparse(folder / "scaling.json", 10**10, b"{"))


@bomb
def scaling_nested(folder: Path) -> Call:
    (folder / "scaling.json").write_text(DEEP)
    return partial(RobustScaling.load, folder / "scaling.json")
