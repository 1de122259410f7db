"""Parcel series from tables and CIFTI: which axis is which, names and repetition time kept, nothing guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2.cifti2 import Cifti2Image
from nibabel.cifti2.cifti2_axes import BrainModelAxis, LabelAxis, ParcelsAxis, ScalarAxis, SeriesAxis

from neuroflamingo_preprocessing.arrays import is_array_file, read_array
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.functional.cifti_dense import read_dense_atlas
from neuroflamingo_preprocessing.inputs import find_inputs
from neuroflamingo_preprocessing.read import read_run, read_scan
from neuroflamingo_preprocessing.spec import Axis, RepetitionTime, ScanSpec

NAMES = tuple(f"region {n}" for n in "abcdef")
SERIES = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
"""Parcels, then frames."""


def spec(frames: int | None = 10, policy: RepetitionTime | None = None, parcels: int = 6) -> ScanSpec:
    time = Axis(name="time", size=frames) if frames else Axis(name="time", minimum=2)
    return ScanSpec(modality="parcels", axes=(Axis(name="parcel", size=parcels), time), repetition_time=policy)


VOLUME = ScanSpec(modality="volume3d", axes=tuple(Axis(name=name, size=8) for name in ("x", "y", "z")))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(name: str, values: np.ndarray, columns: Any = None, lines: Any = None) -> str:
    separator = "\t" if name.endswith("tsv") else ","
    text = []
    if columns is not None:
        text.append(separator.join(([""] if lines is not None else []) + list(columns)))
    for number, row in enumerate(values):
        text.append(separator.join(([lines[number]] if lines is not None else []) + [repr(float(v)) for v in row]))
    Path(name).write_text("\n".join(text) + "\n", encoding="utf-8")
    return name


def cifti(name: str = "a.ptseries.nii", values: np.ndarray = SERIES.T, axes: Any = None, **how: Any) -> str:
    if axes is None:
        axes = (SeriesAxis(0, how.get("step", 0.72), len(values), how.get("unit", "SECOND")), parcels_axis())
    Cifti2Image(values.astype(how.get("dtype", np.float32)), header=axes).to_filename(name)
    return name


def parcels_axis() -> ParcelsAxis:
    voxels = [np.array([[n, 0, 0]]) for n in range(6)]
    return ParcelsAxis(NAMES, voxels, [{}] * 6, affine=np.eye(4), volume_shape=(8, 8, 8))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize("columns", [None, NAMES])
def test_lines_of_frames(name: str, columns: Any) -> None:
    found = read_array(table(name, SERIES.T, columns), spec())
    assert np.array_equal(found.tensor, SERIES) and found.rows == "frames" and found.names == (columns or ())
    record = found.record()["parcels"]
    assert record["count"] == 6 and record["lines_of_the_file"] == "frames"
    assert record["order"] == (list(NAMES) if columns else "as in the file, which does not name them")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize("columns", [None, [f"t{n}" for n in range(10)]])
def test_lines_of_parcels(name: str, columns: Any) -> None:
    found = read_array(table(name, SERIES, columns, NAMES), spec())
    assert np.array_equal(found.tensor, SERIES) and found.rows == "parcels" and found.names == NAMES


def test_numbers_over_columns_are_no_frame() -> None:
    for first in (0, 1):
        found = read_array(table("a.csv", SERIES.T, [str(n + first) for n in range(6)]), spec(None))
        assert np.array_equal(found.tensor, SERIES) and found.names[0] == str(first)


def test_quotes_and_byte_order_marks() -> None:
    names = ['"region, left"', *NAMES[1:]]
    raw = table("a.csv", SERIES.T, names)
    Path(raw).write_bytes(b"\xef\xbb\xbf" + Path(raw).read_bytes().replace(b"\n", b"\r\n"))
    found = read_array(raw, spec())
    assert np.array_equal(found.tensor, SERIES) and found.names[0] == "region, left"


@pytest.mark.parametrize("ending", ["npy", "npz", "csv"])
def test_arrays_either_way(ending: str) -> None:
    for values, rows in ((SERIES, "parcels"), (SERIES.T, "frames")):
        name = f"a.{ending}"
        if ending == "csv":
            table(name, values)
        elif ending == "npy":
            np.save(name, values)
        else:
            np.savez(name, data=values, repetition_time=0.8)
        found = read_array(name, spec())
        assert np.array_equal(found.tensor, SERIES) and found.rows == rows
        assert found.repetition_time == (0.8 if ending == "npz" else None)


@pytest.mark.parametrize("frames", [6, None])
def test_where_both_ways_fit_the_user_says(frames: int | None) -> None:
    square = SERIES[:, :6]
    table("a.csv", square)
    np.save("a.npy", square)
    for name in ("a.csv", "a.npy"):
        with pytest.raises(ScanError, match="may be the parcels") as caught:
            read_array(name, spec(frames))
        assert "--rows frames" in str(caught.value)
        assert np.array_equal(read_array(name, spec(frames), rows="parcels").tensor, square)
        assert np.array_equal(read_array(name, spec(frames), rows="frames").tensor, square.T)


def test_what_fits_neither_way() -> None:
    np.save("a.npy", SERIES[:5])
    with pytest.raises(ScanError, match="does not have the shape"):
        read_array("a.npy", spec(None))
    with pytest.raises(ScanError, match="does not have the shape"):
        read_array(table("a.csv", SERIES.T), spec(), rows="parcels")
    counted = np.column_stack([np.arange(10.0), SERIES.T])
    with pytest.raises(ScanError, match="index=False"):
        read_array(table("a.csv", counted, ["", *NAMES]), spec())
    for bad in ("1,2\n3\n", "a,b\n", "1,n/a\n2,3\n", "\n", '"1,2\n3,4\n'):
        Path("a.csv").write_text(bad)
        with pytest.raises(ScanError):
            read_array("a.csv", spec(None))
    with pytest.raises(UsageError, match="parcel series only"):
        np.save("v.npy", np.zeros((8, 8, 8)))
        read_array("v.npy", VOLUME, rows="frames")


def test_cifti_parcel_series() -> None:
    assert is_array_file("sub-01_Atlas.ptseries.nii")
    found = read_array(cifti(), spec())
    assert np.array_equal(found.tensor, SERIES) and found.repetition_time == 0.72 and found.names == NAMES
    assert found.kind == "CIFTI parcel series" and found.rows == "parcels" and found.warnings == ()
    turned = cifti("b.ptseries.nii", SERIES, (parcels_axis(), SeriesAxis(0, 0.72, 10, "SECOND")))
    assert np.array_equal(read_array(turned, spec()).tensor, SERIES)
    square = cifti("c.ptseries.nii", SERIES.T[:6])
    assert np.array_equal(read_array(square, spec(6)).tensor, SERIES[:, :6])  # its axes say which is which
    with pytest.raises(ScanError, match="itself states"):
        read_array(square, spec(6), rows="frames")


def test_cifti_repetition_times() -> None:
    asked = spec(policy=RepetitionTime(seconds=0.72, tolerance=0.01, policy="refuse"))
    assert read_array(cifti(), asked).repetition_time == 0.72
    found = read_array(cifti(step=2.0), asked, 0.72)
    assert found.repetition_time == 0.72 and "the file says 2 s" in found.warnings[0]
    with pytest.raises(ScanError, match="does not have the encoder's repetition time"):
        read_array(cifti(step=2.0), asked)
    faults: tuple[Any, ...] = ({"unit": "HERTZ"}, {"step": 0.0}, {"step": -1.0})
    for bad in faults:
        with pytest.raises(ScanError, match="not a usable CIFTI parcel series"):
            read_array(cifti(**bad), asked)


def brain() -> BrainModelAxis:
    return BrainModelAxis.from_mask(np.ones((2, 3, 1), bool), name="thalamus_left", affine=np.eye(4))


def test_other_cifti_files() -> None:
    dense = cifti("a.dtseries.nii", SERIES.T, (SeriesAxis(0, 0.72, 10, "SECOND"), brain()))
    with pytest.raises(ScanError, match="dense series") as caught:
        read_array(dense, spec())
    assert "--atlas FILE.dlabel.nii" in str(caught.value)
    scalars = cifti("b.ptseries.nii", SERIES.T, (ScalarAxis([f"m{n}" for n in range(10)]), parcels_axis()))
    with pytest.raises(ScanError, match="not a usable CIFTI parcel series"):
        read_array(scalars, spec())
    with pytest.raises(ScanError, match="a table of parcels, but"):
        read_array(cifti(), VOLUME)


@pytest.mark.parametrize("call", [read_scan, read_run])
def test_cifti_is_no_volume(call: Any) -> None:
    with pytest.raises(ScanError, match="not a volume"):
        call(cifti())


def test_damaged_cifti() -> None:
    whole = Path(cifti()).read_bytes()
    start = int(nib.Nifti2Header(whole[:540], check=False)["vox_offset"])  # type: ignore[attr-defined]
    xml = bytearray(whole)
    xml[600:620] = b"<!DOCTYPE x [<!ENTIT"
    longer = bytearray(whole)
    longer[16 + 6 * 8 : 16 + 7 * 8] = (10**12).to_bytes(8, "little")
    for content in (b"", whole[:300], whole[:-4], whole + b"1234", whole[:start], bytes(xml), bytes(longer)):
        Path("a.ptseries.nii").write_bytes(content)
        with pytest.raises(ScanError, match="not a usable CIFTI parcel series") as caught:
            read_array("a.ptseries.nii", spec())
        assert caught.value.exit_code == 65


def test_a_csv_is_a_series_for_encoders_of_parcels_and_else_a_manifest() -> None:
    table("series.csv", SERIES.T, NAMES)
    (one,) = find_inputs("series.csv", spec())
    assert one.path.name == "series.csv"
    with pytest.raises(ScanError, match="faults"):
        find_inputs("series.csv", VOLUME)
    Path("list.csv").write_text("scan,repetition_time\nseries.csv,0.72\n")
    (one,) = find_inputs("list.csv", spec())
    assert one.path.name == "series.csv" and one.repetition_time == 0.72


def test_dense_series_through_a_label_file() -> None:
    """Points are matched by structure and vertex or voxel: the label file has fewer, in another order."""
    surface = BrainModelAxis.from_surface(np.arange(0, 40, 2), 50, name="cortex_left")
    series_axis = surface + brain()
    dense = np.random.default_rng(1).normal(100, 5, (10, 26)).astype(np.float32)
    cifti("a.dtseries.nii", dense, (SeriesAxis(0, 0.72, 10, "SECOND"), series_axis))
    order = np.random.default_rng(2).permutation(26)[:24]
    keys = np.array([1 + n % 7 for n in range(24)])  # 1 to 7, of which 4 is no parcel here
    keys[keys == 4] = 0
    table = {0: ("none", (0, 0, 0, 0)), **{k: (f"area {k}", (1, 0, 0, 1)) for k in range(1, 8)}}
    cifti("p.dlabel.nii", keys[None], (LabelAxis(["parcels"], [table]), series_axis[order]))
    atlas = read_dense_atlas("p.dlabel.nii", parcels=6)
    assert atlas.values.tolist() == [1, 2, 3, 5, 6, 7]
    found = read_array("a.dtseries.nii", spec(), atlas=atlas)
    wanted = np.stack([dense[:, order[keys == k]].mean(axis=1) for k in (1, 2, 3, 5, 6, 7)])
    np.testing.assert_allclose(found.tensor, wanted, rtol=1e-6)
    assert found.repetition_time == 0.72 and found.names[3] == "area 5" and "parcellated" in found.kind
    with pytest.raises(ScanError, match="not the parcellation"):
        read_dense_atlas("p.dlabel.nii", parcels=7)
    other = BrainModelAxis.from_surface(np.arange(1, 41, 2), 50, name="cortex_left")
    cifti("b.dtseries.nii", dense[:, :20], (SeriesAxis(0, 0.72, 10, "SECOND"), other))
    with pytest.raises(ScanError, match="does not hold the grayordinates"):
        read_array("b.dtseries.nii", spec(), atlas=atlas)
    with pytest.raises(ScanError, match="not a usable CIFTI"):
        read_dense_atlas("a.dtseries.nii")
    with pytest.raises(NotFoundError):
        read_dense_atlas("gone.dlabel.nii")
