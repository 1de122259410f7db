"""The page of scores: figures, classes, and the cases, worst first, in any order, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuroflamingo.evaluation.label_table import FIGURES
from neuroflamingo.evaluation.matching import match_findings
from neuroflamingo.evaluation.paired_test import Difference, differences
from neuroflamingo.evaluation.report_texts import NamedText
from neuroflamingo.evaluation.scoring import findings_line
from neuroflamingo.evaluation.text_scores import (
    COMPARED_LABELS,
    ScoredPair,
    TextScores,
    stated,
)
from neuroflamingo.findings.vocabulary import MIRRORED, Finding
from neuroflamingo.report.records import BANNER
from neuroflamingo.report.render import render_page
from neuroflamingo_preprocessing.software import installed_version

MAX_CASES, MAX_CHARACTERS, MAX_PAGE = 2_000, 6_000, 4_000_000
"""Most cases of a page, most characters of a text, and most characters of all its texts together."""
ORDERS = {
    "detail_f1": "detail F1",
    "wrong_side": "wrong sides",
    "omitted": "omitted",
    "invented": "invented",
    "coverage": "share read",
    "id": "id",
}
FALLING = ("wrong_side", "omitted", "invented")
"""Orders in which the largest is the worst."""
SHOWN = (
    *("finding_f1", "finding_precision", "finding_recall", "full_finding_f1", "detail_f1", "laterality_accuracy"),
    *("wrong_side_rate", "region_accuracy", "size_within_tolerance", "size_mae_mm", "certainty_accuracy"),
    *("grade_accuracy", "omission_rate", "hallucinations_per_case", "hallucination_on_normals"),
    *("false_negation_rate", "contradiction_rate", *COMPARED_LABELS, "named_micro_f1"),
)
"""Figures of a table, in order; those of words come after them."""


def figure_rows(scores: TextScores, other: TextScores | None = None) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of figures, with 95 % intervals; with another system, its own and the paired test.

    Args:
        scores: of the system.
        other: of the one it is compared with, on the same cases.
    """
    heads = ["figure", "value", "95 %"]
    heads += ["against", "95 %", "difference", "95 %", "p"] if other else []
    apart = differences(scores, other) if other else {}
    rows = []
    for name in [*SHOWN, *scores.words]:
        row = [name + (" (words only)" if name in scores.words else ""), *_value(scores, name)]
        if other:
            row += [*_value(other, name), *_apart(apart[name])]
        rows.append(row)
    sides = [("share of sentences read, references", "references"), ("share of sentences read, reports", "predictions")]
    for title, side in sides:
        row = [title, f"{scores.coverage[side]:.3f}", ""]
        rows.append(row + ([f"{other.coverage[side]:.3f}", "", "", "", ""] if other else []))
    return heads, rows


def _value(scores: TextScores, name: str) -> list[str]:
    value = scores.values[name]
    return ["–" if value is None else f"{value:.3f}", "" if value is None else _span(scores.interval_of(name))]


def _apart(one: Difference | None) -> list[str]:
    return ["–", "", ""] if one is None else [f"{one.value:+.3f}", _span(one.interval), f"{one.p:.3f}"]


