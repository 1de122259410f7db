"""Every registered encoder, from a file on disk through the one door and its own network to a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from neuroflamingo.cli import main
from neuroflamingo.training.toy_scans import toy_ending, write_toy_scan
from neuroflamingo_encoders import build_encoder, list_encoders
from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.preparation import prepare
from tests.tiny import WORDS, tiny_model

pytestmark = pytest.mark.slow  # for a minute in all


@pytest.mark.parametrize("name", list_encoders())
def test_a_file_becomes_a_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    try:
        encoder = build_encoder(name, tiny=True)
    except ModelError as missing:
        assert "open_clip" in missing.what, "a library of an extra is the only reason"
        pytest.skip(missing.what)
    spec = encoder.card.scan
    files = [tmp_path / f"{pattern}{toy_ending(spec)}" for pattern in range(4)]
    for pattern, file in enumerate(files):
        write_toy_scan(file, spec, pattern, pattern)
    tensors = [torch.as_tensor(prepare(file, spec).tensor) for file in files]
    assert all(spec.accepts(tensor.shape) for tensor in tensors)
    with torch.no_grad():
        tokens = torch.stack([encoder(tensor[None, None]).tokens[0, 0] for tensor in tensors])
    spread = (tokens - tokens.mean(0)).square().mean().sqrt() / tokens.square().mean().sqrt()
    assert tokens.isfinite().all() and spread > 1e-3, "what is in the file reaches the tokens"

    resampler = {"dim": encoder.card.output.width, "depth": 1, "num_latents": 4, "heads": 2, "dim_head": 8}
    model, processor = tiny_model(encoder=encoder, resampler=resampler)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    options = ["--model", "model", "-o", "out/", "--format", "html,json", "--max-new-tokens", "5", "-q"]
    assert main(["report", files[3].name, *options]) == 0, capsys.readouterr().err
    report = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert report["text"].split() and {*report["text"].split()} <= {f"w{n}" for n in range(WORDS)}
    assert report["provenance"]["inputs"][0]["name"] == files[3].name
    assert not any(flag["value"] != flag["value"] for flag in report["provenance"]["qc"]), "no figure is NaN"
