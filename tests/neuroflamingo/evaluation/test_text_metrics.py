"""Word overlap: known values, and a clear message where its packages are missing."""

from __future__ import annotations

import sys

import pytest

from neuroflamingo.evaluation.text_metrics import bleu4, rouge_l, text_overlap
from neuroflamingo_preprocessing.errors import UsageError


def test_known_values() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    text = "there is a mass in the left frontal lobe"
    assert text_overlap([text], [text]) == {"bleu4": pytest.approx(1.0), "rouge_l": pytest.approx(1.0)}
    assert rouge_l(["a b c d"], ["a c d e"]) == pytest.approx(0.75)
    assert bleu4([text, text], [text, "nothing of the kind"]) < 0.9
    assert text_overlap([], []) == {"bleu4": 0.0, "rouge_l": 0.0}


@pytest.mark.parametrize(("module", "call"), [("sacrebleu", bleu4), ("rouge_score.rouge_scorer", rouge_l)])
def test_missing_package(monkeypatch: pytest.MonkeyPatch, module: str, call: object) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"neuroflamingo\[eval\]"):
        call(["a"], ["a"])  # type: ignore[operator]
