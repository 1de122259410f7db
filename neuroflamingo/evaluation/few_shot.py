"""`evaluate_few_shot`: reports after examples of scan and report, on painted cases, with their controls.

The examples of a case are other cases of the same evaluation, with reports of their true findings in one house style.
Three questions are asked: is the report in the style of its examples; are its findings those of its own scan, as
without examples; and does anything of an example's scan reach it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroflamingo.evaluation.evaluate import TEST_SEED, run_facts
from neuroflamingo.evaluation.greedy import write_greedily
from neuroflamingo.evaluation.painted_cases import EncodedCases, encode_cases, scans_to_paint
from neuroflamingo.evaluation.scoring import Scores, score_reports
from neuroflamingo.evaluation.style_scores import follows_style, leaked
from neuroflamingo.findings.house_styles import TRAINED_STYLES, UNSEEN_STYLES, HouseStyle, render_in_style
from neuroflamingo.findings.parsing import parse_report, place_key
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo_preprocessing.errors import UsageError

if TYPE_CHECKING:
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor

BATCH = 16
FIGURES = ("finding_f1", "full_finding_f1", "laterality_accuracy", "hallucination_on_normals")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FewShotEvaluation:
    """Figures of reports after examples.

    Attributes:
        alone: reports without examples.
        trained, unseen: reports after examples in styles that training shows, and in those that it never shows.
        figures: `style_trained`, `style_unseen`: share of reports in their examples' style; `leaks`: share with a
            finding of an example that is not their own; `same_findings_blank`, `same_findings_exchanged`: share with
            the same findings when the examples' scans are blank or exchanged.
        metadata: how it was measured.
    """

    alone: Scores
    trained: Scores
    unseen: Scores
    figures: dict[str, float]
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """All figures, under the names of the table."""
        columns = {"alone": self.alone, "trained_styles": self.trained, "unseen_styles": self.unseen}
        scores = {name: {key: one[key] for key in FIGURES} for name, one in columns.items()}
        return {**self.figures, **scores, "about": self.metadata}

    def write_csv(self, path: str | Path) -> None:
        """Write one row per case of the reports after examples."""
        self.trained.write_csv(path)

    @property
    def failed(self) -> list[tuple[int, str]]:
        """Seed and message of the cases that could not be prepared; they are left out."""
        return self.metadata.get("failed_preparations", [])

    def table(self) -> str:
        """Markdown table."""
        rows = [("figure", "no example", "trained styles", "unseen styles"), ("---",) * 4]
        for key in FIGURES:
            rows.append((key, *(_figure(one[key]) for one in (self.alone, self.trained, self.unseen))))
        rows.append(
            ("in the examples' style", "", *(_figure(self.figures[f"style_{s}"]) for s in ("trained", "unseen")))
        )
        rows += [(key.replace("_", " "), "", _figure(self.figures[key]), "") for key in CONTROLS]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


CONTROLS = ("leaks", "same_findings_blank", "same_findings_exchanged")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def evaluate_few_shot(
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    examples: int = 2,
    cases: int = 200,
    seed: int = TEST_SEED,
    *,
    anatomy: str = "icbm2009a",
    outlines: str | None = None,
    processes: int | None = None,
    keep: str | Path | None = None,
    progress: Progress | None = None,
    metadata: dict[str, Any] | None = None,
) -> FewShotEvaluation:
    """Paint unseen cases, and score the reports that follow examples.

    Args:
        model: with an encoder.
        processor: of the model.
        examples: number of examples before each scan.
        cases, seed, anatomy, outlines, processes, keep: see `evaluate`.
        progress: called with (part, done, all).
        metadata: added to what the result says about itself.

    Raises:
        UsageError: the model has no encoder, or there are fewer cases than a case and its examples.
        ModelError, ScanError: see `encode_cases`.
    """
    if model.encoder is None:
        raise UsageError("the model has no encoder", expected="a model that takes scans", hint="evaluate another model")
    if examples < 1 or cases < 2 * (examples + 1):
        least = 2 * (examples + 1)
        raise UsageError("too few cases for the examples", expected=f"1 or more examples, {least} or more cases")
    began, said = time.perf_counter(), progress or (lambda part, done, total: None)
    seeds = range(seed, seed + cases)
    encoded = encode_cases(
        scans_to_paint(seeds, anatomy, outlines),
        model.encoder,  # pyright: ignore[reportArgumentType]
        processes=processes,
        keep=keep,
        progress=lambda done, total: said("scans", done, total),
    )
    result = score_few_shot(model, processor, encoded, examples, progress=said)
    facts = run_facts(model, seeds, anatomy, outlines, encoded.failed, began)
    result.metadata.update(facts | {"examples": examples} | (metadata or {}))
    return result


def score_few_shot(
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    encoded: EncodedCases,
    examples: int,
    *,
    progress: Progress | None = None,
) -> FewShotEvaluation:
    """Generate and score the reports of encoded cases with and without examples; failed ones are left out."""
    truth = [findings for number, findings in enumerate(encoded.truth) if number not in encoded.failed]
    tokens, count = encoded.plain, len(truth)
    places = [[(case + 1 + n) % count for n in range(examples)] for case in range(count)]

    def write(part: str, prompts: Sequence[str], scans: Tensor) -> list[str]:
        said = None if progress is None else partial(progress, part)
        return write_greedily(model, processor.tokenizer, prompts, scans, batch=BATCH, progress=said)

    def after(part: str, styles: Sequence[HouseStyle], shown: Tensor) -> list[str]:
        prompts = [_prompt([truth[n] for n in places[case]], styles[case % len(styles)]) for case in range(count)]
        return write(part, prompts, torch.cat([shown, tokens], dim=1))

    own = torch.stack([tokens[row, 0] for row in places])
    alone = write("reports without examples", [IMAGE] * count, tokens)
    trained = after("reports after examples", TRAINED_STYLES, own)
    unseen = after("reports in unseen styles", UNSEEN_STYLES, own)
    blank = after("examples with blank scans", TRAINED_STYLES, encoded.blank.expand_as(own))
    exchanged = after("examples with other scans", TRAINED_STYLES, own.roll(count // 2, dims=0))
    seen = [[truth[n] for n in row] for row in places]
    figures = {
        "style_trained": _in_style(trained, TRAINED_STYLES, seen),
        "style_unseen": _in_style(unseen, UNSEEN_STYLES, seen),
        "leaks": _share(
            leaked(text, truth[case], [f for n in places[case] for f in truth[n]]) for case, text in enumerate(trained)
        ),
        "same_findings_blank": _same_findings(trained, blank),
        "same_findings_exchanged": _same_findings(trained, exchanged),
    }
    return FewShotEvaluation(
        score_reports(truth, alone), score_reports(truth, trained), score_reports(truth, unseen), figures
    )


def _prompt(examples: Sequence[Sequence[Finding]], style: HouseStyle) -> str:
    shown = (f"{IMAGE}{render_in_style(findings, style).text}{END_OF_CHUNK}" for findings in examples)
    return "".join(shown) + IMAGE


def _in_style(
    texts: Sequence[str], styles: Sequence[HouseStyle], examples: Sequence[Sequence[Sequence[Finding]]]
) -> float:
    """Share of reports in the style of their examples, as far as those show it."""
    return _share(follows_style(text, styles[case % len(styles)], examples[case]) for case, text in enumerate(texts))


def _same_findings(texts: Sequence[str], others: Sequence[str]) -> float:
    """Share of reports with the same classes, sides and regions."""
    return _share(_places(one) == _places(other) for one, other in zip(texts, others, strict=True))


def _places(text: str) -> list[tuple[str, str, str]]:
    return sorted(map(place_key, parse_report(text).findings))


def _share(answers: Any) -> float:
    given = list(answers)
    return sum(given) / len(given) if given else 0.0
