"""`audit_reliance`: does a model use the scan? Any model: a function, or a command that takes a scan and prints text.

Each scan is shown as it is, under another name, empty and mirrored, and each report is held against another person's
truth. A model that looks at the scan loses what it knew of it; a blind one does not. Where the truth is not known, the
reports on the scans themselves take its place: then it is asked what they share with those on the controls.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neuroflamingo.evaluation.paired_test import Difference, differences
from neuroflamingo.evaluation.report_texts import NamedText
from neuroflamingo.evaluation.scan_controls import CONTROLS, write_controls
from neuroflamingo.evaluation.scoring import COLUMNS, CaseScore, score_case
from neuroflamingo.evaluation.text_scores import FEW, TextScores, score_texts
from neuroflamingo.findings.vocabulary import mirror
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError

Write = Callable[[Path], str]
"""Writes the report on the scan in a file."""
WriteWithTarget = Callable[[Path, str], str]
"""The same, as an evaluation calls it that gives the model the true report too."""
SAME = 0.95
"""Share of reports from which on those on empty scans count as the same."""
STAYS = 0.25
"""Share of sides that may stay where they were on a mirrored head, by the lower bound of the interval."""
LITTLE = 0.1
"""Loss in F1 below which findings are not better, where the interval does not tell."""
EXCHANGES = 20
"""Most other persons whose reports are held against a scan's truth."""
FIGURE = "full_finding_f1"
OWN = "own"


@dataclass(frozen=True)
class AuditCase:
    """A scan with its id, whose it is, and its true report, if that is known."""

    id: str
    scan: Path
    person: str
    reference: NamedText | None = None


@dataclass(frozen=True)
class RelianceAudit:
    """What came of an audit.

    Attributes:
        cases: all scans.
        texts: for `own` and each control, and `own target` and `other target` if the model was given targets, the
            report on each scan, by id.
        refused: for the same, why there is no report.
        others: for each id, those of other persons' scans.
        unsteady: ids of scans on which a second run wrote something else.
    """

    cases: tuple[AuditCase, ...]
    texts: dict[str, dict[str, str]]
    refused: dict[str, dict[str, str]]
    others: dict[str, tuple[str, ...]]
    unsteady: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether the true reports are known."""
        return all(case.reference is not None for case in self.cases)

    @cached_property
    def held(self) -> list[AuditCase]:
        """Cases with a report on the scan itself."""
        return [case for case in self.cases if case.id in self.texts[OWN]]

    @cached_property
    def truth(self) -> dict[str, NamedText]:
        """Against what is scored: true reports, else the model's own."""
        own = {case.id: NamedText(case.id, self.texts[OWN][case.id], person=case.person) for case in self.held}
        if not self.known:
            return own
        return {case.id: replace(case.reference or own[case.id], person=case.person) for case in self.held}

    @cached_property
    def scores(self) -> dict[str, TextScores]:
        """Scores of the reports on the scans, and of those on the controls; a refused control states nothing."""
        mirrored = {name: replace(one, known=mirror(one.findings)) for name, one in self.truth.items()}
        found = {name: self._score(self.texts[name], self.truth) for name in (OWN, "renamed", "blank")}
        found["other"] = self._exchanged(found[self.base])
        found["mirrored"] = self._score(self.texts["mirrored"], mirrored)
        for name in TARGETS:
            if name in self.texts:
                found[name] = self._score(self.texts[name], self.truth)
        return found

    @property
    def base(self) -> str:
        """Against what controls are held: reports on the renamed scans, to which no name or other file could help."""
        return "renamed" if self.texts["renamed"] else OWN

    @cached_property
    def swaps(self) -> TextScores:
        """Reports on mirrored heads against those on the heads themselves, mirrored: a wrong side did not follow."""
        truth = {
            name: NamedText(name, "", mirror(NamedText(name, text).findings), self.truth[name].person)
            for name, text in self.texts[self.base].items()
            if name in self.truth
        }
        return self._score(self.texts["mirrored"], truth)

    def _exchanged(self, base: TextScores) -> TextScores:
        """Scores of other persons' reports: for each scan the mean of its counts over several of them."""
        reports = {name: NamedText(name, text) for name, text in self.texts[self.base].items()}
        silent = [NamedText("", "")]
        pairs = []
        for pair in base.pairs:
            truth = self.truth[pair.id].findings
            others = [reports[name] for name in self.others[pair.id] if name in reports] or silent
            counts = [score_case(truth, one.findings, one.stated).counts for one in others]
            mean = {name: sum(row[name] for row in counts) / len(counts) for name in COLUMNS}
            pairs.append(replace(pair, score=CaseScore(mean, (), ()) if pair.read else pair.score))
        return replace(base, pairs=tuple(pairs))

    def _score(self, texts: Mapping[str, str], truth: dict[str, NamedText]) -> TextScores:
        reports = [NamedText(name, texts.get(name, "")) for name in truth]
        return score_texts(truth, reports, words=False)

    def loss(self, control: str) -> Difference | None:
        """What a control loses against the scans, in full-finding F1."""
        return differences(self.scores[self.base], self.scores[control])[FIGURE]

    def same(self, control: str) -> float:
        """Share of the scans on which a control gets the same report, word for word; refused ones do not."""
        own, other = self.texts[OWN if control == "renamed" else self.base], self.texts[control]
        return sum(text == other.get(name) for name, text in own.items()) / max(1, len(own))

    @cached_property
    def verdicts(self) -> dict[str, str]:
        """What was found, by a short name, in words; `uses the scan` if nothing speaks against it."""
        found = dict(_verdicts(self))
        if not found:
            found["uses the scan"] = "it loses its findings without the scan, and sides follow a mirrored head"
        if len({one.person for one in self.truth.values() if one.findings}) < FEW:
            found["few scans"] = f"fewer than {FEW} persons have a finding: a verdict rests on little"
        return found

    def to_json(self) -> dict[str, Any]:
        """Verdicts, figures of each control, losses with intervals, refusals."""
        out: dict[str, Any] = {"verdicts": self.verdicts, "truth": "known" if self.known else "own reports"}
        out["cases"], out["held"] = len(self.cases), len(self.held)
        out["distinct_reports"] = len(set(self.texts[OWN].values()))
        for name, scores in self.scores.items():
            if name in self.texts and not self.texts[name] and not self.refused.get(name):
                continue  # a control that was not shown
            figures = {
                key: scores.values[key] for key in ("finding_f1", FIGURE, "wrong_side_rate", "laterality_accuracy")
            }
            loss = self.loss(name) if name in ("blank", "other") else None
            figures |= {} if loss is None else {"loss": loss.value, "loss_interval": loss.interval, "p": loss.p}  # type: ignore[dict-item]
            out[name] = figures | ({"same_text": self.same(name)} if name in CONTROLS else {})
        out["sides_that_stay_when_mirrored"] = self.swaps.values["wrong_side_rate"]
        out["refused"] = {name: why for name, why in self.refused.items() if why}
        return out | {"about": self.about}


