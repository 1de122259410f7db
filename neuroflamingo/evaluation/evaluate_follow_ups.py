"""`evaluate --longitudinal`: score a model on unseen painted follow-ups, with controls that show what it compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neuroflamingo.evaluation.change_scores import ChangeScores, reversed_share, score_changes
from neuroflamingo.evaluation.evaluate import BATCH, KEYS, TEST_SEED, run_facts, shown
from neuroflamingo.evaluation.follow_up_cases import EncodedPairs, encode_pairs, pairs_to_paint
from neuroflamingo.evaluation.greedy import write_greedily
from neuroflamingo.evaluation.scoring import Scores, score_reports
from neuroflamingo.findings.changes import Change, ChangeKind, Comparison, reverse_changes
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor

REPORT = "report"


@dataclass(frozen=True)
class Question:
    """One way of showing the pairs to the model, and what is true then.

    Attributes:
        tokens: of the prepared pairs, `[pair, scan, token, width]`.
        findings: of the last scan, of all pairs.
        comparisons: what changed; None where one scan is shown.
    """

    tokens: Float[Tensor, "pair scan token width"]
    findings: Sequence[tuple[Finding, ...]]
    comparisons: Sequence[Comparison] | None


@dataclass(frozen=True)
class Answers:
    """Scores of the reports to one question: of their findings, and of the changes that they state."""

    findings: Scores
    changes: ChangeScores | None


@dataclass(frozen=True)
class FollowUpEvaluation:
    """Scores of one model on pairs of scans.

    Attributes:
        answers: by question, see `questions`; the first is the report on baseline and follow-up.
        metadata: model, seeds, anatomy, device, seconds, failures.
    """

    answers: Mapping[str, Answers]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[tuple[int, str]]:
        """Seed and message of the pairs that could not be prepared; their reports count as empty ones."""
        return self.metadata.get("failed_preparations", [])

    def to_json(self) -> dict[str, Any]:
        """By question the published figures of findings, and those of changes; intervals of the report; facts."""
        out: dict[str, Any] = {}
        for name, answers in self.answers.items():
            out[name] = {"findings": {key: answers.findings[key] for key in KEYS}}
            out[name]["changes"] = dict(answers.changes.values) if answers.changes else None
        report = self.answers[REPORT]
        assert report.changes is not None
        bounds = {
            "findings": {key: report.findings.intervals[key] for key in KEYS},
            "changes": report.changes.intervals,
        }
        return out | {"intervals": bounds, "about": self.metadata}

    def write_csv(self, path: str | Path) -> None:
        """Write one row per pair: the findings and text of its report."""
        self.answers[REPORT].findings.write_csv(path)

    def table(self) -> str:
        """Markdown table of the figures by question, the report's with 95 % intervals."""
        heads = ["figure", REPORT, "95 %", *(name.replace("_", " ") for name in self.answers if name != REPORT)]
        lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
        changes = {name: one.changes for name, one in self.answers.items()}
        findings = {name: one.findings for name, one in self.answers.items()}
        report = changes[REPORT]
        assert report is not None
        lines += [self._row(f"changes: {key.replace('_', ' ')}", key, changes) for key in report.values]
        lines += [self._row(f"findings: {key}", key, findings) for key in KEYS]
        turned = shown(self.metadata.get("reversed_share"))
        empty = [""] * (len(heads) - 2)
        lines.append(" | ".join(["stated changes that are reversed in swapped order", turned, *empty]))
        if self.failed:
            count = f"{len(self.failed)} of {self.metadata['cases']}"
            lines.append(" | ".join(["pairs not prepared, scored as empty reports", count, *empty]))
        return "\n".join([*(f"| {line} |" for line in lines), *self._notes()])

    @staticmethod
    def _row(title: str, key: str, columns: Mapping[str, Scores | ChangeScores | None]) -> str:
        report = columns[REPORT]
        assert report is not None
        bounds = report.intervals[key]
        span = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
        others = [shown(one.values[key]) if one else "" for name, one in columns.items() if name != REPORT]
        return " | ".join([title, shown(report.values[key]), span, *others])

    def _notes(self) -> list[str]:
        if self.metadata.get("heads", 2) > 1:
            return []
        return [
            "",
            "All pairs are painted into one head: the other person is another warp of it, and no pair truly shows two "
            "people. A folder of heads (--anatomy FOLDER) tells more.",
        ]


