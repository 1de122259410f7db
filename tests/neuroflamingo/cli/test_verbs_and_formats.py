"""Other formats and the choice of affine, through the verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zarr

from neuroflamingo.cli import main
from neuroflamingo_encoders.registry import encoder_card
from neuroflamingo_encoders.tokens.files import read_tokens
from neuroflamingo_preprocessing.check import check_scan
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.jobs import input_digest
from neuroflamingo_preprocessing.stores.scans import ScanStore

LAS = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -126], [0, 0, 6, -72], [0, 0, 0, 1]])
HEADS = np.random.default_rng(0).uniform(500, 1500, (31, 37, 31)).astype(np.float32)
SERIES = np.random.default_rng(1).normal(1000, 50, (30, 40)).astype(np.float32)
FC = ["--encoder", "fc-baseline", "--option", "parcels=30", "-q"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mgz(name: str, values: Any, tr: float | None = None) -> str:
    image = nib.MGHImage(values, LAS)
    if tr:
        image.header.set_zooms((6.0, 6.0, 6.0, tr))
    image.to_filename(name)
    return name


def nifti(name: str, codes: tuple[int, int], qform: np.ndarray = LAS, values: Any = HEADS) -> str:
    image = nib.Nifti1Image(values, LAS)
    image.set_sform(LAS, codes[0])
    image.set_qform(qform, codes[1])
    image.to_filename(name)
    return name


def test_check_scan_says_where_the_place_comes_from(capsys: Any) -> None:
    moved = LAS.copy()
    moved[2, 3] += 30
    nifti("a.nii.gz", (4, 1), moved, np.stack([HEADS] * 3, -1))
    assert main(["check-scan", "a.nii.gz", "--xform", "qform"]) == 0
    text = capsys.readouterr().out
    assert "from the qform, as asked; sform MNI152, qform scanner" in text and "the qform is used" in text
    assert main(["check-scan", "a.nii.gz", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["header"]["affine from"] == "sform" and "differ by up to 30 mm" in found["warnings"][0]
    nifti("b.nii.gz", (4, 0), values=np.stack([HEADS] * 3, -1))
    assert main(["check-scan", "b.nii.gz", "--xform", "qform"]) == 65
    assert "has no qform" in capsys.readouterr().out
    assert main(["check-scan", "b.nii.gz", "--xform", "left"]) == 2


def test_check_scan_on_other_formats(aligned: None, capsys: Any) -> None:
    mgz("r_bold.mgz", np.stack([HEADS + n for n in range(4)], -1), 2000.0)
    assert main(["check-scan", "r_bold.mgz"]) == 0
    text = capsys.readouterr().out
    assert "a run" in text and "from the direction cosines" in text and "2 s, from the header" in text
    array = zarr.create_array(
        "h.zarr", shape=HEADS.shape, dtype="float32", chunks=(16,) * 3, dimension_names=list("xyz")
    )
    array[...] = HEADS
    found = check_scan("h.zarr", volume_card=encoder_card("tiny-t1w-cnn"))
    assert found.kind == "volume" and found.fault and "left and right cannot be told" in found.fault.what
    array.attrs["neuroflamingo"] = {"affine": LAS.tolist(), "world": "RAS+ mm"}
    found = check_scan("h.zarr", volume_card=encoder_card("tiny-t1w-cnn"))
    assert found.header["affine from"] == "attributes" and found.stored == "LAS: right to left, back to front, up"
    assert len(found.sha256 or "") == 64


def test_the_form_is_part_of_the_address(place: Path) -> None:
    card = encoder_card("tiny-t1w-cnn")
    assert Preparation.of(card.scan).changes() == {}
    assert Preparation.of(card.scan, xform="auto").changes() == {}
    assert Preparation.of(card.scan, xform="qform").changes() == {"xform": "qform"}
    assert Preparation.of(encoder_card("fc-baseline").scan, rows="frames").changes() == {"rows": "frames"}
    with pytest.raises(UsageError, match="unknown xform"):
        Preparation.of(card.scan, xform="left")
    with pytest.raises(UsageError, match="does not take parcel series"):
        Preparation.of(card.scan, rows="frames")
    with pytest.raises(UsageError, match="value of --rows"):
        Preparation.of(encoder_card("fc-baseline").scan, rows="columns")


@pytest.mark.slow
def test_a_store_keeps_the_ways_apart_and_says_which_it_was(place: Path, capsys: Any) -> None:
    values = np.random.default_rng(0).uniform(500, 1500, (31, 37, 31, 12)).astype(np.float32)
    nifti("r_bold.nii.gz", (4, 4), values=values)
    x, y, z = np.indices(HEADS.shape)
    nifti("atlas.nii.gz", (4, 4), values=(1 + ((x // 4) * 49 + (y // 5) * 7 + z // 4) % 30).astype(np.int16))
    common = ["prepare", "r_bold.nii.gz", "-o", "store", *FC, "--atlas", "atlas.nii.gz", "--nprocs", "1", "--tr", "2"]
    assert main(common) == 0 and main([*common, "--xform", "qform"]) == 0 and main([*common, "--xform", "qform"]) == 0
    store = ScanStore("store")
    used = sorted(store[key].metadata["input"]["header"]["affine from"] for key in store)
    assert used == ["qform, as asked", "sform"]
    mgz("m_bold.mgz", values, 2000.0)
    assert main(["prepare", "m_bold.mgz", "-o", "mgh", *FC, "--atlas", "atlas.nii.gz", "--nprocs", "1"]) == 0
    (key,) = ScanStore("mgh")
    assert np.allclose(ScanStore("mgh")[key].read(), store[next(iter(store))].read(), rtol=1e-5)
    assert ScanStore("mgh")[key].metadata["input"]["kind"] == "MGH"


def test_zarr_folders_are_hashed_by_what_is_in_them(place: Path) -> None:
    array = zarr.create_array("h.zarr", shape=(4, 4, 4), dtype="float32", chunks=(2,) * 3)
    array[...] = 1
    spec = encoder_card("tiny-t1w-cnn").scan
    before = input_digest(Path("h.zarr"), spec)
    assert input_digest(Path("h.zarr"), spec) == before
    array[0, 0, 0] = 2
    assert input_digest(Path("h.zarr"), spec) != before


@pytest.mark.slow
def test_parcel_tables_and_cifti_give_the_same_tokens(place: Path, capsys: Any) -> None:
    from nibabel.cifti2.cifti2 import Cifti2Image
    from nibabel.cifti2.cifti2_axes import ParcelsAxis, SeriesAxis

    names = [f"region {n}" for n in range(30)]
    boxes = [np.array([[n, 0, 0]]) for n in range(30)]
    parcels = ParcelsAxis(names, boxes, [{}] * 30, affine=np.eye(4), volume_shape=(31, 1, 1))
    Cifti2Image(SERIES.T, header=(SeriesAxis(0, 0.8, 40, "SECOND"), parcels)).to_filename("s.ptseries.nii")
    np.savetxt("s.tsv", SERIES.T, delimiter="\t", header="\t".join(names), comments="", fmt="%.9g")
    np.savetxt("s.csv", SERIES, delimiter=",", fmt="%.9g")
    assert main(["encode", "s.ptseries.nii", "-o", "cifti.npz", *FC]) == 0
    assert main(["encode", "s.tsv", "s.csv", "--raw", "-o", "tables.npz", *FC]) == 0
    (wanted,) = read_tokens("cifti.npz").scans
    by_frames, by_parcels = read_tokens("tables.npz").scans
    assert np.allclose(by_frames.tokens, wanted.tokens) and np.allclose(by_parcels.tokens, wanted.tokens)
    assert wanted.metadata["parcels"] == {"count": 30, "order": names, "lines_of_the_file": "parcels"}
    assert wanted.metadata["input"]["kind"] == "CIFTI parcel series" and wanted.metadata["repetition_time_s"] == 0.8
    assert (
        by_frames.metadata["parcels"]["order"] == names
        and by_frames.metadata["parcels"]["lines_of_the_file"] == "frames"
    )
    assert by_parcels.metadata["parcels"]["lines_of_the_file"] == "parcels"
    np.savetxt("square.csv", SERIES[:, :30], delimiter=",", fmt="%.9g")
    capsys.readouterr()
    assert main(["encode", "square.csv", "--raw", "-o", "a.npz", *FC]) == 65
    assert "--rows frames, or --rows parcels" in capsys.readouterr().err
    assert main(["encode", "square.csv", "--raw", "--rows", "parcels", "-o", "a.npz", *FC]) == 0
    assert main(["encode", "s.tsv", "--raw", "--rows", "columns", "-o", "b.npz", *FC]) == 2
    assert main(["encode", "s.ptseries.nii", "--encoder", "tiny-t1w-cnn", "-o", "b.npz", "-q"]) == 65


@pytest.mark.slow
def test_report_takes_the_form_and_says_so(head_file: Path, aligned: None, capsys: Any) -> None:
    assert main(["report", str(head_file), "-o", "a.json", "--xform", "sform", "-q"]) == 0
    said = json.loads(Path("a.json").read_text())
    assert said["provenance"]["inputs"][0]["header"]["affine from"] == "sform, as asked"
    image: Any = nib.load(head_file)
    image.set_qform(None, 0)
    nib.save(image, "one.nii.gz")
    assert main(["report", "one.nii.gz", "-o", "b.json", "--xform", "qform", "-q"]) == 65
    assert "has no qform" in capsys.readouterr().err
    assert main(["report", str(head_file), "-o", "b.json", "--xform", "left", "-q"]) == 2
