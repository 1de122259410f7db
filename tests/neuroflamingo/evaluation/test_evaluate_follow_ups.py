"""An evaluation of follow-ups: pairs prepared like real scans, five controls, and a perfect text scores 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import neuroflamingo
from neuroflamingo.cli import main
from neuroflamingo.evaluation.evaluate import KEYS, TEST_SEED
from neuroflamingo.evaluation.evaluate_follow_ups import (
    FollowUpEvaluation,
    evaluate_follow_ups,
    questions,
    score_answers,
)
from neuroflamingo.evaluation.follow_up_cases import EncodedPairs
from neuroflamingo.findings.changes import ChangeKind
from neuroflamingo.findings.house_styles import DEFAULT_STYLE, render_in_style
from neuroflamingo.painting.follow_up import paint_follow_up
from neuroflamingo_preprocessing.errors import UsageError

CONTROLS = ["report", "swapped", "other_person", "same_scan_twice", "blank_baseline", "one_scan"]


@pytest.fixture(scope="module")
def truth() -> EncodedPairs:
    """Twelve pairs, with tokens that only name the scans: 2 k the baseline, 2 k + 1 the follow-up."""
    cases = [paint_follow_up(seed) for seed in range(60, 72)]
    return EncodedPairs(
        [first.findings for first, _ in cases],
        [last.findings for _, last in cases],
        [last.comparison for _, last in cases if last.comparison],
        torch.arange(24.0).reshape(12, 2, 1, 1),
        torch.full((1, 1, 1), -1.0),
        heads=1,
        failed={},
    )


def perfect(encoded: EncodedPairs) -> dict[str, list[str]]:
    return {
        name: [
            render_in_style(findings, DEFAULT_STYLE, one.comparisons[at] if one.comparisons else None).text
            for at, findings in enumerate(one.findings)
        ]
        for name, one in questions(encoded).items()
    }


def test_each_question_shows_what_it_says_and_knows_its_truth(truth: EncodedPairs) -> None:
    asked = questions(truth)
    assert list(asked) == CONTROLS
    shown = {name: one.tokens[:, :, 0, 0].int().tolist() for name, one in asked.items()}
    assert shown["report"][3] == [6, 7] and shown["swapped"][3] == [7, 6] and shown["same_scan_twice"][3] == [7, 7]
    assert shown["other_person"][3] == [18, 7] and shown["blank_baseline"][3] == [-1, 7] and shown["one_scan"][3] == [7]
    assert asked["swapped"].findings == truth.baseline and asked["one_scan"].comparisons is None
    comparisons = {name: list(one.comparisons or ()) for name, one in asked.items()}
    there, back = comparisons["report"], comparisons["swapped"]
    assert [len(one.changes) for one in there] == [len(one.changes) for one in back]
    for one, other in zip(there, back, strict=True):
        for change, reverse in zip(one.changes, other.changes, strict=True):
            assert (change.before, change.after) == (reverse.after, reverse.before)
            assert (change.kind is ChangeKind.NEW) is (reverse.kind is ChangeKind.GONE)
    assert all(not one.same_head and not one.changes for one in comparisons["other_person"])
    for one, findings in zip(comparisons["same_scan_twice"], truth.findings, strict=True):
        assert one.same_head and [change.after for change in one.changes] == list(findings)
        assert {change.kind for change in one.changes} <= {ChangeKind.UNCHANGED}


def test_perfect_texts_score_one_in_every_column(truth: EncodedPairs) -> None:
    scored = score_answers(questions(truth), perfect(truth))
    for name, answers in scored.answers.items():
        assert answers.findings["finding_f1"] == answers.findings["full_finding_f1"] == 1.0, name
        if answers.changes is not None:
            assert answers.changes["kinds_right"] == (None if name == "other_person" else 1.0), name
            assert answers.changes["compared"] == 1.0 and not answers.changes["made_up_no_change"], name
            assert (answers.changes["size_change_mae_mm"] or 0.0) <= 1.0, name
    other = scored.answers["other_person"].changes
    assert other is not None and (other["different_heads_said"], other["made_up_other_person"]) == (1.0, 0.0)
    assert scored.metadata["reversed_share"] == 1.0


def test_a_report_that_ignores_the_order_is_exposed(truth: EncodedPairs) -> None:
    texts = perfect(truth)
    scored = score_answers(questions(truth), texts | {"swapped": texts["report"]})
    swapped = scored.answers["swapped"].changes
    assert swapped is not None and swapped["moved_kinds_right"] == 0.0
    assert scored.metadata["reversed_share"] == 0.0


def test_a_failed_pair_has_an_empty_report_and_is_counted(truth: EncodedPairs) -> None:
    failed = EncodedPairs(
        truth.baseline, truth.findings, truth.comparisons, truth.tokens[1:], truth.blank, heads=1, failed={0: "cropped"}
    )
    assert failed.of_all(["a"] * 11) == ["", *["a"] * 11]
    asked = questions(failed)
    assert len(asked["other_person"].tokens) == 11 and len(asked["report"].findings) == 12


@pytest.fixture(scope="module")
def opened():
    return neuroflamingo.load("tiny-t1w", device="cpu")


@pytest.mark.slow
def test_the_command_prints_table_and_json_with_all_controls(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    command = ["evaluate", "--longitudinal", "--cases", "2", "--seed", str(TEST_SEED), "-q", "-d", "cpu"]
    assert main([*command, "--json", "--csv", str(tmp_path / "pairs.csv")]) == 0
    out = json.loads(capsys.readouterr().out)
    assert list(out)[: len(CONTROLS)] == CONTROLS and set(out["report"]["findings"]) == set(KEYS)
    assert out["one_scan"]["changes"] is None and out["about"]["cases"] == 2 and out["about"]["heads"] == 1
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) > 2
    assert main(["evaluate", "--longitudinal", "--scans", "truth.json"]) == 2


def test_the_table_has_all_controls_and_says_what_one_head_cannot_show(truth: EncodedPairs) -> None:
    scored = score_answers(questions(truth), perfect(truth))
    told = FollowUpEvaluation(scored.answers, {"heads": 1, "cases": 12, "failed_preparations": [(60, "cropped")]})
    table = told.table()
    for column in ("swapped", "other person", "same scan twice", "blank baseline", "one scan", "95 %"):
        assert column in table.splitlines()[0]
    assert "another warp" in table and "| 1 of 12 |" in table
    assert "another warp" not in FollowUpEvaluation(scored.answers, {"heads": 2, "cases": 12}).table()


def test_one_pair_is_no_evaluation(opened) -> None:
    with pytest.raises(UsageError, match="two pairs"):
        evaluate_follow_ups(*opened, cases=1)
