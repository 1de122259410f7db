"""Scores of reports after examples: of a perfect writer, of one that copies its example, of one deaf to style."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuroflamingo.cli import main
from neuroflamingo.evaluation import few_shot
from neuroflamingo.evaluation.few_shot import FewShotEvaluation, evaluate_few_shot, score_few_shot
from neuroflamingo.evaluation.painted_cases import EncodedCases
from neuroflamingo.findings.house_styles import DEFAULT_STYLE, TRAINED_STYLES, UNSEEN_STYLES, render_in_style
from neuroflamingo.findings.vocabulary import FOCAL, LOBES, SIGNAL_OF, Finding
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.errors import UsageError

CASES = 24
TRUTH = [
    (
        Finding(
            kind=FOCAL[n % 3],
            side=("left", "right")[n // 12],
            region=LOBES[n // 3 % 4],
            size_mm=10.0 + n,
            signal=SIGNAL_OF[FOCAL[n % 3]],
        ),
    )  # type: ignore[arg-type]
    for n in range(CASES)
]
Writer = Callable[[list[str], torch.Tensor], str]


def evaluation(writer: Writer, monkeypatch: pytest.MonkeyPatch, examples: int = 2) -> FewShotEvaluation:
    """Scores of a writer that is given a prompt's parts (reports of examples, then nothing) and its scans' numbers."""

    def write(model: Any, tokenizer: Any, prompts: Sequence[str], tokens: Any, **_: Any) -> list[str]:
        assert all(prompt.count(IMAGE) == tokens.shape[1] for prompt in prompts)
        return [
            writer(p.replace(IMAGE, "").split(END_OF_CHUNK), t[:, 0, 0]) for p, t in zip(prompts, tokens, strict=True)
        ]

    monkeypatch.setattr(few_shot, "write_greedily", write)
    numbers = torch.arange(CASES, dtype=torch.float32)[:, None, None, None]
    truth = [TRUTH[0], *TRUTH]  # the first one could not be prepared
    encoded = EncodedCases(
        truth, [(True,)] * 25, [{}] * 25, numbers, numbers, torch.full((1, 1, 1), -1.0), {0: "no brain"}
    )
    processor: Any = SimpleNamespace(tokenizer=None)
    return score_few_shot(processor, processor, encoded, examples)


def style_of(parts: list[str]) -> Any:
    """The style of the first example, found by what it says."""
    if len(parts) == 1:
        return DEFAULT_STYLE
    for style in (*TRAINED_STYLES, *UNSEEN_STYLES):
        if any(render_in_style(findings, style).text == parts[0] for findings in TRUTH):
            return style
    raise AssertionError(parts[0])


def test_a_perfect_writer_scores_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def perfect(parts: list[str], scans: torch.Tensor) -> str:
        assert len(set(parts)) == len(parts) and all(parts[:-1])
        return render_in_style(TRUTH[int(scans[-1])], style_of(parts)).text

    found = evaluation(perfect, monkeypatch)
    assert found.figures == {
        "style_trained": 1.0,
        "style_unseen": 1.0,
        "leaks": 0.0,
        "same_findings_blank": 1.0,
        "same_findings_exchanged": 1.0,
    }
    for scores in (found.alone, found.trained, found.unseen):
        assert scores["finding_f1"] == scores["full_finding_f1"] == 1.0
    assert "| in the examples' style |  | 1.000 | 1.000 |" in found.table()
    assert found.to_json()["trained_styles"]["finding_f1"] == 1.0 and found.to_json()["leaks"] == 0.0


def test_a_writer_that_copies_its_example_has_its_style_and_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluation(lambda parts, scans: parts[-2] if len(parts) > 1 else "", monkeypatch)
    assert found.figures["style_trained"] == 1.0 and found.figures["leaks"] == 1.0
    assert (found.trained["full_finding_f1"] or 0.0) < 0.2


def test_a_writer_that_is_deaf_to_style(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluation(lambda parts, scans: render_in_style(TRUTH[int(scans[-1])], DEFAULT_STYLE).text, monkeypatch)
    assert found.figures["style_unseen"] == 0.0 and found.figures["style_trained"] < 0.2
    assert found.trained["finding_f1"] == 1.0


def test_scans_of_examples_are_blanked_and_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that describes the scan of its first example loses its findings with it."""
    found = evaluation(
        lambda parts, scans: "" if scans[0] < 0 else render_in_style(TRUTH[int(scans[0])], style_of(parts)).text,
        monkeypatch,
        examples=1,
    )
    assert found.figures["same_findings_blank"] == 0.0 and found.figures["same_findings_exchanged"] == 0.0
    assert found.figures["leaks"] == 1.0


def test_too_few_cases_and_a_model_without_encoder() -> None:
    processor: Any = SimpleNamespace(encoder=None)
    with pytest.raises(UsageError, match="no encoder"):
        evaluate_few_shot(processor, processor)
    processor.encoder = "one"
    for examples, cases in ((2, 5), (0, 100)):
        with pytest.raises(UsageError, match="too few cases"):
            evaluate_few_shot(processor, processor, examples, cases)


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--few-shot", "1", "--cases", "4", "-q", "-d", "cpu"]
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["about"]["examples"] == 1 and figures["about"]["cases"] == 4 and 0 <= figures["style_trained"] <= 1
    assert main([*command, "--longitudinal"]) == 2 and "two evaluations" in capsys.readouterr().err
    assert main([*command, "--scans", "truth.json"]) == 2 and "--few-shot" in capsys.readouterr().err
