"""What a model keeps for judging its reports: fitted on the heads that it is given, real ones among them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import neuroflamingo
from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.painting.case import paint_into_head
from neuroflamingo.training.embedded import second_look_records
from neuroflamingo.training.embedded.second_look_records import HeadVersion, fit_second_look

MASS = Finding(kind="mass", side="left", region="insula", size_mm=12, signal="low")


class Cache:
    """Random tokens of a few cases."""

    def __init__(self, cases: int, width: int) -> None:
        self.pool: Any = [SimpleNamespace(findings=(MASS,) if number % 2 else ()) for number in range(cases)]
        self.tokens = torch.randn(cases, 1, 212, width, generator=torch.Generator().manual_seed(cases))

    def __getitem__(self, where: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        return self.tokens[where[1]]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, scan = paint_into_head([], seed=3)
    path = tmp_path_factory.mktemp("heads") / "healthy_T1w.nii.gz"
    nibabel.save(nibabel.Nifti1Image(scan.voxels[::2, ::2, ::2], scan.affine @ np.diag([2, 2, 2, 1])), path)  # type: ignore[attr-defined]
    return path


def test_a_version_is_the_disturbed_head_and_one_that_is_not_allowed_the_head_itself(head: Path) -> None:
    plain = HeadVersion(str(head))()
    noisy = HeadVersion(str(head), "noise 6 %")()
    assert noisy.voxels.shape == plain.voxels.shape and not np.allclose(noisy.voxels, plain.voxels)
    assert HeadVersion(str(head), "5.5 mm axial")().voxels.shape[2] < plain.voxels.shape[2]
    second_look_records.VERSIONS["never"] = lambda scan: None
    try:
        assert np.array_equal(HeadVersion(str(head), "never")().voxels, plain.voxels)
    finally:
        del second_look_records.VERSIONS["never"]


@pytest.mark.slow
def test_real_heads_count_for_inventions_and_for_likeness(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = neuroflamingo.load("tiny-t1w", device="cpu")
    written: list[int] = []

    def write(model: Any, tokenizer: Any, prompt: str, tokens: torch.Tensor, *, batch: int) -> list[str]:
        written.append(len(tokens))
        return ["FINDINGS: There is a mass in the left insula, measuring 12 mm."] * len(tokens)

    monkeypatch.setattr(second_look_records, "write_greedily", write)
    monkeypatch.setattr(second_look_records, "VERSIONS", {"noise 6 %": second_look_records.VERSIONS["noise 6 %"]})
    monkeypatch.setattr(second_look_records.os, "cpu_count", lambda: 1)
    width = model.encoder.card.output.width
    caches: Any = Cache(60, width), Cache(40, width)
    fit = lambda **heads: fit_second_look(model, processor.tokenizer, *caches, quiet=True, **heads)  # noqa: E731
    alone = fit()
    assert alone.likeness is None and alone.refused == (0, 0) and alone.calibration.cases == 40
    few = fit(healthy_heads=[str(head)], training_heads=[str(head)])
    assert few.likeness is None and few.refused == (0, 4)  # one person in two versions is too little to fit on
    monkeypatch.setattr(second_look_records, "FEWEST", 4)
    seen: list[Any] = []
    monkeypatch.setattr(second_look_records, "fit_likeness", lambda known, held_out: seen.append((known, held_out)))
    monkeypatch.setattr(
        second_look_records, "fit_calibration", lambda *args, healthy: seen.append((args, list(healthy)))
    )
    records = fit(healthy_heads=[str(head)], training_heads=[str(head)])
    assert written[-1] == 40 + 4 and records.refused == (0, 4)  # plain and noisy, each mirrored
    (_, _, truth, stated), healthy = seen[0]
    assert healthy == [40, 41, 42, 43] and truth[40:] == [()] * 4 and truth[1] == (MASS,) and len(stated) == 44
    known, held_out = seen[1]
    assert known.shape == (60 + 2, 2 * width) and held_out.shape == (4, 2 * width)
    assert not np.allclose(held_out[0], held_out[1])  # the mirrored head is another one
