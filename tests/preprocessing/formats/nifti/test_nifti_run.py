"""Runs: time is read once and never guessed in silence, voxels come in blocks, damaged files are refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.read import read_run
from tests.preprocessing.formats.nifti.run_files import AFFINE, SHAPE, write


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
@pytest.mark.parametrize("frames", [None, 1, 3, 100])
def test_blocks_hold_what_nibabel_reads(tmp_path: Path, name: str, frames: int | None) -> None:
    path = write(tmp_path / name, slope=(0.5, 3.0))
    run = read_run(path)
    assert (run.shape, run.frames, run.repetition_time) == (SHAPE, 7, 2.0) and np.array_equal(run.affine, AFFINE)
    blocks = list(run.blocks(frames))
    assert [first for first, _ in blocks] == list(range(0, 7, frames or 7))
    whole = np.concatenate([block for _, block in blocks], axis=-1)
    assert whole.dtype == np.float32 and np.array_equal(whole, nib.load(path).get_fdata(dtype=np.float32))
    assert np.array_equal(next(run.blocks(2))[1], whole[..., :2])  # a second reading begins anew


def test_values_that_are_no_numbers_are_nan(tmp_path: Path) -> None:
    voxels = np.ones((*SHAPE, 3), np.float32)
    voxels[1, 2, 3] = [np.nan, np.inf, -np.inf]
    run = read_run(write(tmp_path / "run.nii", voxels=voxels))
    ((_, block),) = run.blocks()
    assert np.isnan(block[1, 2, 3]).all() and int(np.isnan(block).sum()) == 3


NS, PER = {"sec": 1.0, "msec": 1e3, "usec": 1e6}, {"fast": 0.72, "usual": 2.0}
NEVER = "impossible repetition time"

# stated in the header (value, unit), in the sidecar, by the user -> seconds, or words of the refusal
TIMES: list[tuple[float, str, float | None, float | None, Any]] = [
    # every unit x both times: alone, with a sidecar that agrees, agrees within rounding, is a thousand times too large,
    # says another time, which is taken; and the user, who decides
    *((t * n, unit, None, None, t) for t in PER.values() for unit, n in NS.items()),
    *((t * n, unit, t, None, t) for t in PER.values() for unit, n in NS.items()),
    *((t * n, unit, t + 0.003, None, t + 0.003) for t in PER.values() for unit, n in NS.items()),
    *((t * n, unit, t * 1000, None, NEVER) for t in PER.values() for unit, n in NS.items()),
    *((t * n, unit, t + 0.5, None, t + 0.5) for t in PER.values() for unit, n in NS.items()),
    *((t * n, unit, t + 0.5, t + 0.5, t + 0.5) for t in PER.values() for unit, n in NS.items()),
    *((t * n, unit, None, 2.5, 2.5) for t in PER.values() for unit, n in NS.items()),
    # milliseconds in a header that says seconds, and the other way round
    (800.0, "sec", 0.8, None, 0.8),
    (800.0, "sec", 0.8, 0.8, 0.8),
    (800.0, "sec", None, None, NEVER),
    (2.0, "msec", None, None, NEVER),
    (2.0, "msec", 2.0, None, 2.0),
    (2.0, "msec", None, 2.0, 2.0),
    # no unit, or one that is none of time
    (2.0, "none", None, None, 2.0),
    (2000.0, "none", None, None, 2.0),
    (2.0, "none", 2.0, None, 2.0),
    (2000.0, "none", 2.0, None, 2.0),
    (2.0, "none", 0.8, None, 0.8),
    (2.0, "hz", None, None, 2.0),
    (2.0, "hz", None, 0.8, 0.8),
    # the header leaves it open
    (0.0, "sec", None, None, None),
    (0.0, "none", None, None, None),
    (0.0, "sec", 2.2, None, 2.2),
    (0.0, "sec", None, 2.2, 2.2),
    (float("nan"), "sec", None, None, None),
    (float("inf"), "sec", 2.2, None, 2.2),
    (-2.0, "sec", None, None, None),
    # nobody's time
    (2.0, "sec", 0.0, None, NEVER),
    (2.0, "sec", -2.0, None, NEVER),
    (2.0, "sec", None, 0.0, NEVER),
    (2.0, "sec", None, 2000.0, NEVER),
    (2.0, "sec", None, float("nan"), NEVER),
]


def test_there_are_enough_cases_of_the_repetition_time() -> None:
    assert len(TIMES) == len({repr(case) for case in TIMES}) >= 40


@pytest.mark.parametrize(("value", "unit", "sidecar", "given", "wanted"), TIMES)
def test_the_repetition_time(
    tmp_path: Path, value: float, unit: str, sidecar: float | None, given: float | None, wanted: Any
) -> None:
    path = write(tmp_path / "sub-01_task-rest_bold.nii.gz", frames=2, tr=value, unit=unit)
    if sidecar is not None:
        (tmp_path / "sub-01_task-rest_bold.json").write_text(json.dumps({"RepetitionTime": sidecar}))
    if isinstance(wanted, str):
        with pytest.raises(ScanError, match=wanted) as caught:
            read_run(path, given)
        assert "--tr" in str(caught.value) and caught.value.exit_code == 65
        return
    run = read_run(path, given)
    assert run.repetition_time == (None if wanted is None else pytest.approx(wanted, abs=1e-6))
    source = "the user" if given else "_bold.json" if sidecar else "the header" if wanted else "not stated"
    assert source in run.provenance.header["repetition time"]
    seen = value * {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(unit, 1.0 if value < 100 else 1e-3)
    differ = given is None and sidecar is not None and np.isfinite(value) and value > 0 and abs(seen - sidecar) > 0.005
    assert differ == any("the sidecar's is used, as BIDS says" in warning for warning in run.provenance.warnings)
    guessed = any("no unit of time" in warning for warning in run.provenance.warnings)
    assert guessed == (unit in ("none", "hz") and wanted is not None and given is None and sidecar is None)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{", '{"RepetitionTime": "fast"}', "[" * 100_000, '{"RepetitionTime": [2]}']
)
def test_sidecars_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "run.nii")
    (tmp_path / "run.json").write_text(text)
    if text == "[1, 2]":
        assert read_run(path).repetition_time == 2.0
        return
    with pytest.raises(ScanError, match=r"run\.json cannot be read"):
        read_run(path)


def test_damaged_and_lying_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "run.nii").read_bytes()
    packed = gzip.compress(whole)
    cases = {
        "short.nii": (whole[:-100], "truncated"),
        "short.nii.gz": (gzip.compress(whole[:-100]), "truncated"),
        "cut.nii.gz": (packed[: len(packed) // 2], "truncated or damaged"),
        "crc.nii.gz": (packed[:-8] + bytes(8), "truncated or damaged"),
        "long.nii": (whole + bytes(2**20 + 1), "more than its header says"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScanError, match=words):
            for _ in read_run(tmp_path / name).blocks(2):
                pass
    with pytest.raises(NotFoundError):
        read_run(tmp_path / "gone.nii")
    (tmp_path / "words.nii").write_text("no scan")
    with pytest.raises(ScanError, match="not a NIfTI file"):
        read_run(tmp_path / "words.nii")
    one = nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE)
    one.to_filename(tmp_path / "one.nii")
    with pytest.raises(ScanError, match="is not a time series"):
        read_run(tmp_path / "one.nii")
    five = nib.Nifti1Image(np.ones((*SHAPE, 2, 3), np.float32), AFFINE)
    five.to_filename(tmp_path / "five.nii")
    with pytest.raises(ScanError, match="is not a time series"):
        read_run(tmp_path / "five.nii")


def test_nothing_that_could_name_a_patient_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "run.nii")
    image = nib.load(path)
    image.header["descrip"] = b"DOE^JANE 1970"
    image.to_filename(tmp_path / "named.nii")
    assert "DOE" not in repr(read_run(tmp_path / "named.nii").provenance)
    assert str(tmp_path) not in repr(read_run(path).provenance)