def _span(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""


def label_rows(scores: TextScores, asked: Mapping[str, str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of classes, then of all findings by name that one of the two sides states.

    Args:
        scores: of the system.
        asked: other labels with the names of their findings, which take the place of the latter.
    """
    heads = ["class", "in references", "in reports", *(name.replace("_", " ") for name in FIGURES)]
    more = scores.named if asked is None else scores.table_of(asked)
    beside = [
        (name, row)
        for name, row in more.labels.items()
        if asked is not None or (stated(row) and name not in scores.labels.labels)
    ]
    rows = []
    for label, row in [*scores.labels.labels.items(), *beside]:
        true = int(row["true_positive"]) + int(row["false_negative"])  # type: ignore[call-overload]
        said = int(row["true_positive"]) + int(row["false_positive"])  # type: ignore[call-overload]
        rows.append([label, str(true), str(said), *(_plain(row[name]) for name in FIGURES)])
    for title, table in (
        ("of the classes", scores.labels),
        ("of all names" if asked is None else "of the labels", more),
    ):
        for how in ("macro", "micro"):
            row = [_plain(table.overall[f"{how}_{name}"]) for name in FIGURES]
            rows.append([f"{how} {title}", "", "", *row])
    return heads, rows


def _plain(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"


def worst(scores: TextScores) -> list[ScoredPair]:
    """The pairs that a page shows: lowest detail F1 first, then most errors; those that could not be read come last."""

    def key(pair: ScoredPair) -> tuple[bool, float, float]:
        figures = pair.figures()
        return not pair.read, figures["detail_f1"], -sum(figures[name] for name in FALLING)

    return sorted(scores.pairs, key=key)[:MAX_CASES]


def score_page(
    scores: TextScores,
    references: Mapping[str, NamedText],
    texts: Mapping[str, NamedText],
    *,
    title: str,
    other: TextScores | None = None,
    asked: Mapping[str, str] | None = None,
) -> str:
    """Render the page.

    Args:
        scores: of the system.
        references: by id.
        texts: the system's reports, at least those of `worst`.
        title: name of the system.
        other: scores of the system it is compared with.
        asked: see `label_rows`.
    """
    heads, figures = figure_rows(scores, other)
    label_heads, labels = label_rows(scores, asked)
    pairs = _within(worst(scores), references, texts)
    extra = [name for name in ("bleu4", "rouge_l") if name in scores.words]
    return render_page(
        "score.html.j2",
        sheets=("report.css", "score.css"),
        style=_style(pairs, len(ORDERS) - 1 + len(extra)),
        title=title,
        banner=BANNER,
        facts=_facts(scores),
        notes=scores.notes,
        heads=heads,
        figures=figures,
        label_heads=label_heads,
        labels=labels,
        shown=len(pairs),
        total=len(scores.pairs),
        orders=list(ORDERS.items()),
        case_heads=["case", *(ORDERS[name] for name in ORDERS if name != "id"), *extra],
        cases=[_case(pair, scores, extra, references[pair.id], texts.get(pair.id)) for pair in pairs],
        version=installed_version("neuroflamingo"),
    )


def _facts(scores: TextScores) -> Iterable[str]:
    yield f"{len(scores.pairs)} cases of {len(scores.persons)} persons"
    yield from (f"{name}: {value}" for name, value in scores.about.items() if isinstance(value, str))


def _within(
    pairs: Sequence[ScoredPair], references: Mapping[str, NamedText], texts: Mapping[str, NamedText]
) -> list[ScoredPair]:
    """The first pairs whose texts fill a page."""
    kept, size = [], 0
    for pair in pairs:
        both = (references[pair.id].text, texts[pair.id].text if pair.id in texts else "")
        size += sum(min(len(text), MAX_CHARACTERS) for text in both) + 1_000
        if size > MAX_PAGE:
            break
        kept.append(pair)
    return kept


def _style(pairs: Sequence[ScoredPair], columns: int) -> str:
    """Rules that put the cases into the order of the chosen button; only numbers of ours are in them."""
    place: dict[str, list[int]] = {}
    for name in ORDERS:
        keys = [_key(pair, name) for pair in pairs]
        ranked = sorted(range(len(pairs)), key=keys.__getitem__)
        place[name] = [0] * len(pairs)
        for rank, at in enumerate(ranked):
            place[name][at] = rank
    rules = [f".cases {{ --columns: {columns}; }}"]
    rules += [f"main:has(#by-{name}:checked) .one {{ order: var(--{name}); }}" for name in ORDERS]
    for at in range(len(pairs)):
        rules.append(f"#c{at} {{ " + " ".join(f"--{name}: {place[name][at]};" for name in ORDERS) + " }")
    return "\n".join(rules) + "\n"


def _key(pair: ScoredPair, name: str) -> Any:
    if name == "id":
        return pair.id
    value = pair.figures()[name]
    return -value if name in FALLING else value


@dataclass(frozen=True)
class _Marked:
    words: str
    mark: str


@dataclass(frozen=True)
class _Column:
    title: str
    findings: list[_Marked]
    pieces: list[tuple[str, bool]]
    cut: int


@dataclass(frozen=True)
class _Case:
    id: str
    cells: list[str]
    columns: list[_Column]


def _case(
    pair: ScoredPair, scores: TextScores, extra: Sequence[str], reference: NamedText, text: NamedText | None
) -> _Case:
    figures = pair.figures()
    cells = [f"{figures[n]:.2f}" if n not in FALLING else f"{figures[n]:g}" for n in ORDERS if n != "id"]
    words = scores.words_of(pair)
    cells += [_plain(words.get(name)) for name in extra]
    truth, said = pair.score.truth, pair.score.predicted
    matching = match_findings(truth, said)
    wrong_true = {*matching.missed, *(row for row, column in matching.pairs if _opposite(truth[row], said[column]))}
    wrong_said = {
        *matching.invented,
        *(column for row, column in matching.pairs if _opposite(truth[row], said[column])),
    }
    text = text or NamedText(pair.id, "")
    columns = [_column("Reference", truth, wrong_true, reference), _column("Report", said, wrong_said, text)]
    return _Case(pair.id, cells, columns)


def _opposite(true: Finding, said: Finding) -> bool:
    return true.side is not None and MIRRORED.get(true.side) == said.side


def _column(title: str, findings: Sequence[Finding], wrong: set[int], one: NamedText) -> _Column:
    marked = [_Marked(findings_line([f]), "wrong" if at in wrong else "right") for at, f in enumerate(findings)]
    text = one.text[:MAX_CHARACTERS]
    pieces: list[tuple[str, bool]] = []
    at = 0
    for sentence in one.report.sentences if one.report else ():
        if at <= sentence.start and sentence.end <= len(text):
            pieces += [(text[at : sentence.start], False), (text[sentence.start : sentence.end], bool(sentence.share))]
            at = sentence.end
    pieces.append((text[at:], False))
    return _Column(title, marked, [piece for piece in pieces if piece[0]], max(0, len(one.text) - len(text)))