TARGETS = ("own target", "other target")


def _verdicts(audit: RelianceAudit) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    own = audit.texts[OWN]
    if len(own) > 1 and len(set(own.values())) == 1:
        found.append(("one report for all", f"all {len(own)} scans get the same report, word for word"))
    stating = {name: text for name, text in audit.texts[audit.base].items() if NamedText(name, text).names}
    same = [text == audit.texts["blank"].get(name) for name, text in stating.items()]
    if same and sum(same) / len(same) >= SAME:
        share = f"{100 * sum(same) / len(same):.0f} %"
        found.append(("blind", f"{share} of the reports with findings are the same on an empty scan"))
    lost = {name: audit.loss(name) for name in ("blank", "other")}
    kept = [name for name, loss in lost.items() if loss is not None and not (loss.interval and loss.interval[0] > 0)]
    if kept and "blind" not in dict(found):
        words = " or ".join({"blank": "an empty scan", "other": "another person's scan"}[name] for name in kept)
        if any(loss is not None and loss.value < LITTLE for loss in (lost[name] for name in kept)):
            found.append(("blind", f"its findings are not better than with {words}"))
        else:
            found.append(
                ("not shown", f"its findings are better than with {words}, but it may be chance: show more scans")
            )
    if all(loss is None for loss in lost.values()):
        found.append(("not known", "the reader found no finding that could be lost: only the words were compared"))
    sides = audit.swaps.findings
    stays = sides.intervals["wrong_side_rate"]
    if stays and stays[0] > STAYS:
        share = 100 * (sides["wrong_side_rate"] or 0)
        found.append(("sides do not follow", f"on mirrored heads {share:.0f} % of the sides stay where they were"))
    return found + _leaks(audit)


