"""Scoring of reports by their findings: parse, match with the truth, count.

Every metric is a ratio of sums of per-case counts, so that its bootstrap interval is one matrix product, and no metric
depends on wording: a paraphrase scores like the original, a swapped side does not. Definitions: docs/evaluate.md.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuroflamingo.evaluation.bootstrap import interval, resampled_sums
from neuroflamingo.evaluation.matching import match_findings
from neuroflamingo.findings.parsing import ParsedReport, parse_report
from neuroflamingo.findings.vocabulary import FOCAL, Finding, FindingClass, Side
from neuroflamingo_preprocessing.errors import UsageError
from neuroflamingo_preprocessing.files import write_text_atomic

_OPPOSITE = {Side.LEFT: Side.RIGHT, Side.RIGHT: Side.LEFT}
_PLACED = (*FOCAL, FindingClass.ATROPHY)
SIZE_TOLERANCE_MM, SIZE_TOLERANCE_SHARE = 3.0, 0.2
"""A size counts as correct within 3 mm or 20 %, whichever is more."""

METRICS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "finding_f1": ({"matched": 2}, {"true": 1, "predicted": 1}),
    "full_finding_f1": ({"placed_right": 2}, {"true": 1, "predicted": 1}),
    "laterality_accuracy": ({"side_right": 1}, {"lateralised": 1}),
    "wrong_side_rate": ({"side_opposite": 1}, {"lateralised": 1}),
    "region_accuracy": ({"region_right": 1}, {"placed": 1}),
    "size_mae_mm": ({"size_error": 1}, {"sized": 1}),
    "hallucination_on_normals": ({"normal_hallucinated": 1}, {"normal": 1}),
    "omission_rate": ({"missed": 1}, {"true": 1}),
    "parse_coverage": ({"coverage": 1}, {"texts": 1}),
    "finding_precision": ({"matched": 1}, {"predicted": 1}),
    "finding_recall": ({"matched": 1}, {"true": 1}),
    "detail_f1": ({"detail": 2}, {"true": 1, "predicted": 1}),
    "size_within_tolerance": ({"size_close": 1}, {"sized": 1}),
    "signal_accuracy": ({"signal_right": 1}, {"signalled": 1}),
    "grade_accuracy": ({"grade_right": 1}, {"graded": 1}),
    "certainty_accuracy": ({"certainty_right": 1}, {"matched": 1}),
    "hallucinations_per_case": ({"invented": 1}, {"cases": 1}),
    "impression_agreement": ({"agrees": 1}, {"texts": 1}),
    "contradiction_rate": ({"contradicts": 1}, {"texts": 1}),
    "false_negation_rate": ({"falsely_denied": 1}, {"deniable": 1}),
}
"""Each metric as weighted sums of per-case counts: numerator and denominator. The first nine are the published keys."""

CLASS_COUNTS = {kind: (f"matched {kind}", f"true {kind}", f"predicted {kind}") for kind in FindingClass}
COLUMNS = tuple(
    dict.fromkeys(
        [name for parts in METRICS.values() for part in parts for name in part]
        + [name for names in CLASS_COUNTS.values() for name in names]
    )
)


@dataclass(frozen=True)
class CaseScore:
    """Counts of one case (see `METRICS`) and the findings behind them."""

    counts: dict[str, float]
    truth: tuple[Finding, ...]
    predicted: tuple[Finding, ...]
    text: str | None = None


@dataclass(frozen=True)
class Scores:
    """All metrics of an evaluation.

    `values` and `intervals` (95 %) are keyed as `METRICS`; a metric whose denominator is zero is None. `by_class`
    holds precision, recall, F1 and the three counts of each class.
    """

    values: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]
    by_class: dict[str, dict[str, float | None]]
    cases: tuple[CaseScore, ...]

    def __getitem__(self, name: str) -> float | None:
        return self.values[name]

    @property
    def macro_f1(self) -> float | None:
        """Mean finding F1 over the classes that occur."""
        found = [row["f1"] for row in self.by_class.values() if row["f1"] is not None]
        return sum(found) / len(found) if found else None

    def to_json(self) -> dict[str, object]:
        """Flat dict of all metrics by key, followed by intervals, classes and the number of cases."""
        bounds = {name: None if pair is None else list(pair) for name, pair in self.intervals.items()}
        extra = {"macro_finding_f1": self.macro_f1, "cases": len(self.cases)}
        return {**self.values, **extra, "intervals": bounds, "by_class": self.by_class}

    def write_csv(self, path: str | Path, overwrite: bool = True) -> None:
        """Write one row per case: counts, truth, prediction and text; the file is written completely or not at all.

        Raises:
            OutputError: the file cannot be written, or exists and must not be replaced.
        """
        rows = [
            {"case": at, **case.counts, "true_findings": findings_line(case.truth)}
            | {"predicted_findings": findings_line(case.predicted), "text": case.text or ""}
            for at, case in enumerate(self.cases)
        ]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["case", *COLUMNS, "true_findings", "predicted_findings", "text"])
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomic(path, table.getvalue(), overwrite=overwrite)


def findings_line(findings: Sequence[Finding]) -> str:
    """Format findings on one line for the table."""
    words = []
    for f in findings:
        size, grade = f"{f.size_mm:g} mm" if f.size_mm is not None else "", f"grade {f.grade}" if f.grade else ""
        words.append(" ".join(str(part) for part in (f.side, f.region, f.kind, size, grade, f.signal) if part))
    return "; ".join(words)


def size_is_right(true_mm: float, predicted_mm: float | None) -> bool:
    """True within 3 mm or 20 % of the true size."""
    allowed = max(SIZE_TOLERANCE_MM, SIZE_TOLERANCE_SHARE * true_mm)
    return predicted_mm is not None and abs(true_mm - predicted_mm) <= allowed


def _detail(true: Finding, predicted: Finding) -> float:
    """Share of correct attributes among the class and all attributes that the true finding has."""
    checks = [True, true.certainty == predicted.certainty]
    checks += [predicted.side == true.side] if true.side else []
    checks += [predicted.region == true.region] if true.region else []
    checks += [size_is_right(true.size_mm, predicted.size_mm)] if true.size_mm is not None else []
    checks += [predicted.signal == true.signal] if true.signal else []
    checks += [predicted.grade == true.grade] if true.grade else []
    return sum(checks) / len(checks)


def _pair_counts(true: Finding, predicted: Finding) -> Counter[str]:
    """Contribution of one matched pair to the counts of its case."""
    counts: Counter[str] = Counter()
    counts["placed_right"] = int(true.side == predicted.side and true.region == predicted.region)
    counts["certainty_right"] = int(true.certainty == predicted.certainty)
    counts["detail"] = _detail(true, predicted)  # type: ignore[assignment]
    if true.side and true.side in _OPPOSITE:
        counts["lateralised"] = 1
        counts["side_right"] = int(predicted.side == true.side)
        counts["side_opposite"] = int(predicted.side == _OPPOSITE[true.side])
    if true.kind in _PLACED and true.region:
        counts["placed"], counts["region_right"] = 1, int(predicted.region == true.region)
    if true.size_mm is not None and predicted.size_mm is not None:
        counts["sized"], counts["size_error"] = 1, abs(true.size_mm - predicted.size_mm)  # type: ignore[assignment]
        counts["size_close"] = int(size_is_right(true.size_mm, predicted.size_mm))
    if true.signal:
        counts["signalled"], counts["signal_right"] = 1, int(predicted.signal == true.signal)
    if true.grade:
        counts["graded"], counts["grade_right"] = 1, int(predicted.grade == true.grade)
    return counts


def score_case(truth: Sequence[Finding], predicted: Sequence[Finding], parsed: ParsedReport | None = None) -> CaseScore:
    """Count one case; `parsed` adds the metrics of texts."""
    matching = match_findings(truth, predicted)
    counts: Counter[str] = Counter(cases=1, true=len(truth), predicted=len(predicted), matched=len(matching.pairs))
    counts.update(missed=len(matching.missed), invented=len(matching.invented))
    counts.update(normal=not truth, normal_hallucinated=not truth and bool(predicted))
    for row, column in matching.pairs:
        counts.update(_pair_counts(truth[row], predicted[column]))
        counts[f"matched {truth[row].kind}"] += 1
    counts.update(f"true {finding.kind}" for finding in truth)
    counts.update(f"predicted {finding.kind}" for finding in predicted)
    if parsed is not None:
        kinds = {finding.kind for finding in truth}
        counts.update(texts=1, agrees=parsed.agrees, contradicts=bool(parsed.contradictions))
        counts.update(deniable=len(kinds), falsely_denied=len(kinds & parsed.denied), coverage=parsed.coverage)  # type: ignore[arg-type]
    return CaseScore({name: float(counts[name]) for name in COLUMNS}, tuple(truth), tuple(predicted))


def ratios(sums: np.ndarray, top: dict[str, float], bottom: dict[str, float]) -> np.ndarray:
    """Metrics from sums `[..., column]`; NaN where the denominator is zero."""

    def weighted(parts: dict[str, float]) -> np.ndarray:
        weights = np.zeros(len(COLUMNS))
        weights[[COLUMNS.index(name) for name in parts]] = list(parts.values())
        return np.asarray(sums @ weights)

    numerator, denominator = weighted(top), weighted(bottom)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _known(value: np.ndarray | float) -> float | None:
    return float(value) if np.isfinite(value) else None


def summarise(cases: Sequence[CaseScore], resamples: int = 1000, seed: int = 0) -> Scores:
    """Metrics, intervals and class table of scored cases."""
    counts = np.array([[case.counts[name] for name in COLUMNS] for case in cases]).reshape(len(cases), len(COLUMNS))
    sums, drawn = counts.sum(0), resampled_sums(counts, resamples, seed)
    table = {}
    for kind, (matched, true, predicted) in CLASS_COUNTS.items():
        parts = {
            "precision": ({matched: 1.0}, {predicted: 1.0}),
            "recall": ({matched: 1.0}, {true: 1.0}),
            "f1": ({matched: 2.0}, {true: 1.0, predicted: 1.0}),
        }
        table[str(kind)] = {name: _known(ratios(sums, *part)) for name, part in parts.items()}
        table[str(kind)] |= {name.split()[0]: float(sums[COLUMNS.index(name)]) for name in (matched, true, predicted)}
    return Scores(
        values={name: _known(ratios(sums, *parts)) for name, parts in METRICS.items()},
        intervals={name: interval(ratios(drawn, *parts)) for name, parts in METRICS.items()},
        by_class=table,
        cases=tuple(cases),
    )


def _check_lengths(truth: Sequence[object], answers: Sequence[object], noun: str) -> None:
    if len(truth) != len(answers):
        raise UsageError(f"every case needs one of the {noun}", expected=str(len(truth)), seen=str(len(answers)))


def score_reports(
    truth: Sequence[Sequence[Finding]],
    texts: Sequence[str],
    resamples: int = 1000,
    visible: Sequence[Sequence[bool]] | None = None,
) -> Scores:
    """Score report texts against the true findings of their cases.

    Args:
        visible: for each true finding whether a reader could see it; one that could not and is not reported is no miss.

    Raises:
        UsageError: the numbers of cases and texts differ.
    """
    _check_lengths(truth, texts, "texts")
    cases = []
    for at, (findings, text) in enumerate(zip(truth, texts, strict=True)):
        parsed = parse_report(text)
        if visible is not None:
            findings = _without_unseen(findings, visible[at], parsed.findings)
        scored = score_case(findings, parsed.findings, parsed)
        cases.append(CaseScore(scored.counts, scored.truth, scored.predicted, text))
    return summarise(cases, resamples)


def _without_unseen(
    truth: Sequence[Finding], visible: Sequence[bool], predicted: Sequence[Finding]
) -> tuple[Finding, ...]:
    """Leave out the true findings that could not be seen and were not reported."""
    missed = set(match_findings(truth, predicted).missed)
    return tuple(one for at, one in enumerate(truth) if visible[at] or at not in missed)


def score_findings(
    truth: Sequence[Sequence[Finding]], predicted: Sequence[Sequence[Finding]], resamples: int = 1000
) -> Scores:
    """Score lists of findings without text (an encoder's direct readout); metrics of texts are None.

    Raises:
        UsageError: the numbers of cases and predictions differ.
    """
    _check_lengths(truth, predicted, "predictions")
    pairs = zip(truth, predicted, strict=True)
    return summarise([score_case(findings, answer) for findings, answer in pairs], resamples)


def score_exchanged(truth: Sequence[Sequence[Finding]], texts: Sequence[str], patients: int = 20) -> Scores:
    """Score each report against other patients: each of the `patients` cases before its own, cyclically.

    Whatever is correct here is correct by chance. For one exchange of a thousand cases, full-finding F1 has a relative
    standard deviation of a tenth, so several are pooled. Pairs share reports, so there are no intervals.

    Raises:
        UsageError: the numbers of cases and texts differ.
    """
    _check_lengths(truth, texts, "texts")
    parsed, count = [parse_report(text) for text in texts], len(texts)
    exchanges = [
        score_case(truth[(at - step) % count], report.findings, report)
        for step in range(1, min(patients, count - 1) + 1)
        for at, report in enumerate(parsed)
    ]
    return summarise(exchanges, resamples=0)
