"""`evaluate_manifest`: a model's answers to a test manifest, scored, and whether they depend on the scans."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.data.manifest_answers import Answers, AnswerSettings, Control, can_mirror, write_answers
from neuroflamingo.evaluation.reliance_audit import AuditCase, RelianceAudit, others_of
from neuroflamingo.evaluation.report_texts import NamedText
from neuroflamingo.evaluation.text_scores import TextScores, score_texts
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.data.manifest import Sample
    from neuroflamingo.inference.loaded_model import LoadedModel


@dataclass(frozen=True)
class ManifestEvaluation:
    """Scores of a model on a manifest.

    Attributes:
        scores: of all answers, by their findings and words; what has no answer counts as an empty one.
        questions: exact match and token F1 of answers to questions; empty without conversations.
        reliance: answers on empty and mirrored scans and of other persons; None with scans of one person only.
        references: by id.
        failed: why there is no answer to some.
    """

    scores: TextScores
    questions: dict[str, float]
    reliance: RelianceAudit | None
    references: dict[str, NamedText]
    failed: dict[str, str]
    about: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data: all scores, questions, reliance, failures."""
        reliance = self.reliance.to_json() if self.reliance else None
        out = self.scores.to_json() | {"questions": self.questions, "reliance": reliance}
        return out | {"failed": self.failed, "about": self.about}


def evaluate_manifest(
    opened: LoadedModel,
    samples: Sequence[Sample],
    folder: str | Path,
    settings: AnswerSettings,
    *,
    words: bool = True,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> ManifestEvaluation:
    """Score a model on the samples of a manifest.

    Args:
        opened: the loaded model.
        samples: of `read_manifest`, each with an answer. Known `findings` are the truth instead of its text.
        folder: gets `own.jsonl`, `blank.jsonl` and, if heads of the model can be mirrored, `mirrored.jsonl`, see
            `write_answers`; a rerun goes on there.
        settings: see `AnswerSettings`.
        words: count word overlap too.
        overwrite: replace files there that are no answers.
        progress: called with what is done, how many, and of how many.

    Raises:
        NeuroFlamingoError: see `write_answers` and `score_texts`.
        UsageError: not one sample got an answer.
    """
    controls: tuple[Control, ...] = ("own", "blank", "mirrored") if can_mirror(opened, settings) else ("own", "blank")
    outputs: dict[Control, str | Path] = {name: Path(folder) / f"{name}.jsonl" for name in controls}
    found = write_answers(opened, samples, outputs, settings, overwrite=overwrite, progress=progress)
    texts, failed = found["own"].texts, found["own"].failed
    if not texts:
        raise UsageError("not one sample got an answer", seen=next(iter(failed.values()), "no samples")[:500])
    references = {one.id: NamedText(one.id, one.answers[-1], one.findings, one.subject) for one in samples}
    given = [NamedText(one.id, texts.get(one.id, "")) for one in samples]
    return ManifestEvaluation(
        score_texts(references, given, words=words),
        _questions(samples, texts),
        _reliance([one for one in samples if one.scans], references, found),
        references,
        failed,
    )


def _reliance(
    samples: Sequence[Sample], references: dict[str, NamedText], found: dict[Control, Answers]
) -> RelianceAudit | None:
    """The audit of the answers; a scan is shown as a tensor, which no name goes with."""
    cases = [AuditCase(one.id, Path(one.scans[0]), one.subject or one.id, references[one.id]) for one in samples]
    if len({case.person for case in cases}) < 2:
        return None
    texts: dict[str, dict[str, str]] = {"mirrored": {}}
    for control, answers in found.items():
        texts[control] = {case.id: answers.texts[case.id] for case in cases if case.id in answers.texts}
    texts["renamed"] = texts["own"]
    return RelianceAudit(tuple(cases), texts, {"own": found["own"].failed}, others_of(cases))


def _questions(samples: Sequence[Sample], texts: dict[str, str]) -> dict[str, float]:
    """Exact match and token F1 of the answers to last questions, without case and punctuation."""
    pairs = [(_tokens(one.answers[-1]), _tokens(texts.get(one.id, ""))) for one in samples if one.turns]
    if not pairs:
        return {}
    return {
        "questions": float(len(pairs)),
        "exact_match": sum(true == said for true, said in pairs) / len(pairs),
        "token_f1": sum(_token_f1(true, said) for true, said in pairs) / len(pairs),
    }


def _tokens(text: str) -> list[str]:
    return re.sub(f"[{re.escape(string.punctuation)}]", " ", text.lower()).split()


def _token_f1(true: list[str], said: list[str]) -> float:
    shared = sum((Counter(true) & Counter(said)).values())
    return 2 * shared / (len(true) + len(said)) if true or said else 1.0
