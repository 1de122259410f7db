"""The embedded model: what its card claims, on a few cases; the whole is measured by `neuroflamingo evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import neuroflamingo
from neuroflamingo.evaluation.evaluate import write_reports
from neuroflamingo.evaluation.scoring import score_reports
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import Finding, Side
from neuroflamingo.painting.case import paint_case
from neuroflamingo_preprocessing.structural.template import load_template

FOLDER = Path(neuroflamingo.__file__).parent / "pretrained" / "tiny-t1w"
UNSEEN = 4_100_000


@pytest.fixture(scope="module")
def opened():
    return neuroflamingo.load("tiny-t1w", device="cpu")


@torch.no_grad()
def report(opened, *heads: torch.Tensor) -> list[str]:
    model, processor = opened
    return write_reports(model, processor, model.encoder(torch.stack(heads)[:, None]).tokens)


def test_it_fits_in_the_wheel() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 25_000_000
    assert not [p.name for p in FOLDER.iterdir() if p.suffix in (".bin", ".pt", ".pkl", ".py")]


def test_encoder_has_at_most_six_million_parameters(opened) -> None:
    assert sum(p.numel() for p in opened[0].encoder.parameters()) <= 6_000_000


@pytest.mark.slow
def test_it_finds_most_of_what_is_painted(opened) -> None:
    """A guard against a broken model, far below the measured figure so that chance cannot fail it."""
    cases = [paint_case(UNSEEN + i) for i in range(40)]
    texts = report(opened, *(torch.from_numpy(case.on_model_grid()) for case in cases))
    scores = score_reports([case.findings for case in cases], texts)
    assert scores["finding_f1"] > 0.4 and scores["laterality_accuracy"] > 0.7 and scores["parse_coverage"] > 0.97
    abnormal = [text for case, text in zip(cases, texts, strict=True) if case.findings]
    assert len(set(abnormal)) > 0.6 * len(abnormal), "the report must depend on the scan"


@pytest.mark.slow
def test_hematomas_change_side_with_the_mirror(opened) -> None:
    """Over sixteen left-sided ones and their mirror images; the model is wrong about the side now and then."""
    finding = Finding(kind="subacute hematoma", side="left", region="frontal lobe", size_mm=32)
    heads = [torch.from_numpy(paint_case(seed, findings=[finding]).on_model_grid()) for seed in range(70, 86)]
    for side, turned in ((Side.LEFT, heads), (Side.RIGHT, [head.flip(1) for head in heads])):
        said = [
            f.side for text in report(opened, *turned) for f in parse_report(text).findings if f.kind == finding.kind
        ]
        assert len(said) >= 10 and sum(s == side for s in said) >= 0.75 * len(said), said


@pytest.mark.slow
def test_a_blank_scan_is_called_unreadable(opened) -> None:
    (text,) = report(opened, torch.zeros(1, *load_template().grid_mask.shape))
    assert parse_report(text).findings == () and "no report is possible" in text.lower()


@pytest.mark.slow
def test_the_template_itself_is_normal(opened) -> None:
    template = load_template()
    (text,) = report(opened, torch.from_numpy(template.grid_t1 * template.grid_mask)[None])
    assert parse_report(text).findings == (), text


def test_its_figures_are_recorded_with_all_controls() -> None:
    by_anatomy = json.loads((FOLDER / "evaluation.json").read_text())
    assert by_anatomy["icbm2009a"]["about"]["cases"] >= 1000 and {"icbm2009c", "mni6"} <= set(by_anatomy)
    controls = {
        "real": {"as_it_came"},
        "few_shot": {"alone", "same_findings_blank", "same_findings_exchanged", "leaks"},
        "follow_up": {"one_scan", "swapped", "other_person", "same_scan_twice", "blank_baseline"},
    }
    for name, figures in by_anatomy.items():
        assert controls.get(name, {"blank", "other_patient", "mirrored", "constant"}) <= set(figures)
