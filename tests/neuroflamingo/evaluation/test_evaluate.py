"""An evaluation comes with its controls, and they catch a model that does not look."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import neuroflamingo
from neuroflamingo.cli import main
from neuroflamingo.evaluation import painted_cases
from neuroflamingo.evaluation.evaluate import KEYS, TEST_SEED, Evaluation, evaluate, score_encoded
from neuroflamingo.evaluation.painted_cases import EncodedCases, PaintedScan, encode_cases, scans_to_paint
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.scan import Scan
from neuroflamingo_preprocessing.spec import Step

PUBLISHED = {
    "finding_f1",
    "full_finding_f1",
    "laterality_accuracy",
    "wrong_side_rate",
    "region_accuracy",
    "size_mae_mm",
    "hallucination_on_normals",
    "omission_rate",
    "parse_coverage",
}

pytestmark = pytest.mark.slow  # for what all its tests wait for


@pytest.fixture(scope="module")
def opened():
    return neuroflamingo.load("tiny-t1w", device="cpu")


@pytest.fixture(scope="module")
def encoded(opened) -> EncodedCases:
    return encode_cases(scans_to_paint(range(TEST_SEED, TEST_SEED + 8), "icbm2009a"), opened[0].encoder, processes=1)


@pytest.fixture(scope="module")
def evaluation(opened, encoded: EncodedCases) -> Evaluation:
    return score_encoded(*opened, encoded)


def test_json_has_the_published_keys_and_the_same_under_each_control(evaluation: Evaluation) -> None:
    out = json.loads(json.dumps(evaluation.to_json()))
    assert set(KEYS) == PUBLISHED and set(out) >= PUBLISHED
    for control in ("blank", "other_patient", "mirrored", "constant"):
        assert set(out[control]) == PUBLISHED
    assert set(out["intervals"]) >= PUBLISHED and out["overlap"].keys() == {"bleu4", "rouge_l"}


def test_table_is_never_without_the_controls(evaluation: Evaluation, tmp_path: Path) -> None:
    table = evaluation.table()
    for column in ("blank", "other patient", "mirrored", "constant", "readout", "95 %"):
        assert column in table.splitlines()[0]
    evaluation.write_csv(tmp_path / "cases.csv")
    assert len((tmp_path / "cases.csv").read_text().splitlines()) > 8


def test_the_model_looks_at_the_scan(evaluation: Evaluation) -> None:
    """On eight cases: better than another patient's scan, nothing claimed on a blank one."""
    assert (evaluation.real["finding_f1"] or 0) > (evaluation.other_patient["finding_f1"] or 0)
    assert evaluation.blank["finding_f1"] == 0 and evaluation.blank["hallucination_on_normals"] in (0, None)


@pytest.mark.slow
def test_a_blind_model_is_exposed(opened, encoded: EncodedCases) -> None:
    """Give every case the same tokens: the controls then score what the reports score."""
    same = encoded.plain[:1].expand_as(encoded.plain)
    blind = score_encoded(
        *opened, EncodedCases(encoded.truth, encoded.visible, encoded.volumes, same, same, encoded.blank, {})
    )
    assert blind.real.values["finding_f1"] == blind.other_patient.values["finding_f1"]
    assert blind.real.values["finding_f1"] <= (blind.constant.values["finding_f1"] or 0)


@dataclass(frozen=True)
class Cropped(PaintedScan):
    """A painted scan of which, in every second case, one lower slab is left: it shows too little of the brain."""

    def __call__(self) -> Scan:
        scan = super().__call__()
        return replace(scan, voxels=scan.voxels[:, :, :40]) if self.seed % 2 else scan


def test_a_scan_that_cannot_be_prepared_gets_no_report_and_is_counted(
    opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(painted_cases, "PaintedScan", Cropped)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    code = main(["evaluate", "--cases", "3", "--seed", str(TEST_SEED), "-q", "-d", "cpu", "--json"])
    printed = capsys.readouterr()
    assert code == 1 and f"seed {TEST_SEED + 1} was not prepared" in printed.err
    out = json.loads(printed.out)
    assert [seed for seed, _ in out["about"]["failed_preparations"]] == [TEST_SEED + 1]
    assert main(["evaluate", "--cases", "3", "--seed", str(TEST_SEED), "-q", "-d", "cpu"]) == 1
    assert "| scans not prepared, scored as empty reports | 1 of 3 |" in capsys.readouterr().out


def test_what_the_card_asks_for_and_cannot_be_done_is_no_cases_fault(opened) -> None:
    encoder, scan = copy.copy(opened[0].encoder), opened[0].encoder.card.scan
    odd = scan.model_copy(update={"steps": (*scan.steps, Step.named("unheard_of"))})
    encoder.card = encoder.card.model_copy(update={"scan": odd})
    with pytest.raises(ModelError, match="unheard_of"):
        encode_cases(scans_to_paint(range(TEST_SEED, TEST_SEED + 2), "icbm2009a"), encoder, processes=1)


def test_cases_of_which_none_can_be_prepared_are_no_evaluation(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painted_cases, "PaintedScan", Cropped)
    with pytest.raises(ScanError, match="not one of 1 painted cases") as refused:
        encode_cases(scans_to_paint(range(TEST_SEED + 1, TEST_SEED + 2), "icbm2009a"), opened[0].encoder, processes=1)
    assert any(words in (refused.value.seen or "") for words in ("shows only", "far smaller", "cannot be placed"))


def test_one_case_or_an_unknown_head_is_refused(opened) -> None:
    with pytest.raises(UsageError, match="two cases"):
        evaluate(*opened, cases=1)
    with pytest.raises((UsageError, NotFoundError), match="unknown head 'colin27'"):
        evaluate(*opened, cases=2, anatomy="colin27")