def _leaks(audit: RelianceAudit) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    own, renamed = audit.texts[OWN], audit.texts["renamed"]
    moved = [case.id for case in audit.held if case.id in renamed and own[case.id] != renamed[case.id]]
    if audit.unsteady:
        words = f"{len(audit.unsteady)} of {len(audit.held)} scans get another report when they are read again"
        found.append(("not steady", f"{words}: is it sampling? Give it a seed"))
    elif moved:
        words = f"{len(moved)} of {len(audit.held)} reports change when the same scan has another name and folder"
        found.append(("reads more than the scan", f"{words}: it may read its name, or files beside it"))
    if TARGETS[0] in audit.texts:
        given, other = (audit.texts[name] for name in TARGETS)
        moved = [name for name, text in given.items() if other.get(name, text) != text]
        if moved:
            words = f"{len(moved)} of {len(given)} reports change with the true report that is given beside the scan"
            found.append(("the target leaks", f"{words}: its scores are those of teacher forcing"))
    return found


def audit_reliance(
    write: Write,
    cases: Sequence[AuditCase],
    *,
    with_target: WriteWithTarget | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> RelianceAudit:
    """Audit a model.

    Args:
        write: the model. What it raises as a `NeuroFlamingoError` is a refusal, which is counted; anything else ends
            the audit.
        cases: scans of at least two persons.
        with_target: the model as its own evaluation calls it, if that gives it the true report: the report that comes
            back must not depend on it.
        progress: called with what is done, how many, and of how many.

    Raises:
        UsageError: scans of one person only; targets without true reports; not one scan got a report.
        ScanError: a scan of which no controls can be made.
    """
    others = others_of(cases)
    if with_target is not None and any(case.reference is None or not case.reference.text for case in cases):
        raise UsageError("a model that is given the true report needs one for every scan", hint="give the references")
    names = (OWN, *CONTROLS, *(TARGETS if with_target else ()))
    texts: dict[str, dict[str, str]] = {name: {} for name in names}
    refused: dict[str, dict[str, str]] = {name: {} for name in names}
    unsteady: list[str] = []
    targets = {case.id: case.reference.text for case in cases if case.reference}

    def keep(name: str, case: AuditCase, run: Callable[[], str]) -> None:
        try:
            texts[name][case.id] = run().strip()
        except NeuroFlamingoError as error:
            refused[name][case.id] = f"{error.what}" + (f" ({error.seen})" if error.seen else "")

    for done, case in enumerate(cases, start=1):
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            shown = {OWN: case.scan, **write_controls(case.scan, Path(folder))}
            for name, scan in shown.items():
                keep(name, case, lambda scan=scan: write(scan))
            if texts[OWN].get(case.id) != texts["renamed"].get(case.id) and _differs(write, case, texts[OWN]):
                unsteady.append(case.id)
            for name, source in zip(TARGETS, (case.id, others[case.id][0]), strict=True) if with_target else ():
                keep(name, case, lambda scan=shown["renamed"], source=source: with_target(scan, targets[source]))  # type: ignore[misc]
        progress("audited", done, len(cases))
    if not texts[OWN]:
        first = next(iter(refused[OWN].values()))
        raise UsageError("not one scan got a report", seen=first[:500], hint="try the command on one scan first")
    return RelianceAudit(tuple(cases), texts, refused, others, tuple(unsteady))


def _differs(write: Write, case: AuditCase, own: Mapping[str, str]) -> bool:
    """Whether the scan itself, read again, gets another report: then a change by its name says nothing."""
    try:
        return case.id in own and write(case.scan).strip() != own[case.id]
    except NeuroFlamingoError:
        return True


def others_of(cases: Sequence[AuditCase]) -> dict[str, tuple[str, ...]]:
    """For each case the next ones of other persons."""
    found: dict[str, tuple[str, ...]] = {}
    for at, case in enumerate(cases):
        order = [*cases[at + 1 :], *cases[:at]]
        others = [one.id for one in order if one.person != case.person]
        if not others:
            raise UsageError("an audit needs scans of at least two persons", seen=f"{len(cases)} scans of one person")
        found[case.id] = tuple(others[:EXCHANGES])
    if not found:
        raise UsageError("an audit needs scans", expected="scans of at least two persons")
    return found
