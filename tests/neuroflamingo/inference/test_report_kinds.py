"""One door: a report through a small model of each kind of input but a volume (see the other tests), with pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_template

from neuroflamingo.cli import main
from neuroflamingo_encoders import build_encoder
from tests.tiny import WORDS, tiny_model

FRAMES, PARCELS = 24, 9


def run_file(folder: Path) -> list[str]:
    """The MNI head at 2 mm, frame after frame with noise and one sudden change, as an fMRI run in template space."""
    template = load_mni152_template(resolution=2)
    voxels = np.asarray(template.dataobj, np.float32)[..., None] * 1000
    noise = np.random.default_rng(0).normal(0, 20, (*voxels.shape[:3], FRAMES)).astype(np.float32)
    noise[..., 11] += 150
    image = nib.Nifti1Image(((voxels + noise) * (voxels > 0)).astype(np.int16), template.affine)  # type: ignore[attr-defined]
    image.header.set_sform(template.affine, code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.8
    image.to_filename(folder / "sub-01_task-rest_bold.nii.gz")
    return ["sub-01_task-rest_bold.nii.gz"]


def parcel_table(folder: Path) -> list[str]:
    values = np.random.default_rng(0).normal(100, 1, (40, PARCELS))
    np.savetxt(
        folder / "parcels.tsv", values, delimiter="\t", header="\t".join(f"p{n}" for n in range(PARCELS)), comments=""
    )
    return ["parcels.tsv", "--raw", "--tr", "2"]


def slice_stack(folder: Path) -> list[str]:
    np.save(folder / "slices.npy", np.random.default_rng(0).random((1, 12, 20, 16), np.float32))
    return ["slices.npy"]


def sequence_file(folder: Path) -> list[str]:
    lines = ("ACGTTGCAAC" * 7)[:60], "acgtac"  # eleven words of six letters, and the class token
    (folder / "region.fa").write_text(">chr1:100-165\n" + "\n".join(lines) + "\n")
    return ["region.fa"]


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Path], list[str]], tuple[str, ...]]] = {
    "run": (lambda: build_encoder("swift"), run_file, ("mean of the run", "DVARS")),
    "parcels": (lambda: build_encoder("fc-baseline", parcels=PARCELS), parcel_table, ("carpet plot", "own standard")),
    "slices": (lambda: build_encoder("clip-tower", tiny=True), slice_stack, ("planes of the array",)),
    "sequence": (lambda: build_encoder("nucleotide-transformer", tiny=True), sequence_file, ()),
}


@pytest.fixture
def model_of(tmp_path: Path) -> Callable[[Any], str]:
    def save(encoder: Any) -> str:
        torch.manual_seed(0)
        resampler = {"dim": encoder.card.output.width, "depth": 1, "num_latents": 4, "heads": 2, "dim_head": 8}
        model, processor = tiny_model(encoder=encoder, resampler=resampler)
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_every_kind_of_input(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_of: Callable[[Any], str],
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    build, write, seen = KINDS[kind]
    model, arguments = model_of(build()), write(tmp_path)
    options = ["--model", model, "-o", "out/", "--format", "html,json,txt", "--max-new-tokens", "5", "-q"]
    assert main(["report", *arguments, *options]) == 0, capsys.readouterr().err
    report = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    (record,) = report["provenance"]["inputs"]
    assert record["name"] == arguments[0] and len(record["sha256"]) == 64
    assert all(word in {f"w{n}" for n in range(WORDS)} for word in report["text"].split())
    page = next((tmp_path / "out").glob("*.html")).read_text()
    assert all(words in page for words in seen), [words for words in seen if words not in page]
    assert ("<img" in page) == bool(seen) and str(tmp_path) not in page


def test_a_run_says_which_window_was_read_and_how_much_of_the_brain_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_of: Callable[[Any], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, (name,) = model_of(build_encoder("swift")), run_file(tmp_path)
    assert main(["report", name, "--model", model, "-o", "run.json", "--max-new-tokens", "3", "-q"]) == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert any("the last 4 frames do not fill a window of 20" in warning for warning in report["warnings"])
    assert next(flag["name"] for flag in report["provenance"]["qc"]) == "brain inside the field of view"
    assert report["provenance"]["qc"][0]["value"] > 0.9
    assert [step["name"] for step in report["provenance"]["geometry"]]


def test_what_a_model_cannot_read_is_refused_with_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_of: Callable[[Any], str], capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    model, (name,) = model_of(build_encoder("nucleotide-transformer", tiny=True)), run_file(tmp_path)
    assert main(["report", name, "--model", model, "-o", "x.json", "-q"]) == 2
    error = capsys.readouterr().err
    assert "not prepared for this encoder" in error and "sequence" in error
    (tmp_path / "two.fa").write_text(">a\nACGT\n>b\nACGT\n")
    assert main(["report", "two.fa", "--model", model, "-o", "x.json", "-q"]) == 65
    assert "contains 2 sequences" in capsys.readouterr().err
    assert main(["report", "two.fa", "--atlas", name, "--model", model, "-o", "x.json", "-q"]) == 2
    assert "does not take parcel series" in capsys.readouterr().err
    (tmp_path / "short.fa").write_text(">a\nACGTACGTACGT\n")
    assert main(["report", "short.fa", "--model", model, "-o", "x.json", "-q"]) == 65
    error = capsys.readouterr().err
    assert "length that the encoder takes" in error and "token=12" in error and "3 tokens" in error
