"""Ready arrays: the right ones come through as they are, every other one is refused by name."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroflamingo_preprocessing.arrays import is_array_file, read_array
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.spec import Axis, RepetitionTime, ScanSpec

RATE = RepetitionTime(seconds=0.735, tolerance=0.1, policy="resample")


def spec(modality: Any, policy: RepetitionTime | None = None, **sizes: int) -> ScanSpec:
    axes: Any = tuple(Axis(name=name, size=size) for name, size in sizes.items())  # pyright: ignore[reportArgumentType]
    return ScanSpec(modality=modality, axes=axes, repetition_time=policy)


PARCELS = spec("parcels", parcel=6, time=10)
RUN = spec("volume4d", channel=1, x=4, y=5, z=4, time=3)
VOLUME = spec("volume3d", channel=1, x=4, y=5, z=4)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(values: Any, name: str = "a.npy", **more: Any) -> str:
    if name.endswith(".npz"):
        np.savez(name, data=values, **more)
    elif name.endswith(".tsv"):
        np.savetxt(name, values, delimiter="\t", **more)
    else:
        np.save(name, values)
    return name


def series(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def test_arrays_come_through_as_they_are() -> None:
    values = series(6, 10)
    for name in ("a.npy", "a.npz"):
        ready = read_array(saved(values, name), PARCELS)
        assert ready.tensor.dtype == np.float32 and np.array_equal(ready.tensor, values.astype(np.float32))
        assert ready.bytes == Path(name).stat().st_size and len(ready.sha256) == 64 and ready.warnings == ()
    assert np.array_equal(read_array(saved(np.asfortranarray(values)), PARCELS).tensor, values.astype(np.float32))
    assert read_array(saved(series(4, 5, 4, 3).astype(np.int16)), RUN).tensor.shape == (1, 4, 5, 4, 3)
    assert read_array(saved(series(1, 4, 5, 4)), VOLUME).tensor.shape == (1, 4, 5, 4)


@pytest.mark.parametrize("header", ["", "\t".join(f"parcel_{i}" for i in range(6))])
def test_tables_have_a_line_for_each_frame(header: str) -> None:
    values = series(10, 6)
    ready = read_array(saved(values, "a.tsv", header=header, comments=""), PARCELS)
    np.testing.assert_allclose(ready.tensor, values.T, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "asked", "says"),
    [
        ((5, 10), PARCELS, "parcel=6"),
        ((6, 11), PARCELS, "time=10"),
        ((5, 4, 1), VOLUME, "3 axes"),
        ((4, 5, 4, 1), VOLUME, "reverse order"),
        ((6,), PARCELS, "1 axes"),
        ((4, 5, 4), RUN, "3 axes"),
        ((1, 4, 5, 4), RUN, "4 axes"),
        ((4, 5, 4, 3), VOLUME, "4 axes"),
        ((2, 4, 5, 4), VOLUME, "channel=1"),
        ((4, 5, 5), VOLUME, "z=4"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], asked: ScanSpec, says: str) -> None:
    with pytest.raises(ScanError, match=says) as caught:
        read_array(saved(series(*shape)), asked)
    assert caught.value.exit_code == 65


def test_tables_that_are_none() -> None:
    for text in ("", "a\tb\n", "1\t2\n3\n", "1\tn/a\n", "\xff"):
        Path("a.tsv").write_text(text, encoding="latin-1")
        with pytest.raises(ScanError):
            read_array("a.tsv", PARCELS)
    with pytest.raises(ScanError, match="a table of parcels, but"):
        read_array(saved(series(10, 6), "a.tsv"), RUN)


class Attack:
    def __reduce__(self) -> Any:
        return open, ("ran", "w")


def test_pickles_are_never_read() -> None:
    objects = np.array([Attack()], dtype=object)
    np.save("a.npy", objects, allow_pickle=True)
    np.savez("b.npz", data=objects)
    Path("ran").unlink(missing_ok=True)
    Path("c.npy").write_bytes(pickle.dumps(Attack()))
    for name in ("a.npy", "b.npz", "c.npy"):
        with pytest.raises(ScanError):
            read_array(name, PARCELS)
    assert not Path("ran").exists()


def test_damaged_files_and_headers_that_claim_too_much() -> None:
    whole = Path(saved(series(6, 10))).read_bytes()
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    for content in (b"", b"hello", whole[:60], whole[:-9], buffer.getvalue()):
        Path("a.npy").write_bytes(content)
        with pytest.raises(ScanError) as caught:
            read_array("a.npy", PARCELS)
        assert caught.value.exit_code == 65
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", b"\0" * 10**8)
    with pytest.raises(ScanError, match="claim to be"):
        read_array("a.npz", PARCELS)


def test_numbers() -> None:
    for bad in (float("nan"), float("inf"), 1e300):
        values = series(6, 10)
        values[2, 3] = bad
        with pytest.raises(ScanError, match="not finite"):
            read_array(saved(values), PARCELS)
    with pytest.raises(ScanError, match="no numbers"):
        read_array(saved(np.full((6, 10), "x")), PARCELS)
    np.savez("two.npz", left=series(6, 10), right=series(6, 10))
    with pytest.raises(ScanError, match="left, right"):
        read_array("two.npz", PARCELS)


def test_repetition_times() -> None:
    asked = spec("parcels", RATE, parcel=6, time=10)
    name = saved(series(6, 10))
    with pytest.raises(UsageError, match=r"--tr 0\.735"):
        read_array(name, asked)
    assert read_array(name, asked, 0.72).repetition_time == 0.72
    assert read_array(saved(series(6, 10), "a.npz", repetition_time=0.8), asked).repetition_time == 0.8
    with pytest.raises(ScanError, match=r"resample it to 0\.735"):
        read_array(name, asked, 2.0)
    lenient = spec("parcels", RATE.model_copy(update={"policy": "as_is"}), parcel=6, time=10)
    assert "was trained on" in read_array(name, lenient, 2.0).warnings[0]
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError):
            read_array(name, asked, wrong)
    assert read_array(name, PARCELS).repetition_time is None


def test_paths() -> None:
    with pytest.raises(NotFoundError):
        read_array("gone.npy", PARCELS)
    assert is_array_file("A.NPY") and not is_array_file("a.nii.gz")


@pytest.mark.parametrize("name", ["series.mat", "series.txt", "series.1D", "series.xlsx", "series.pkl"])
def test_tables_of_other_programs_are_told_what_is_read(name: str, tmp_path: Path) -> None:
    from neuroflamingo_encoders.registry import encoder_card
    from neuroflamingo_preprocessing.preparation import prepare

    (tmp_path / name).write_text("1 2 3\n4 5 6\n")
    spec = encoder_card("fc-baseline").scan
    for read in (read_array, prepare):
        with pytest.raises(ScanError, match="parcel series are not read from") as caught:
            read(tmp_path / name, spec)
        assert ".tsv, .csv, .ptseries.nii" in str(caught.value) and "numpy.save" in str(caught.value.hint)


def test_a_column_of_line_numbers_without_a_name(tmp_path: Path) -> None:
    """As pandas' `DataFrame.to_csv` writes it."""
    from neuroflamingo_encoders.registry import encoder_card

    rows = ["," + ",".join(map(str, range(424)))]
    rows += [f"{n}," + ",".join(str(n + k / 7) for k in range(424)) for n in range(9)]
    (tmp_path / "frame.csv").write_text("\n".join(rows))
    with pytest.raises(ScanError, match="one line or column more") as caught:
        read_array(tmp_path / "frame.csv", encoder_card("fc-baseline").scan)
    assert "index=False" in str(caught.value.hint)
