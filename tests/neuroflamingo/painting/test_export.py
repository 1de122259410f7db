"""Painted cases on disk: scan, truth and text that belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroflamingo.findings.changes import Comparison
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import FOCAL, Finding, Side
from neuroflamingo.painting import export
from neuroflamingo.painting.case import Case, paint_case
from neuroflamingo.painting.export import paint_cases, truth_record
from neuroflamingo.painting.follow_up import is_of_two_people
from neuroflamingo_preprocessing.errors import OutputError
from neuroflamingo_preprocessing.read import read_scan


@pytest.mark.slow
def test_scan_truth_and_text_belong_together(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    paths = paint_cases(2, 1, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    for path in paths:
        stem = path.name.removesuffix("_T1w.nii.gz")
        scan = read_scan(path)
        assert scan.modality == "T1w" and scan.voxels.std() > 0
        truth = json.loads((tmp_path / f"{stem}.json").read_text())
        findings = [Finding.model_validate(f) for f in truth["findings"]]
        placed = [at for at, finding in enumerate(findings) if finding.kind in FOCAL]
        for name in ("centres_mni_mm", "contrasts"):
            assert len(truth[name]) == len(findings)
            assert [at for at, value in enumerate(truth[name]) if value is not None] == placed
        said = parse_report((tmp_path / f"{stem}.txt").read_text())
        assert [(f.kind, f.side, f.region, f.grade) for f in said.findings] == [
            (f.kind, f.side, f.region, f.grade) for f in findings
        ]


def test_centres_and_contrasts_are_those_of_their_findings() -> None:
    """In case 561 the findings come in another order than the lesions were drawn."""
    case = paint_case(561)
    assert [f for f in case.findings if f.kind in FOCAL] != list(case.blueprint.lesion_findings)
    record = truth_record(case)
    for finding, centre in zip(case.findings, record["centres_mni_mm"], strict=True):
        if finding.kind in FOCAL:
            at = case.blueprint.lesion_findings.index(finding)
            assert centre == case.blueprint.lesions[at].centre.round(1).tolist()
            assert finding.side not in (Side.LEFT, Side.RIGHT) or (centre[0] < 0) == (finding.side is Side.LEFT)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    (first,), (second,) = (paint_cases(1, 5, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert np.array_equal(read_scan(first).affine, read_scan(second).affine)


@pytest.mark.slow
def test_cases_painted_at_the_same_time_are_those_painted_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last byte, for each is painted by one thread; torch keeps its number of threads elsewhere."""
    threads, seen = torch.get_num_threads(), set()
    torch.set_num_threads(3)

    def painted(seed: int, anatomy: str, **others: Any) -> Case:
        seen.add(torch.get_num_threads())
        return paint_case(seed, anatomy, **others)

    monkeypatch.setattr(export, "paint_case", painted)
    try:
        together = paint_cases(4, 20, tmp_path / "together")
        assert seen == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert [path.name for path in together] == [f"case-{seed:08d}_T1w.nii.gz" for seed in range(20, 24)]
    alone = [path for seed in range(20, 24) for path in paint_cases(1, seed, tmp_path / "alone")]
    assert [path.read_bytes() for path in together] == [path.read_bytes() for path in alone]


@pytest.mark.slow
def test_an_output_that_exists_stops_the_painting(tmp_path: Path) -> None:
    paint_cases(1, 31, tmp_path)
    with pytest.raises(OutputError, match="case-00000031"):
        paint_cases(3, 30, tmp_path)


@pytest.mark.slow
def test_a_follow_up_is_written_with_its_baseline_and_the_change(tmp_path: Path) -> None:
    paths = paint_cases(1, 61, tmp_path, follow_up=True)
    assert [path.name for path in paths] == [f"case-00000061_{one}_T1w.nii.gz" for one in ("baseline", "follow-up")]
    shapes = [read_scan(path).voxels.shape for path in paths]
    assert shapes[0] != shapes[1]
    before, after = (
        json.loads((tmp_path / f"case-00000061_{one}.json").read_text()) for one in ("baseline", "follow-up")
    )
    assert "comparison" not in before and after["baseline"] == paths[0].name
    comparison = Comparison.model_validate(after["comparison"])
    assert comparison.same_head and comparison.changes
    assert "comparison:" in (tmp_path / "case-00000061_follow-up.txt").read_text().lower()
    for truth, shown in (
        (before, [one.before for one in comparison.changes]),
        (after, [one.after for one in comparison.changes]),
    ):
        findings = [Finding.model_validate(f) for f in truth["findings"]]
        assert sorted(map(str, findings)) == sorted(str(one) for one in shown if one)


@pytest.mark.slow
def test_of_several_heads_some_baselines_are_another_persons(tmp_path: Path) -> None:
    seed = next(seed for seed in range(100) if is_of_two_people(seed) and seed % 2 == 0)
    paint_cases(1, seed, tmp_path, anatomy=["icbm2009a", "mni6"], follow_up=True)
    before, after = (
        json.loads((tmp_path / f"case-{seed:08d}_{one}.json").read_text()) for one in ("baseline", "follow-up")
    )
    assert (before["anatomy"], after["anatomy"]) == ("mni6", "icbm2009a")
    assert after["comparison"] == {"same_head": False, "changes": []}
    assert "comparison is made" in (tmp_path / f"case-{seed:08d}_follow-up.txt").read_text()
