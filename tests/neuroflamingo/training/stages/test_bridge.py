"""What the bridge is taught from."""

from __future__ import annotations

import numpy as np

from neuroflamingo.findings.schema import Finding
from neuroflamingo.training.stages.bridge import stated_sizes


def test_sizes_are_stated_in_steps_about_the_truth_and_nothing_else_is_changed() -> None:
    findings = (
        Finding(kind="mass", side="left", region="insula", size_mm=12),
        Finding(kind="ventricular enlargement", side="bilateral", region="lateral ventricles", grade=1),
    )
    rng = np.random.default_rng(0)
    drawn = [stated_sizes(findings, 2.0, 5.0, rng) for _ in range(400)]
    sizes = np.array([mass.size_mm for mass, _ in drawn], dtype=float)
    assert set(sizes.tolist()) == {5.0, 10.0, 15.0, 20.0} and abs(sizes.mean() - 12) < 0.4
    for mass, ventricles in drawn:
        assert mass.model_copy(update={"size_mm": 12}) == findings[0] and ventricles == findings[1]
    assert stated_sizes(findings, 0.0, 1.0, rng) == list(findings)
    assert stated_sizes(findings, 0.0, 40.0, rng)[0].size_mm == 40.0
