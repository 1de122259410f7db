"""Dense targets and their decoding are inverse to each other; mirrored heads get mirrored truths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroflamingo.evaluation.readout import Thresholds, decode
from neuroflamingo.findings.vocabulary import Finding, Side, mirror
from neuroflamingo.painting.case import paint_case
from neuroflamingo.painting.rendering import render_on_model_grid
from neuroflamingo.training.embedded.dense_supervision import build_targets
from neuroflamingo_encoders.families.tiny_t1w.network import Readout, TinyT1wEncoder


def perfect_readout(cases: list[tuple[tuple[Finding, ...], np.ndarray]], centres: torch.Tensor) -> Readout:
    t = build_targets(cases, torch.zeros(len(cases), 4, 2, 2, 2), centres)
    one_hot = torch.nn.functional.one_hot
    return Readout(
        presence=20 * t.peak - 10,
        size=t.size,
        offset=t.offset,
        region=10.0 * one_hot(t.region, 9),
        side=10.0 * one_hot(t.side, 3),
        white_matter=10.0 * one_hot(t.white_matter, 4),
        ventricles=10.0 * one_hot(t.ventricles, 4),
        atrophy=20 * t.atrophy - 10,
        occupancy=t.fine_occupancy,
        fine_occupancy=t.fine_occupancy,
    )


@pytest.mark.slow
def test_decoding_perfect_targets_gives_the_truth_back() -> None:
    centres = TinyT1wEncoder().centres
    cases = []
    for seed in range(30):
        case = paint_case(seed)
        order = [case.blueprint.lesion_findings.index(f) for f in case.findings if f in case.blueprint.lesion_findings]
        cases.append((case.findings, render_on_model_grid(case.blueprint, case.anatomy).centres[order]))
    decoded = decode(perfect_readout(cases, centres), centres, Thresholds())
    assert any(len(found) > 2 for found in decoded)
    wrong = [seed for seed, (found, (truth, _)) in enumerate(zip(decoded, cases, strict=True)) if found != list(truth)]
    assert len(wrong) <= 1, "two lesions of one class in one cell are the only loss"


def test_mirrored_truth() -> None:
    left = Finding(kind="mass", side="left", region="insula", size_mm=12)
    (right,) = mirror((left,))
    assert right.side is Side.RIGHT and right.region == left.region and mirror((right,)) == (left,)
    both = Finding(kind="ventricular enlargement", side="bilateral", region="lateral ventricles", grade=1)
    assert mirror((both,)) == (both,)
