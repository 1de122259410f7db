"""Word overlap of each pair of texts: BLEU-4, ROUGE-L, METEOR and CIDEr-D. Shown for comparison, never alone.

Each figure of a set of texts is a function of sums over its pairs, so that intervals come from drawing pairs again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo.evaluation.text_metrics import need

if TYPE_CHECKING:
    from jaxtyping import Float

WORDS = ("bleu4", "rouge_l", "meteor_exact", "meteor_stem", "cider_d")
"""The figures. BLEU-4 is that of the whole set; the others are means over the pairs."""
STATISTICS = 15
"""Columns of a pair: n-grams found and n-grams (four each), lengths (two), pairs, and the sums of the other figures."""
_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_PRIME = np.uint64(0x9E3779B97F4A7C15)
CIDER_SIGMA, CIDER_GRAMS = 6.0, 4


class WordOverlap:
    """Compares texts with their references.

    BLEU-4 is sacrebleu's (13a tokens, exponential smoothing), ROUGE-L has rouge-score's tokens without stemming. METEOR
    is nltk's, that of Lavie and Agarwal 2007 (alpha .9, beta 3, gamma .5) with equal words, and with equal Porter stems
    too: synonyms would need WordNet. CIDEr-D is that of Vedantam et al. 2015 (n-grams up to 4, sigma 6, times 10); its
    weights of n-grams come from the references at hand.

    Args:
        references: all reference texts of the set.

    Raises:
        UsageError: the packages of the extra `eval` are not installed.
    """

    def __init__(self, references: Iterable[str]) -> None:
        bleu, tokens = need("sacrebleu.metrics", "sacrebleu"), need("rouge_score.tokenizers", "rouge-score")
        self._meteor = need("nltk.translate.meteor_score", "nltk").single_meteor_score
        self._bleu = bleu.BLEU(effective_order=True)
        self._rouge_tokens = tokens.DefaultTokenizer(use_stemmer=False).tokenize
        self._vocabulary: dict[str, int] = {}
        self._documents = 0
        grams: list[np.ndarray] = []
        for text in references:
            self._documents += 1
            grams.append(np.unique(np.concatenate(self._grams(_tokens(text)))))
        joined = np.concatenate(grams) if grams else np.zeros(0, dtype=np.uint64)
        self._known, self._frequency = np.unique(joined, return_counts=True)

    def pair(self, reference: str, text: str) -> Float[np.ndarray, " statistic"]:
        """Statistics of one pair; they add up over pairs."""
        one = self._bleu.sentence_score(text, [reference])
        words, true = _tokens(text), _tokens(reference)
        rouge_l = _rouge_l(self._rouge_tokens(reference), self._rouge_tokens(text))
        meteor = [self._meteor(true, words, stemmer=stem, wordnet=_NoSynonyms) for stem in (_Whole, _Stems)]
        cider = self._cider(true, words)
        return np.array([*one.counts, *one.totals, one.sys_len, one.ref_len, 1.0, rouge_l, *meteor, cider])

    def figures(self, sums: Float[np.ndarray, " statistic"]) -> dict[str, float | None]:
        """The figures of summed statistics, from 0 to 1, CIDEr-D from 0 to 10; None for no pair.

        CIDEr-D of fewer than two references is None: nothing says which words are rare.
        """
        pairs = sums[10]
        if not pairs:
            return dict.fromkeys(WORDS)
        counts, totals = [int(n) for n in sums[:4]], [int(n) for n in sums[4:8]]
        bleu = self._bleu.compute_bleu(
            counts, totals, int(sums[8]), int(sums[9]), smooth_method="exp", effective_order=bool(pairs == 1)
        )
        rest = [float(value / pairs) for value in sums[11:]]
        return dict(zip(WORDS, [bleu.score / 100.0, *rest[:3], rest[3] if self._documents > 1 else None], strict=True))

    def _grams(self, words: list[str]) -> list[np.ndarray]:
        """Codes of the n-grams of 1 to 4 words, of which equal ones have equal codes."""
        ids = [self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in words]
        numbers = np.array(ids, dtype=np.uint64)
        found = []
        for length in range(1, CIDER_GRAMS + 1):
            count = max(0, len(numbers) - length + 1)
            codes = np.full(count, length, dtype=np.uint64)
            for at in range(length):
                codes = (codes ^ (codes >> np.uint64(29))) * _PRIME + numbers[at : at + count]
            found.append(codes)
        return found

    def _weights(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct n-grams and their TF-IDF weights."""
        distinct, times = np.unique(codes, return_counts=True)
        at = np.minimum(np.searchsorted(self._known, distinct), max(0, len(self._known) - 1))
        seen = np.where(self._known[at] == distinct, self._frequency[at], 1) if len(self._known) else 1
        return distinct, times * (math.log(max(1, self._documents)) - np.log(np.maximum(seen, 1)))

    def _cider(self, reference: list[str], words: list[str]) -> float:
        similarity = []
        for codes, true_codes in zip(self._grams(words), self._grams(reference), strict=True):
            (a, weights), (b, true_weights) = self._weights(codes), self._weights(true_codes)
            norms = float(np.linalg.norm(weights) * np.linalg.norm(true_weights))
            _, left, right = np.intersect1d(a, b, assume_unique=True, return_indices=True)
            clipped = np.minimum(weights[left], true_weights[right]) @ true_weights[right]
            similarity.append(float(clipped) / norms if norms else 0.0)
        apart = max(0, len(words) - 1) - max(0, len(reference) - 1)
        return 10.0 * math.exp(-(apart**2) / (2 * CIDER_SIGMA**2)) * sum(similarity) / CIDER_GRAMS


def _tokens(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _rouge_l(reference: list[str], words: list[str]) -> float:
    """F1 of the longest common subsequence, as rouge-score computes it in a time that grows with the lengths' product.

    One bit for each word of the reference, all of which a word of the text updates at once (Hyyrö,
    "Bit-parallel LCS-length computation revisited", 2004).
    """
    places: dict[str, int] = {}
    for at, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << at
    whole = (1 << len(reference)) - 1
    free = whole
    for word in words:
        taken = free & places.get(word, 0)
        free = ((free + taken) | (free - taken)) & whole
    length = len(reference) - free.bit_count()
    return 2 * length / (len(reference) + len(words)) if length else 0.0


class _NoSynonyms:
    """In the place of WordNet, which is not shipped: a word has no synonyms."""

    @staticmethod
    def synsets(_word: str) -> list[Any]:
        return []


class _Whole:
    """Words as they are."""

    @staticmethod
    def stem(word: str) -> str:
        return word


class _Stems:
    """Porter stems, each made once."""

    @staticmethod
    @cache
    def stem(word: str) -> str:
        return _porter().stem(word)


@cache
def _porter() -> Any:
    return need("nltk.stem.porter", "nltk").PorterStemmer()
