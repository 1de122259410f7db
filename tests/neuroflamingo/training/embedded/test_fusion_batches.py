"""What the fusion stage is taught from: sizes, examples, follow-ups, and the scans that they stand for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuroflamingo.findings.changes import Change, Comparison, mirror_changes, reverse_changes
from neuroflamingo.findings.comparison import parse_comparison
from neuroflamingo.findings.house_styles import DEFAULT_STYLE
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import Finding, mirror
from neuroflamingo.recipe.embedded_recipe import FusionStageSettings, PromptSettings, StageOptimSettings
from neuroflamingo.training.embedded import fusion_batches
from neuroflamingo.training.embedded.fusion_batches import (
    SLOTS,
    FusionCases,
    drawn_part,
    presence_targets,
    stated_changes,
    stated_sizes,
)

MASS = Finding(kind="mass", side="left", region="insula", size_mm=12, signal="low")
INFARCT = Finding(kind="chronic infarct", side="right", region="thalamus", size_mm=9, signal="low")
GROWN = MASS.model_copy(update={"size_mm": 30.0})


class Cache:
    """Tokens that say which case, which scan of it and which side they are of."""

    def __init__(self, pool: list[Any], scans: int = 1) -> None:
        self.pool, self.scans = pool, scans
        self.blank = torch.full((1, 2, 3), -1.0)

    def __getitem__(self, where: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        flips, cases = (torch.from_numpy(np.asarray(part)).float() for part in where)
        value = (100 * flips + cases)[:, None] + 1000 * torch.arange(self.scans)
        return value[..., None, None].repeat(1, 1, 2, 3)


def settings(**values: Any) -> FusionStageSettings:
    plain = dict(copied_share=0.0, size_jitter_mm=0.0, size_step_mm=1.0)
    return FusionStageSettings(optim=StageOptimSettings(steps=1, batch=64, lr=1.0), **(plain | values))


def batch(cases: FusionCases, monkeypatch: pytest.MonkeyPatch, number: int = 0, **values: Any) -> tuple[Any, list]:
    """A batch and its documents, not encoded."""
    monkeypatch.setattr(fusion_batches, "encode_documents", lambda tokenizer, documents, weight: documents)
    drawn: Any = fusion_batches.draw_batch(cases, None, settings(**values), 0, number)  # type: ignore[arg-type]
    return drawn, drawn.texts


def test_sizes_are_stated_in_steps_about_the_truth_and_nothing_else_is_changed() -> None:
    ventricles = Finding(kind="ventricular enlargement", side="bilateral", region="lateral ventricles", grade=1)
    findings = (MASS, ventricles)
    rng = np.random.default_rng(0)
    drawn = [stated_sizes(findings, 2.0, 5.0, rng) for _ in range(400)]
    sizes = np.array([mass.size_mm for mass, _ in drawn], dtype=float)
    assert set(sizes.tolist()) == {5.0, 10.0, 15.0, 20.0} and abs(sizes.mean() - 12) < 0.4
    for mass, other in drawn:
        assert mass.model_copy(update={"size_mm": 12}) == MASS and other == ventricles
    assert stated_sizes(findings, 0.0, 1.0, rng) == list(findings)
    assert stated_sizes(findings, 0.0, 40.0, rng)[0].size_mm == 40.0


def test_stated_changes_keep_their_kind() -> None:
    grown = Change(kind="larger", before=MASS, after=MASS.model_copy(update={"size_mm": 18.0}))
    same, new = Change(kind="unchanged", before=INFARCT, after=INFARCT), Change(kind="new", after=MASS)
    rng = np.random.default_rng(0)
    for step in [5.0, 10.0] * 150:  # steps of 10 mm would round a change of 6 away
        larger, smaller, kept, fresh = stated_changes([grown, grown.reversed(), same, new], 3.0, step, rng)
        assert larger.size_change_mm in (step, 2 * step) and smaller.size_change_mm in (-step, -2 * step)
        assert kept.size_change_mm == 0.0 and fresh.before is None
        assert {c.kind for c in (larger, smaller, kept, fresh)} == {"larger", "smaller", "unchanged", "new"}


def test_reports_of_other_heads_are_drawn_by_their_share_and_never_for_blank_scans() -> None:
    cache: Any = Cache([SimpleNamespace(findings=(INFARCT,))])
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3):
        drawn = [
            drawn_part((MASS,), False, DEFAULT_STYLE, cache, settings(copied_share=share), rng) for _ in range(400)
        ]
        copied = [part for part in drawn if "thalamus" in part.report.text]
        assert abs(len(copied) / 400 - share) < 0.07 and all(part.learnt == "impression" for part in copied)
        assert all("insula" in part.report.text and part.learnt == "all" for part in drawn if part not in copied)
        blank = drawn_part((), True, DEFAULT_STYLE, cache, settings(copied_share=share), rng)
        assert "not readable" in blank.report.text and blank.learnt == "all"


def test_a_scan_stands_before_its_own_report_mirrored_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = [SimpleNamespace(findings=(MASS,)), SimpleNamespace(findings=(INFARCT,)), SimpleNamespace(findings=())]
    cases: Any = FusionCases(Cache(pool))  # type: ignore[arg-type]
    monkeypatch.setattr(fusion_batches, "BLANK_SHARE", 0.2)
    drawn, documents = batch(cases, monkeypatch)
    assert drawn.tokens.shape == (64, 1, 2, 3) and drawn.present.shape == (64, 1, SLOTS)
    values = drawn.tokens[:, 0, 0, 0].tolist()
    assert {-1.0, 0.0, 100.0, 1.0, 101.0, 2.0} <= set(values)
    for value, (part,), present in zip(values, documents, drawn.present, strict=True):
        findings = () if value < 0 else pool[int(value) % 100].findings
        findings = mirror(findings) if value >= 100 else findings
        assert list(parse_report(part.report.text).findings) == list(findings)
        assert present[0].equal(presence_targets(findings))


def test_examples_show_one_style_and_only_honest_reports_are_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = [SimpleNamespace(findings=(MASS,)), SimpleNamespace(findings=(INFARCT,))]
    cases: Any = FusionCases(Cache(pool))  # type: ignore[arg-type]
    forms = PromptSettings(few_shot=1.0, examples=2)
    seen = 0
    for number in range(6):
        drawn, documents = batch(cases, monkeypatch, number, prompts=forms, unlike_examples=0.3)
        examples = drawn.tokens.shape[1] - 1
        assert examples in (1, 2)
        for row, document in enumerate(documents):
            assert len(document) == examples + 1 and document[0].learnt == "nothing"
            for n, part in enumerate(document):
                value = float(drawn.tokens[row, n, 0, 0])
                own = () if value < 0 else pool[int(value) % 100].findings
                own = mirror(own) if value >= 100 else own
                honest = {(f.kind, f.side) for f in parse_report(part.report.text).findings} == {
                    (f.kind, f.side) for f in own
                }
                assert honest or part.learnt == "nothing"
                seen += not honest
                assert drawn.present[row, n].equal(presence_targets(own))
    assert seen > 20  # scans that are not their example's


def test_follow_ups_are_turned_mirrored_and_compared_with_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    change = Change(kind="larger", before=MASS, after=GROWN)
    pair = SimpleNamespace(
        baseline=(MASS,),
        findings=(INFARCT, GROWN),
        comparison=Comparison(same_head=True, changes=(Change(kind="new", after=INFARCT), change)),
    )
    others = SimpleNamespace(baseline=(INFARCT,), findings=(), comparison=Comparison(same_head=False))
    cases: Any = FusionCases(Cache([]), Cache([pair, others], scans=2))  # type: ignore[arg-type]
    drawn, documents = batch(cases, monkeypatch, prompts=PromptSettings(follow_up=1.0), same_scan=0.2)
    kinds = set()
    for row, (part,) in enumerate(documents):
        first, last = drawn.tokens[row, :, 0, 0].tolist()
        case = (pair, others)[int(last) % 100]
        flip, turned = last % 1000 >= 100, last < 1000
        comparison = case.comparison
        changes = reverse_changes(comparison.changes) if turned else comparison.changes
        changes = mirror_changes(changes) if flip else changes
        findings = case.baseline if turned else case.findings
        findings = mirror(findings) if flip else findings
        read = parse_comparison(part.report.text)
        assert list(parse_report(part.report.text).findings) == list(findings) and part.scans == 2
        if first == last:
            kinds.add("same")
            assert read.same_head and all(c.kind == "unchanged" for c in read.changes)
            assert len(read.changes) == len(findings)
        elif not comparison.same_head:
            kinds.add("others")
            assert not read.same_head and not read.changes
        else:
            kinds.add(f"pair {turned} {flip}")
            assert {(c.kind, c.finding.side, c.size_change_mm) for c in read.changes} == {
                (c.kind, c.finding.side, c.size_change_mm) for c in changes
            }
    assert kinds == {"same", "others", *(f"pair {a} {b}" for a in (True, False) for b in (True, False))}
