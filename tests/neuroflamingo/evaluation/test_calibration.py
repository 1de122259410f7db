"""Probabilities fitted on synthetic logits, the risks they are chosen for, and heads unlike the known ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neuroflamingo.evaluation import readout
from neuroflamingo.evaluation.calibration import (
    CELL_MM,
    Calibration,
    ClassCalibration,
    cells_of,
    finding_logit,
    fit_calibration,
    risk_coverage,
)
from neuroflamingo.evaluation.likeness import Likeness, fit_likeness, head_features, read_likeness
from neuroflamingo.findings.vocabulary import Finding, FindingClass
from neuroflamingo.inference.second_look import SecondLook
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, UsageError

CENTRES = torch.stack(torch.meshgrid(*[torch.arange(-60.0, 61, 24)] * 3, indexing="ij"), -1).reshape(-1, 3)
PLACES = {("left", "parietal lobe"): (-36.0, -60.0, 36.0), ("right", "parietal lobe"): (36.0, -60.0, 36.0)}


def mass(side: str = "left") -> Finding:
    return Finding(kind="mass", side=side, region="parietal lobe", size_mm=20)  # type: ignore[arg-type]


def empty_readout(cases: int) -> SimpleNamespace:
    """A readout that sees nothing."""
    return SimpleNamespace(
        presence=torch.full((cases, len(CENTRES), 3), -9.0),
        white_matter=torch.tensor([[5.0, 0, 0, 0]]).repeat(cases, 1),
        ventricles=torch.tensor([[5.0, 0, 0, 0]]).repeat(cases, 1),
        atrophy=torch.full((cases, 4, 2), -5.0),
    )


def cell_at(side: str) -> int:
    return int((CENTRES - torch.tensor(PLACES[side, "parietal lobe"])).norm(dim=1).argmin())


def synthetic(cases: int, seed: int, temperature: float = 2.0, shift: float = 1.0):
    """Cases whose report states a mass, which is there with probability sigmoid((logit - shift) / temperature)."""
    rng = np.random.default_rng(seed)
    read = empty_readout(cases)
    logits = rng.normal(0, 4, cases)
    read.presence[:, cell_at("left"), 1] = torch.from_numpy(logits).float()
    there = rng.random(cases) < 1 / (1 + np.exp(-(logits - shift) / temperature))
    return read, [(mass(),) if one else () for one in there], [[mass()]] * cases, logits, there


def test_cells_are_those_of_the_readout() -> None:
    assert CELL_MM == readout.CELL_MM


def test_the_logit_is_that_of_the_stated_place() -> None:
    read = empty_readout(1)
    read.presence[0, cell_at("left"), 1] = 3.0
    read.presence[0, cell_at("left"), 0] = 8.0
    assert finding_logit(read, CENTRES, 0, mass("left")) == 3.0  # type: ignore[arg-type]
    assert finding_logit(read, CENTRES, 0, mass("right")) == -9.0  # type: ignore[arg-type]
    anywhere = Finding(kind="mass")  # type: ignore[arg-type]
    assert finding_logit(read, CENTRES, 0, anywhere) == 3.0  # type: ignore[arg-type]
    left, right = (cells_of(CENTRES.numpy(), mass(side)) for side in ("left", "right"))
    assert left.any() and right.any() and (CENTRES[left][:, 0] < 13).all() and left.sum() == right.sum()


def test_the_logit_of_diffuse_findings() -> None:
    read = empty_readout(1)
    read.ventricles[0] = torch.tensor([0.0, 0, 0, 0])
    read.atrophy[0, 0] = torch.tensor([4.0, -1.0])
    ventricles = Finding(kind="ventricular enlargement", side="bilateral", region="lateral ventricles", grade=2)  # type: ignore[arg-type]
    assert finding_logit(read, CENTRES, 0, ventricles) == pytest.approx(np.log(3))  # type: ignore[arg-type]
    for side, expected in (("left", 4.0), ("right", -1.0), ("bilateral", -1.0)):
        lobe = Finding(kind="lobar atrophy", side=side, region="frontal lobe")  # type: ignore[arg-type]
        assert finding_logit(read, CENTRES, 0, lobe) == expected  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    read, truth, stated, _, _ = synthetic(1500, 0)
    return fit_calibration(read, CENTRES, truth, stated)  # type: ignore[arg-type]


def test_probabilities_are_true_on_new_cases(fitted: Calibration) -> None:
    one = fitted.classes[FindingClass.MASS]
    assert one.temperature == pytest.approx(2.0, rel=0.2) and one.shift == pytest.approx(1.0, abs=0.4)
    _, _, _, logits, there = synthetic(4000, 1)
    p = np.array([one.probability(logit) for logit in logits])
    for low in np.arange(0, 1, 0.2):
        here = (p >= low) & (p < low + 0.2)
        assert there[here].mean() == pytest.approx(p[here].mean(), abs=0.1)


def test_thresholds_keep_their_risks_on_new_cases(fitted: Calibration) -> None:
    one = fitted.classes[FindingClass.MASS]
    assert 0 < one.withhold_below <= one.possible_below <= 1 and fitted.healthy_reached is not None
    assert fitted.healthy_reached <= 0.05
    _, _, _, logits, there = synthetic(4000, 2)
    verdicts = np.array([one.verdict(one.probability(logit)) for logit in logits])
    assert (verdicts[~there] != "withheld").mean() < 0.08
    assert (~there[verdicts == "stated"]).mean() < 0.13
    assert {"stated", "withheld"} <= set(verdicts)


def test_what_is_stated_without_doubt_is_the_surer_part_of_what_is_stated() -> None:
    read, truth, stated, _, _ = synthetic(600, 4)
    for healthy_risk, false_risk, doubted in ((0.9, 0.02, True), (0.01, 0.9, False)):
        record = fit_calibration(read, CENTRES, truth, stated, healthy_risk=healthy_risk, false_risk=false_risk)  # type: ignore[arg-type]
        one = record.classes[FindingClass.MASS]
        assert (one.possible_below > one.withhold_below) is doubted
        assert one.possible_below >= one.withhold_below


def test_the_record_is_plain_json_and_comes_back(fitted: Calibration) -> None:
    stored = json.loads(json.dumps(fitted.model_dump(mode="json")))
    assert Calibration.model_validate(stored) == fitted
    curve = fitted.classes[FindingClass.MASS].curve
    assert len(curve) <= 60 and curve[0][1] == 1.0
    assert [point[1] for point in curve] == sorted((point[1] for point in curve), reverse=True)


def test_risk_falls_as_less_is_said() -> None:
    assert risk_coverage([0.9, 0.8, 0.8, 0.1], [True, True, False, False]) == [
        (0.1, 1.0, 0.5),
        (0.8, 0.75, 0.333333),
        (0.9, 0.25, 0.0),
    ]


def test_a_class_with_too_few_cases_is_not_calibrated() -> None:
    read, truth, stated, _, _ = synthetic(15, 0)
    assert fit_calibration(read, CENTRES, truth, stated).classes == {}  # type: ignore[arg-type]
    read, _, stated, _, _ = synthetic(60, 0)
    assert fit_calibration(read, CENTRES, [(mass(),)] * 60, stated).classes == {}  # type: ignore[arg-type]


def test_a_finding_on_the_wrong_side_counts_as_false() -> None:
    read, _, stated, _, _ = synthetic(60, 0)
    truth = [(mass("left"),)] * 40 + [(mass("right"),)] * 20
    assert fit_calibration(read, CENTRES, truth, stated).classes[FindingClass.MASS].false == 20  # type: ignore[arg-type]


def test_inventions_are_counted_on_the_heads_that_are_named() -> None:
    read, truth, stated, _, _ = synthetic(600, 5)
    every = fit_calibration(read, CENTRES, truth, stated)
    loud = sorted(range(600), key=lambda case: -float(read.presence[case, :, 1].max()))
    of_loud = fit_calibration(read, CENTRES, truth, stated, healthy=[case for case in loud if not truth[case]][:60])
    mass_of = [record.classes[FindingClass.MASS] for record in (every, of_loud)]
    assert mass_of[1].withhold_below > mass_of[0].withhold_below  # heads on which more is invented ask for more
    assert (of_loud.healthy_reached or 0.0) <= 0.05


def test_a_risk_out_of_reach_withholds_everything() -> None:
    """Logits that say nothing: no threshold makes the statements safe."""
    read, truth, stated, _, there = synthetic(400, 3, temperature=1e6, shift=0.0)
    one = fit_calibration(read, CENTRES, truth, stated, healthy_risk=0.0).classes[FindingClass.MASS]  # type: ignore[arg-type]
    assert one.possible_below == 1.01 or one.withhold_below > 0.4
    assert 100 < there.sum() < 300


# Likeness


def heads(count: int, seed: int, moved: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(0, 1, (12, 12))
    return rng.normal(0, 1, (count, 12)) @ mixing + 5 + moved


def test_one_in_twenty_held_out_heads_is_flagged_and_other_heads_are(tmp_path: Path) -> None:
    known = fit_likeness(heads(300, 0), heads(400, 1))
    assert (known.score(heads(400, 1)) > known.threshold).mean() == pytest.approx(0.05, abs=0.005)
    assert (known.score(heads(2000, 2)) > known.threshold).mean() == pytest.approx(0.05, abs=0.03)
    assert (known.score(heads(50, 3, moved=12.0)) > known.threshold).mean() > 0.9
    known.save(tmp_path)
    back = read_likeness(tmp_path)
    assert back is not None and back.threshold == pytest.approx(known.threshold)
    np.testing.assert_allclose(back.score(heads(20, 4)), known.score(heads(20, 4)), rtol=1e-3)
    assert read_likeness(tmp_path / "none") is None


def test_more_features_than_heads_and_too_few_heads() -> None:
    rng = np.random.default_rng(0)
    known = fit_likeness(rng.normal(0, 1, (40, 384)), rng.normal(0, 1, (40, 384)))
    assert np.isfinite(known.threshold) and known.threshold > 0
    with pytest.raises(UsageError, match="cannot be fitted"):
        fit_likeness(heads(10, 0), heads(30, 1))
    with pytest.raises(UsageError, match="cannot be fitted"):
        fit_likeness(np.full((30, 12), np.nan), heads(30, 1))


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_a_file_that_is_no_likeness_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "likeness.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="likeness"):
        read_likeness(tmp_path)
    Likeness(np.zeros(3), np.zeros((2, 2)), 1.0).save(tmp_path)
    with pytest.raises(ModelError, match="likeness"):
        read_likeness(tmp_path)


def test_features_are_mean_and_spread_of_tokens() -> None:
    tokens = np.random.default_rng(0).normal(0, 1, (2, 212, 6)).astype(np.float32)
    assert head_features(tokens).shape == (2, 12)
    np.testing.assert_allclose(head_features(tokens)[:, :6], tokens.mean(1), atol=1e-6)


# What a report makes of it


def test_a_record_with_faults_is_refused_with_all_of_them(tmp_path: Path) -> None:
    stored = {"classes": {"mass": {"temperature": 0}, "dragon": {"temperature": 1}}, "riks": 1}
    with pytest.raises(ConfigError, match="3 faults"):
        SecondLook.of(tmp_path, {"calibration": stored})
    assert SecondLook.of(tmp_path, None) == SecondLook.of(tmp_path, {"thresholds": {}}) == SecondLook()


def test_without_a_record_nothing_is_judged() -> None:
    look = SecondLook(Calibration(classes={FindingClass.MASS: ClassCalibration(temperature=1.0)}))
    several = np.zeros((2, 4, 3), np.float32)
    for judged in (SecondLook().judge(None, several[:1], [mass()]), look.judge(None, several, [mass()])):
        assert [(one.probability, one.verdict) for one in judged] == [(None, "stated")]
