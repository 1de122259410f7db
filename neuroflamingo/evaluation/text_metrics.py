"""Word overlap, for comparison only: it rewards wrong reports (see docs/score.md)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from neuroflamingo_preprocessing.errors import UsageError


def need(module: str, package: str) -> ModuleType:
    """A module of the extra `eval`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"word overlap needs the package {package}",
            expected=f"an importable module {module}",
            seen=str(error),
            hint="pip install 'neuroflamingo[eval]'",
        ) from error


def bleu4(references: Sequence[str], texts: Sequence[str]) -> float:
    """Corpus BLEU-4 from 0 to 1 (sacrebleu: 13a tokens, exponential smoothing); for one pair it is sentence BLEU.

    Raises:
        UsageError: sacrebleu is not installed.
    """
    sacrebleu = need("sacrebleu", "sacrebleu")
    if len(texts) == 1:
        return sacrebleu.sentence_bleu(texts[0], [references[0]]).score / 100.0
    return sacrebleu.corpus_bleu(list(texts), [list(references)]).score / 100.0 if texts else 0.0


def rouge_l(references: Sequence[str], texts: Sequence[str]) -> float:
    """Mean ROUGE-L F1 from 0 to 1 (rouge-score, no stemming).

    Raises:
        UsageError: rouge-score is not installed.
    """
    scorer = need("rouge_score.rouge_scorer", "rouge-score").RougeScorer(["rougeL"], use_stemmer=False)
    scores = [scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(references, texts, strict=True)]
    return sum(scores) / len(scores) if scores else 0.0


def text_overlap(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Both metrics, as `bleu4` and `rouge_l`."""
    return {"bleu4": bleu4(references, texts), "rouge_l": rouge_l(references, texts)}
