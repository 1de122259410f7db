"""Word overlap of pairs: published values, equality with the packages, and what adds up."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from neuroflamingo.evaluation.text_metrics import bleu4, rouge_l
from neuroflamingo.evaluation.word_overlap import WordOverlap
from neuroflamingo_preprocessing.errors import UsageError

REFERENCES = (
    "there is a mass in the left frontal lobe",
    "no mass no infarct the ventricles are normal",
    "old infarct of the right temporal lobe with mild white matter disease",
    "a 20 mm mass in the left temporal lobe",
)
TEXTS = (
    "there is a mass in the right frontal lobe",
    "no mass the ventricles are mildly enlarged",
    "old infarct of the right temporal lobe with mild white matter disease",
    "normal brain",
)


def test_cider_is_that_of_the_published_code() -> None:
    """Values of pycocoevalcap 1.2 (`Cider().compute_score`) on these lower-case words."""
    overlap = WordOverlap(REFERENCES)
    each = [overlap.pair(*pair)[-1] for pair in zip(REFERENCES, TEXTS, strict=True)]
    assert each == pytest.approx([6.699748702278619, 3.2351299724912375, 10.0, 0.0])
    total = sum(overlap.pair(*pair) for pair in zip(REFERENCES, TEXTS, strict=True))
    assert overlap.figures(np.asarray(total))["cider_d"] == pytest.approx(4.983719668692464)


def test_meteor_is_that_of_the_published_example() -> None:
    """The example of nltk's `single_meteor_score` is .6944 there too, since no synonym takes part in it."""
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    text = "It is a guide to action which ensures that the military always obeys the commands of the party"
    overlap = WordOverlap([reference])
    assert overlap.figures(overlap.pair(reference, text))["meteor_stem"] == pytest.approx(0.6944, abs=5e-5)


def test_stems_count_in_one_meteor_only() -> None:
    overlap = WordOverlap(["enlarged ventricles"])
    figures = overlap.figures(overlap.pair("enlarged ventricles", "enlarging ventricle"))
    assert figures["meteor_exact"] == 0.0 and figures["meteor_stem"] == pytest.approx(0.9375)


def test_bleu_and_rouge_are_those_of_the_packages() -> None:
    draw = random.Random(3)
    words = [f"w{number}" for number in range(30)] + ["No", "3.4", "left,", "lobe."]
    references = [" ".join(draw.choices(words, k=draw.randrange(1, 90))) for _ in range(40)]
    texts = [" ".join(draw.choices(words, k=draw.randrange(0, 90))) for _ in range(40)]
    overlap = WordOverlap(references)
    rows = [overlap.pair(*pair) for pair in zip(references, texts, strict=True)]
    figures = overlap.figures(np.sum(rows, axis=0))
    assert figures["bleu4"] == pytest.approx(bleu4(references, texts))
    assert figures["rouge_l"] == pytest.approx(rouge_l(references, texts))
    for row, reference, text in zip(rows, references, texts, strict=True):
        assert overlap.figures(row)["rouge_l"] == pytest.approx(rouge_l([reference], [text]))
        assert overlap.figures(row)["bleu4"] == pytest.approx(bleu4([reference], [text]))


def test_nothing_has_no_figures_and_one_pair_no_cider() -> None:
    overlap = WordOverlap(["a mass"])
    assert set(overlap.figures(np.zeros(15)).values()) == {None}
    figures = overlap.figures(overlap.pair("a mass", ""))
    assert figures == {"bleu4": 0.0, "rouge_l": 0.0, "meteor_exact": 0.0, "meteor_stem": 0.0, "cider_d": None}
    assert WordOverlap([]).figures(np.zeros(15))["bleu4"] is None


def test_a_long_text_takes_no_time_that_grows_with_the_square() -> None:
    long = "no mass in the left frontal lobe " * 2_000
    overlap = WordOverlap([long])
    assert overlap.figures(overlap.pair(long, long))["rouge_l"] == pytest.approx(1.0)


@pytest.mark.parametrize("module", ["sacrebleu.metrics", "rouge_score.tokenizers", "nltk.translate.meteor_score"])
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"neuroflamingo\[eval\]"):
        WordOverlap(["a"])
