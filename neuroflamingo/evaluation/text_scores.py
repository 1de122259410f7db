"""`score_texts`: anybody's reports scored against anybody's references, by their findings, with word overlap beside.

References are read by the same reader as the reports that are scored, unless their findings are known. What the reader
does not understand it cannot score: its coverage of both sides stands beside every figure.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neuroflamingo.evaluation.bootstrap import interval, resampled_sums
from neuroflamingo.evaluation.label_table import CELLS, LabelTable, label_cells, label_figures, label_table
from neuroflamingo.evaluation.report_texts import VAGUE, Faults, NamedText, short
from neuroflamingo.evaluation.scoring import COLUMNS, METRICS, CaseScore, Scores, findings_line, ratios, score_case
from neuroflamingo.evaluation.scoring import summarise as summarise_cases
from neuroflamingo.evaluation.word_overlap import STATISTICS, WORDS, WordOverlap
from neuroflamingo.findings.vocabulary import FindingClass
from neuroflamingo.reader.brain_findings import BRAIN_FINDINGS
from neuroflamingo_preprocessing.files import write_text_atomic

LABELS = tuple(str(kind) for kind in FindingClass)
"""Labels of the table: the classes that the reader knows."""
NAMES = tuple(row.name for row in BRAIN_FINDINGS if row.name not in VAGUE)
"""Labels of the table of all findings that the reader knows."""
NOT_READ = ("signal_accuracy", "impression_agreement")
"""Figures of the project's own parser, which the reader of anybody's reports does not have."""
LITTLE_READ = 0.8
"""Mean coverage below which a note says that the figures rest on little."""
FEW = 20
"""Persons below which a note says that intervals are not to be trusted."""
MAX_LISTED = 20
NOTHING = CaseScore(dict.fromkeys(COLUMNS, 0.0), (), ())


@dataclass(frozen=True)
class ScoredPair:
    """One report against its reference.

    Attributes:
        id: of both.
        person: whose scan it is; the id if the reference does not say.
        score: counts and findings; all zero if the reference could not be read.
        true_names, said_names: all findings of both, by their names in the table of the reader.
        coverage, reference_coverage: share of sentences that were understood; 1 where the findings are known.
        read: whether the reference could be read, or its findings are known.
        empty: the report has no text.
        same: the two texts are the same.
        foreign: the report is in another language, of which nothing is read.
        words: statistics of `WordOverlap.pair`; None without texts or without word overlap.
    """

    id: str
    person: str
    score: CaseScore
    true_names: frozenset[str]
    said_names: frozenset[str]
    coverage: float
    reference_coverage: float
    read: bool
    empty: bool
    same: bool
    foreign: bool = False
    words: np.ndarray | None = None

    def figures(self) -> dict[str, float]:
        """Figures of this pair alone: F1 (1 if nothing is there and nothing is said), and numbers of errors."""
        n = self.score.counts
        both = n["true"] + n["predicted"]
        share = {name: 2 * n[part] / both if both else 1.0 for name, part in PAIR_SHARES.items()}
        return share | {
            "wrong_side": n["side_opposite"],
            "omitted": n["missed"],
            "invented": n["invented"],
            "coverage": self.coverage,
            "reference_coverage": self.reference_coverage,
        }


PAIR_SHARES = {"detail_f1": "detail", "full_finding_f1": "placed_right", "finding_f1": "matched"}


@dataclass(frozen=True)
class TextScores:
    """Scores of one system's reports.

    Attributes:
        pairs: in the order of the references.
        overlap: what counted the words; None without word overlap.
        notes: what a reader of the figures must know.
        resamples: number of draws of the intervals.
    """

    pairs: tuple[ScoredPair, ...]
    overlap: WordOverlap | None
    notes: tuple[str, ...]
    resamples: int = 1000
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def persons(self) -> tuple[str, ...]:
        """Whose scans these are, each once; intervals come from drawing them again."""
        return tuple(dict.fromkeys(pair.person for pair in self.pairs))

    @cached_property
    def findings(self) -> Scores:
        """Figures of the findings."""
        cases = [pair.score for pair in self.pairs]
        if len(self.persons) == len(cases):
            return summarise_cases(cases, self.resamples)
        sums = self._by_person(np.array([[case.counts[name] for name in COLUMNS] for case in cases]))
        merged = [CaseScore(dict(zip(COLUMNS, row, strict=True)), (), ()) for row in sums.tolist()]
        return summarise_cases(merged, self.resamples)

    @cached_property
    def labels(self) -> LabelTable:
        """The table of the classes."""
        return label_table(LABELS, self._cells, self.resamples)

    @cached_property
    def named(self) -> LabelTable:
        """The table of all findings that the reader knows by name, whether of a class or not."""
        return label_table(NAMES, self._named_cells, self.resamples)

    def table_of(self, names: Mapping[str, str]) -> LabelTable:
        """The table of other labels.

        Args:
            names: for each label the name of its finding, as `label_lists.read_labels` gives them.
        """

        def asked(said: Set[str]) -> Set[str]:
            return {label for label, name in names.items() if name in said}

        sets = [(asked(pair.true_names), asked(pair.said_names)) for pair in self.pairs]
        return label_table(list(names), self._counted(list(names), sets), self.resamples)

    @cached_property
    def words(self) -> dict[str, float | None]:
        """Figures of word overlap; empty without it."""
        return {} if self.overlap is None else self.overlap.figures(self._statistics.sum(0))

    @cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """Each figure of every draw; the same draw of two systems has the same persons in it."""
        counts = self._by_person(np.array([[pair.score.counts[name] for name in COLUMNS] for pair in self.pairs]))
        drawn = resampled_sums(counts, self.resamples)
        found = {name: ratios(drawn, *parts) for name, parts in METRICS.items()}
        cells = label_figures(resampled_sums(self._cells, self.resamples))
        found |= {name: cells[name] for name in COMPARED_LABELS}
        found["named_micro_f1"] = label_figures(resampled_sums(self._named_cells, self.resamples))["micro_f1"]
        if self.overlap is not None:
            rows = [self.overlap.figures(sums) for sums in resampled_sums(self._statistics, self.resamples)]
            found |= {name: np.array([np.nan if row[name] is None else row[name] for row in rows]) for name in WORDS}
        return found

    @property
    def values(self) -> dict[str, float | None]:
        """All figures that have draws."""
        scored = {name: value for name, value in self.findings.values.items() if name not in NOT_READ}
        labels = {name: self.labels.overall[name] for name in COMPARED_LABELS}
        return scored | labels | {"named_micro_f1": self.named.overall["micro_f1"]} | self.words

    def interval_of(self, name: str) -> tuple[float, float] | None:
        """95 % interval of a figure, from drawing persons with replacement."""
        return interval(self.draws[name])

    @property
    def coverage(self) -> dict[str, float]:
        """Mean share of sentences that were understood, of the references and of the reports."""
        return {
            "references": float(np.mean([pair.reference_coverage for pair in self.pairs])),
            "predictions": float(np.mean([pair.coverage for pair in self.pairs])),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data: figures of findings, labels and words, coverage, notes."""
        words = {name: {"value": value, "interval": self.interval_of(name)} for name, value in self.words.items()}
        return {
            "cases": len(self.pairs),
            "persons": len(self.persons),
            "coverage": self.coverage,
            "findings": self._plain_findings(),
            "labels": self.labels.to_json(),
            "named": self._plain_named(),
            "words": words,
            "notes": list(self.notes),
            "about": self.about,
        }

    def _plain_findings(self) -> dict[str, Any]:
        plain = self.findings.to_json() | {"cases": len(self.pairs)}
        plain["intervals"] = {name: span for name, span in plain["intervals"].items() if name not in NOT_READ}  # type: ignore[attr-defined]
        return {name: value for name, value in plain.items() if name not in NOT_READ}

    def _plain_named(self) -> dict[str, object]:
        """The table of names, without those that neither side states."""
        plain = self.named.to_json()
        return plain | {"labels": {name: row for name, row in self.named.labels.items() if stated(row)}}

    def write_csv(self, path: str | Path, overwrite: bool = True) -> None:
        """Write one row per pair: figures and findings, not the texts; completely or not at all.

        Raises:
            OutputError: the file cannot be written, or exists and must not be replaced.
        """
        table = io.StringIO(newline="")
        heads = ["id", "person", "reference_read", "empty", *self.pairs[0].figures()]
        heads += [*(WORDS if self.overlap else ()), "true_findings", "predicted_findings"]
        writer = csv.DictWriter(table, heads, restval="")
        writer.writeheader()
        for pair in self.pairs:
            row: dict[str, Any] = {"id": pair.id, "person": pair.person}
            row |= {"reference_read": pair.read, "empty": pair.empty, **pair.figures()}
            row |= self.words_of(pair) if self.overlap else {}
            row |= {"true_findings": findings_line(pair.score.truth)}
            writer.writerow(row | {"predicted_findings": findings_line(pair.score.predicted)})
        write_text_atomic(path, table.getvalue(), overwrite=overwrite)

    def words_of(self, pair: ScoredPair) -> dict[str, float | None]:
        """Word overlap of one pair."""
        if self.overlap is None or pair.words is None:
            return {}
        return self.overlap.figures(pair.words)

    @cached_property
    def _cells(self) -> np.ndarray:
        kinds = [({str(f.kind) for f in p.score.truth}, {str(f.kind) for f in p.score.predicted}) for p in self.pairs]
        return self._counted(LABELS, kinds)

    @cached_property
    def _named_cells(self) -> np.ndarray:
        return self._counted(NAMES, [(pair.true_names, pair.said_names) for pair in self.pairs])

    def _counted(self, labels: Sequence[str], sets: Sequence[tuple[Set[str], Set[str]]]) -> np.ndarray:
        """Counts of labels for each person; of references that could not be read nothing is counted."""
        truth, said = (np.array([[label in pair[at] for label in labels] for pair in sets]) for at in (0, 1))
        cells = label_cells(truth, said) * np.array([[pair.read] for pair in self.pairs])
        return self._by_person(cells)

    @cached_property
    def _statistics(self) -> np.ndarray:
        none = np.zeros(STATISTICS)
        return self._by_person(np.array([none if pair.words is None else pair.words for pair in self.pairs]))

    def _by_person(self, rows: np.ndarray) -> np.ndarray:
        """Sums over the pairs of each person, in the order of `persons`."""
        place = {person: at for at, person in enumerate(self.persons)}
        sums = np.zeros((len(place), rows.shape[1]))
        np.add.at(sums, [place[pair.person] for pair in self.pairs], rows)
        return sums


