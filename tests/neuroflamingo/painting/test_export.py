"""Painted cases on disk: scan, truth and text that belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.schema import Finding
from neuroflamingo.painting.case import paint_case
from neuroflamingo.painting.export import nifti_bytes, paint_cases
from neuroflamingo_preprocessing.reading import read_scan


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
        said = parse_report((tmp_path / f"{stem}.txt").read_text())
        assert [(f.kind, f.side, f.region, f.grade) for f in said.findings] == [
            (f.kind, f.side, f.region, f.grade) for f in findings
        ]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    (first,), (second,) = (paint_cases(1, 5, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert np.array_equal(read_scan(first).affine, read_scan(second).affine)


def test_cases_painted_at_the_same_time_are_those_painted_alone(tmp_path: Path) -> None:
    together = paint_cases(4, 20, tmp_path / "together")
    assert [path.name for path in together] == [f"case-{seed:08d}_T1w.nii.gz" for seed in range(20, 24)]
    for seed, path in zip(range(20, 24), together, strict=True):
        assert path.read_bytes() == nifti_bytes(paint_case(seed).scan())
