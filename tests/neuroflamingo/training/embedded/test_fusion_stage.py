"""What the fusion stage is taught from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.findings.wording import render_report
from neuroflamingo.recipe.embedded_recipe import FusionStageSettings, StageOptimSettings
from neuroflamingo.training.embedded.fusion_stage import drawn_reports, stated_sizes
from neuroflamingo.training.embedded.language_model_stage import encode_reports, train_tokenizer


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


@pytest.mark.slow
def test_of_some_reports_only_the_impression_is_learnt() -> None:
    tokenizer = train_tokenizer(738, 10_000_000)
    finding = Finding(kind="mass", side="left", region="insula", size_mm=12)
    reports = [render_report([finding], 0, 0)] * 2
    ids, mask, labels, weights = encode_reports(tokenizer, reports, 4.0, impression_only=[1])
    learnt = [tokenizer.decode(row[keep]) for row, keep in zip(ids, labels != -100, strict=True)]
    assert learnt[0].startswith("TECHNIQUE:") and learnt[1].startswith(" 1.") and "insula" in learnt[1].lower()
    assert learnt[0].endswith(learnt[1])
    assert ids[0].equal(ids[1]) and mask[0].equal(mask[1])
    assert ((weights[1] > 0) == (labels[1] != -100)).all() and (weights[1] == 4.0).any()


def test_reports_of_other_heads_are_drawn_by_their_share_and_never_for_blank_scans() -> None:
    own = (Finding(kind="mass", side="left", region="insula", size_mm=12),)
    other = SimpleNamespace(findings=(Finding(kind="chronic infarct", side="right", region="thalamus", size_mm=9),))
    blank = np.arange(400) % 4 == 0
    for share in (0.0, 0.3):
        settings = FusionStageSettings(optim=StageOptimSettings(steps=1, batch=1, lr=1.0), copied_share=share)
        reports, copied = drawn_reports([own] * 400, blank, [other] * 3, settings, np.random.default_rng(0))
        assert not blank[copied].any() and abs(len(copied) / 300 - share) < 0.07
        for row, report in enumerate(reports):
            assert ("infarct of" in report.text.lower() or "thalamus" in report.text) == (row in copied)
            assert ("insula" in report.text) == (row not in copied and not blank[row])