def stated(row: dict[str, object]) -> bool:
    """Whether a label occurs in a reference or in a report."""
    return any(row[cell] for cell in CELLS if cell != "true_negative")


COMPARED_LABELS = ("macro_f1", "micro_f1", "macro_balanced_accuracy", "crg")
"""Figures of the label table that are shown beside those of the findings."""


def score_texts(
    references: Mapping[str, NamedText],
    predictions: Iterable[NamedText],
    *,
    words: bool = True,
    allow_missing: bool = False,
    resamples: int = 1000,
    faults: Faults | None = None,
    overlap: WordOverlap | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> TextScores:
    """Score reports against references with the same ids; no report is kept.

    Args:
        references: by id, of `read_references`.
        predictions: the reports, in any order, such as those of `stream_texts`.
        words: count word overlap too.
        allow_missing: a reference without a report gets an empty one, and a report without a reference is left out.
        resamples: number of draws for the 95 % intervals.
        faults: where `stream_texts` puts its own.
        overlap: of the same references, from another call.
        progress: called with what is done, how many, and of how many.

    Raises:
        ScanError: ids that do not join, or lines that cannot be read: all in one message (exit 65).
        UsageError: a package for word overlap is not installed.
    """
    faults = faults or Faults("the reports")
    if words and overlap is None:
        overlap = WordOverlap(one.text for one in references.values() if one.text)
    overlap = overlap if words else None
    scored: dict[str, ScoredPair] = {}
    strangers = Faults("")
    for one in predictions:
        reference = references.get(one.id)
        if reference is None:
            strangers.add(short(one.id))
        elif one.id in scored:
            faults.add(f"the id {short(one.id)} is there twice")
        else:
            scored[one.id] = _score_pair(reference, one, overlap)
            progress("scored", len(scored), len(references))
    missing = [name for name in references if name not in scored]
    if not scored or not allow_missing:
        _list_unjoined(faults, "without a reference", strangers.shown, strangers.count)
        _list_unjoined(faults, "of references without a report", [short(n) for n in missing[:MAX_LISTED]], len(missing))
    faults.check("one report for each reference, joined by id", "correct the ids, or pass --allow-missing")
    for name in missing:
        scored[name] = _score_pair(references[name], NamedText(name, ""), overlap)
    pairs = tuple(scored[name] for name in references)
    return TextScores(pairs, overlap, tuple(_notes(pairs, len(missing), strangers.count)), resamples)


def _list_unjoined(faults: Faults, what: str, names: Sequence[str], count: int) -> None:
    if count:
        more = f" and {count - len(names):,} more" if count > len(names) else ""
        faults.add(f"{count:,} id{'s' * (count > 1)} {what}: {', '.join(names)}{more}")


def _score_pair(reference: NamedText, one: NamedText, overlap: WordOverlap | None) -> ScoredPair:
    score = score_case(reference.findings, one.findings, one.stated) if reference.was_read else NOTHING
    if reference.names:  # a scan with an aneurysm alone has no finding of the six classes, and is not normal
        score = replace(score, counts=score.counts | {"normal": 0.0, "normal_hallucinated": 0.0})
    both = overlap is not None and reference.text and (one.text or one.known is None)
    return ScoredPair(
        id=one.id,
        person=reference.person or reference.id,
        score=score,
        true_names=reference.names,
        said_names=one.names,
        coverage=one.coverage,
        reference_coverage=reference.coverage,
        read=reference.was_read,
        empty=not one.text and one.known is None,
        same=bool(one.text) and one.text == reference.text,
        foreign=one.known is None and one.report is None,
        words=overlap.pair(reference.text, one.text) if both and overlap else None,
    )


def _notes(pairs: Sequence[ScoredPair], missing: int, strangers: int) -> Iterable[str]:
    """What a reader of the figures must know."""
    persons = len({pair.person for pair in pairs})
    if persons < FEW:
        yield f"intervals and p values of {persons} scans are too good: draws of fewer than {FEW} say little"
    empty, unread = sum(pair.empty for pair in pairs), sum(not pair.read for pair in pairs)
    if empty:
        extra = f", {missing} of them missing" if missing else ""
        yield f"{empty} of {len(pairs)} reports are empty{extra}: they state nothing, and omit all there is"
    if all(pair.same for pair in pairs):
        yield "every report is its reference, word for word: is it the same file, or the same column?"
    if strangers:
        yield f"{strangers} reports without a reference were left out"
    foreign = sum(pair.foreign for pair in pairs)
    if foreign:
        yield f"{foreign} of {len(pairs)} reports are not in English: nothing of them was read"
    if unread:
        yield f"{unread} of {len(pairs)} references could not be read at all: no finding of theirs is scored"
    for name, values in (
        ("references", [pair.reference_coverage for pair in pairs]),
        ("reports", [pair.coverage for pair in pairs if not pair.empty]),
    ):
        mean = float(np.mean(values)) if values else 1.0
        if mean < LITTLE_READ:
            yield f"of the sentences of the {name} only {100 * mean:.0f} % were read: figures of findings rest on these"
    if not any(pair.score.truth for pair in pairs):
        yield "no reference states a finding of a class that the reader knows: recall and omissions are unknown"