def questions(encoded: EncodedPairs) -> dict[str, Question]:
    """The prompts by name: baseline and follow-up, five controls, and the follow-up alone.

    - `swapped`: the follow-up first: every change is reversed, and the findings are the baseline's.
    - `other_person`: the baseline of a pair half of all pairs further on, with several heads of another head.
    - `same_scan_twice`: nothing has changed.
    - `blank_baseline`: an empty scan first; what is right about the changes then is guessed from the follow-up.
    - `one_scan`: the follow-up alone, in the prompt for one scan.
    """
    first, last = encoded.tokens[:, :1], encoded.tokens[:, 1:]
    truth, comparisons = encoded.findings, encoded.comparisons
    reverse = [one.model_copy(update={"changes": reverse_changes(one.changes)}) for one in comparisons]
    same = [
        Comparison(
            same_head=True,
            changes=tuple(Change(kind=ChangeKind.UNCHANGED, before=one, after=one) for one in findings),
        )
        for findings in truth
    ]
    other, blank = first.roll(max(1, len(first) // 2), 0), encoded.blank.expand_as(first)
    return {
        REPORT: Question(encoded.tokens, truth, comparisons),
        "swapped": Question(torch.cat([last, first], 1), encoded.baseline, reverse),
        "other_person": Question(torch.cat([other, last], 1), truth, [Comparison(same_head=False)] * len(truth)),
        "same_scan_twice": Question(torch.cat([last, last], 1), truth, same),
        "blank_baseline": Question(torch.cat([blank, last], 1), truth, comparisons),
        "one_scan": Question(last, truth, None),
    }


def score_answers(asked: Mapping[str, Question], texts: Mapping[str, Sequence[str]]) -> FollowUpEvaluation:
    """Score the texts written to each question, one for each pair; `reversed_share` is kept among the facts."""
    answers = {}
    for name, question in asked.items():
        changes = None if question.comparisons is None else score_changes(question.comparisons, texts[name])
        answers[name] = Answers(score_reports(question.findings, texts[name]), changes)
    return FollowUpEvaluation(answers, {"reversed_share": reversed_share(texts[REPORT], texts["swapped"])})


def write_answers(
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    tokens: Float[Tensor, "pair scan token width"],
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Generate greedy reports after one `<image>` for each scan, also with a model that was not trained for it."""
    prompt = IMAGE * tokens.shape[1]
    return write_greedily(model, processor.tokenizer, prompt, tokens, batch=BATCH, progress=progress)


def evaluate_follow_ups(
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    cases: int = 200,
    seed: int = TEST_SEED,
    *,
    anatomy: str = "icbm2009a",
    outlines: str | None = None,
    processes: int | None = None,
    keep: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    metadata: dict[str, Any] | None = None,
) -> FollowUpEvaluation:
    """Paint unseen pairs with seeds from `seed` on, prepare them like real scans and score the greedy reports.

    A model that was not trained for follow-ups is asked all the same: the figures show what it does.

    Args:
        anatomy, outlines: see `follow_up_cases.pairs_to_paint`.
        progress: called with (part, done, all).

    Raises:
        UsageError: the model has no encoder, or fewer than two pairs (another person's scan is needed).
        ModelError, ScanError: see `encode_pairs`.
    """
    if model.encoder is None:
        raise UsageError("the model has no encoder", expected="a model that takes scans", hint="evaluate another model")
    if cases < 2:
        raise UsageError("an evaluation needs at least two pairs", expected="2 or more", seen=str(cases))
    began = time.perf_counter()
    said = progress or (lambda part, done, total: None)
    seeds = range(seed, seed + cases)
    encoded = encode_pairs(
        pairs_to_paint(seeds, anatomy, outlines),
        model.encoder,  # pyright: ignore[reportArgumentType]
        processes=processes,
        keep=keep,
        progress=lambda done, total: said("scans", done, total),
    )
    asked = questions(encoded)
    texts = {
        name: encoded.of_all(
            write_answers(model, processor, one.tokens, lambda d, n, name=name: said(name.replace("_", " "), d, n))
        )
        for name, one in asked.items()
    }
    result = score_answers(asked, texts)
    facts = run_facts(model, seeds, anatomy, outlines, encoded.failed, began)
    result.metadata.update(facts | {"heads": encoded.heads} | (metadata or {}))
    return result
