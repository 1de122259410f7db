"""`evaluate --scans`: reports on real scans scored against what is known of them, with how few scans that is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroflamingo.evaluation.disturbed_scans import VERSIONS
from neuroflamingo.evaluation.known_scores import COUNTS, ScanFigures, ScanScore, figures, refused_score, score_scan
from neuroflamingo.evaluation.masks import findings_of
from neuroflamingo.evaluation.truth_file import Known, read_truth
from neuroflamingo_preprocessing.errors import NotFoundError, OutputError, ScanError
from neuroflamingo_preprocessing.files import sha256_of_text, write_bytes_atomic, write_text_atomic
from neuroflamingo_preprocessing.read import read_scan

if TYPE_CHECKING:
    from neuroflamingo.report.records import ReportRecord
    from neuroflamingo_preprocessing.geometry import Affine
    from neuroflamingo_preprocessing.scan import Scan

AS_IT_CAME = "as it came"
SHOWN = 30
"""Most lines of each list under the table."""
FEW = 30
"""Below so many persons the table says that they are few."""


@dataclass(frozen=True)
class ScanResult:
    """What came of one scan in one version.

    Attributes:
        key: hash of everything that the result depends on.
        examination, person, file, contrast, version: which one it is.
        refused: why there is no report; None if there is one.
        text: the report.
        stated, known: findings of the report and known ones, as plain data.
        flags: checks that failed, and warnings.
        too_small: parts of masks that are too small to be scored.
        score: see `ScanScore`; None for images of other contrasts, which are not scored.
    """

    key: str
    examination: str
    person: str
    file: str
    contrast: str
    version: str
    refused: str | None = None
    text: str = ""
    stated: tuple[dict[str, Any], ...] = ()
    known: tuple[dict[str, Any], ...] = ()
    flags: tuple[str, ...] = ()
    too_small: int = 0
    score: ScanScore | None = None

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> ScanResult:
        """A result from a line of the log."""
        score = plain.pop("score")
        return cls(**plain, score=score and ScanScore(**score))


@dataclass(frozen=True)
class ScanEvaluation:
    """Results of all scans of a truth file.

    Attributes:
        results: one for each scan and version, in the order of the file.
        about: model, file, and other facts.
    """

    results: tuple[ScanResult, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def figures(self, *, disturbed: bool = False) -> ScanFigures:
        """Figures of the scans as they came, or of their disturbed versions."""
        scored = [(one, one.score) for one in self.results if one.score and (one.version != AS_IT_CAME) == disturbed]
        return figures([score for _, score in scored], [one.person for one, _ in scored])

    @property
    def refused(self) -> list[ScanResult]:
        """T1-weighted scans, in any version, that got no report."""
        return [one for one in self.results if one.score and one.refused]

    @property
    def others(self) -> list[ScanResult]:
        """Images of other contrasts; the model should refuse them."""
        return [one for one in self.results if one.score is None]

    def to_json(self) -> dict[str, Any]:
        """Figures with their intervals and counts, every result, and facts about the run."""
        out: dict[str, Any] = {"as_it_came": self.figures().to_json()}
        if any(one.version != AS_IT_CAME for one in self.results):
            out["disturbed"] = self.figures(disturbed=True).to_json()
        refused = sum(one.refused is not None for one in self.others)
        out["other_contrasts"] = {"images": len(self.others), "refused": refused}
        return out | {"results": [asdict(one) for one in self.results], "about": self.about}

    def write_csv(self, path: str | Path, overwrite: bool = True) -> None:
        """Write one row per scan and version.

        Raises:
            OutputError: the file cannot be written, or exists and must not be replaced.
        """
        table = io.StringIO(newline="")
        facts = ["examination", "person", "file", "contrast", "version", "refused"]
        writer = csv.DictWriter(table, [*facts, *COUNTS, "known", "stated", "flags", "text"])
        writer.writeheader()
        for one in self.results:
            counts = one.score.counts if one.score else dict.fromkeys(COUNTS, "")
            words = {"known": "; ".join(map(_words, one.known)), "stated": "; ".join(map(_words, one.stated))}
            words |= {"flags": "; ".join(one.flags), "text": one.text}
            writer.writerow({name: getattr(one, name) for name in facts} | counts | words)
        write_text_atomic(path, table.getvalue(), overwrite=overwrite)

    def table(self) -> str:
        """Markdown table of the figures with their counts, then what was refused, invented and missed."""
        columns = [self.figures()]
        heads = ["figure", AS_IT_CAME, "95 %", "count"]
        if any(one.version != AS_IT_CAME for one in self.results):
            columns.append(self.figures(disturbed=True))
            heads += ["disturbed", "95 %", "count"]
        lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
        for title in columns[0].values:
            if all(column.values[title].value is None for column in columns):
                continue
            cells = [cell for column in columns for cell in _cells(column, title)]
            lines.append(" | ".join([title, *cells]))
        return "\n".join([*(f"| {line} |" for line in lines), "", *self._in_words(columns)])

    def _in_words(self, columns: Sequence[ScanFigures]) -> list[str]:
        first = columns[0]
        lines = [f"{first.scans} T1w scans of {first.persons} persons" + self._how_few(first)]
        if self.others:
            refused = sum(one.refused is not None for one in self.others)
            lines.append(
                f"images of other contrasts, not scored: {refused} of {len(self.others)} refused, as they should be"
            )
        small = sum(one.too_small for one in self.results if one.version == AS_IT_CAME)
        if small:
            lines.append(f"parts of masks under 8 mm, not scored: {small}")
        lists = (
            ("refused", [f"{_name(one)}: {one.refused}" for one in self.refused]),
            ("read, though of another contrast", [_name(one) for one in self.others if not one.refused]),
            ("stated, but known to be absent", self._said("invented")),
            ("stated, neither known nor denied", self._said("open")),
            ("known, but not found", self._missed()),
        )
        for title, entries in lists:
            more = [f"- and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
            lines += ["", f"{title}:", *(f"- {entry}" for entry in entries[:SHOWN]), *more] if entries else []
        return lines

    def _how_few(self, first: ScanFigures) -> str:
        words = "; the intervals come from drawing persons again"
        return words + (", of whom there are few: the true figures may well lie outside" * (first.persons < FEW))

    def _said(self, what: str) -> list[str]:
        rows = [(one, number) for one in self.results if one.score for number in getattr(one.score, what)]
        return [f"{_name(one)}: {_words(one.stated[number])}" for one, number in rows]

    def _missed(self) -> list[str]:
        return [
            f"{_name(one)}: {_words(known)}"
            for one in self.results
            if one.score and not one.refused
            for number, known in enumerate(one.known)
            if number not in {row for row, _ in one.score.found}
        ]


def _cells(column: ScanFigures, title: str) -> tuple[str, str, str]:
    one = column.values[title]
    if one.value is None:
        return "", "", ""
    span = f"{one.interval[0]:.2f} to {one.interval[1]:.2f}" if one.interval else ""
    return f"{one.value:.2f}", span, f"{one.top:g} of {one.of:g}"


def _name(one: ScanResult) -> str:
    return one.file if one.version == AS_IT_CAME else f"{one.file}, {one.version}"


def _words(plain: dict[str, Any]) -> str:
    """A finding, known or stated, in one line."""
    regions = plain.get("region")
    region = " or ".join(regions) if isinstance(regions, list | tuple) else regions
    sizes = plain.get("size_mm")
    size = max(sizes, default=None) if isinstance(sizes, list | tuple) else sizes
    kind = plain.get("kind") or plain.get("class")
    words = [plain.get("side"), region, kind, f"{size:g} mm" if size else None]
    return " ".join(str(word) for word in words if word)


def evaluate_scans(
    truth: str | Path,
    write: Callable[[Scan], ReportRecord],
    *,
    versions: bool = False,
    log: str | Path | None = None,
    model: str = "",
    progress: Callable[[str, int, int], None] | None = None,
    about: dict[str, Any] | None = None,
) -> ScanEvaluation:
    """Write a report on each scan of a truth file, and score it against what is known.

    Args:
        truth: see `truth_file.read_truth`.
        write: from a scan to its report; a `ScanError` means that it is refused.
        versions: also the disturbed versions of every T1-weighted scan.
        log: JSON lines to which every result is added; results that stand there already are taken over.
        model: what the results depend on besides the scans: model and software.
        progress: called with (part, done, all).
        about: facts for the result.

    Raises:
        NotFoundError, ScanError: the truth file cannot be used; see `truth_file.read_truth`.
        ScanError: a mask lies outside the brain, or cannot be measured.
        OutputError: the log cannot be written.
    """
    known = read_truth(truth)
    wanted = list(_wanted(known, versions))
    done = _logged(log)
    results: list[ScanResult] = []
    scan: Scan | ScanError | None = None
    for number, (one, at, version) in enumerate(wanted):
        if version == AS_IT_CAME:
            scan = _read(one.scans[at])
        assert scan is not None  # the scan as it came stands before its versions
        result = _result(one, at, version, scan, model, done, write)
        if result is not None:
            results.append(result)
            if log is not None and result.key not in done:
                _append(Path(log), result)
        if progress:
            progress("scans", number + 1, len(wanted))
    return ScanEvaluation(tuple(results), about or {})


def _wanted(known: Sequence[Known], versions: bool) -> Iterator[tuple[Known, int, str]]:
    for one in known:
        for at, entry in enumerate(one.about.scans):
            yield one, at, AS_IT_CAME
            if versions and entry.kind == "T1w":
                yield from ((one, at, name) for name in VERSIONS)


def _read(path: Path) -> Scan | ScanError:
    try:
        return read_scan(path)
    except (ScanError, NotFoundError) as error:
        return ScanError(error.what, seen=error.seen)


def _result(
    one: Known,
    at: int,
    version: str,
    scan: Scan | ScanError,
    model: str,
    done: dict[str, ScanResult],
    write: Callable[[Scan], ReportRecord],
) -> ScanResult | None:
    """Result of a scan in one version; None if there is no such version of it."""
    entry, file = one.about.scans[at], one.scans[at].name
    source = str(scan) if isinstance(scan, ScanError) else str(scan.provenance.sha256)
    key = sha256_of_text("\n".join([source, file, version, one.name, one.about.model_dump_json(), model]))
    if key in done:
        return done[key]
    facts = (key, one.name, one.person, file, entry.kind, version)
    if isinstance(scan, ScanError):
        return _refused(facts, one, scan)
    changed = scan if version == AS_IT_CAME else VERSIONS[version](scan)
    if changed is None:
        return None
    try:
        report = write(changed)
    except ScanError as error:
        return _refused(facts, one, error)
    return _scored(facts, one, report)


def _refused(facts: tuple[str, ...], one: Known, error: ScanError) -> ScanResult:
    why = error.what + (f" ({error.seen})" if error.seen else "")
    # Of a mask nothing is known without an alignment: it counts as one finding.
    count = len(one.about.findings) or len(one.about.masks)
    score = refused_score(count) if facts[4] == "T1w" else None
    return ScanResult(*facts, refused=why, known=tuple(map(_plain, one.about.findings)), score=score)


def _scored(facts: tuple[str, ...], one: Known, report: ReportRecord) -> ScanResult:
    stated = tuple(finding.model_dump(mode="json", exclude_none=True) for finding in report.findings)
    flags = (*(f"check: {flag.name}" for flag in report.provenance.qc if not flag.passed), *report.warnings)
    if facts[4] != "T1w":
        return ScanResult(*facts, text=report.stated_text or report.text, stated=stated, flags=flags)
    measured = findings_of(one, scan_to_template(report))
    score = score_scan(one.about, measured.findings, report.findings, unwarned=not flags)
    known = tuple(map(_plain, measured.findings))
    return ScanResult(
        *facts,
        text=report.stated_text or report.text,
        stated=stated,
        known=known,
        flags=flags,
        too_small=measured.too_small,
        score=score,
    )


def _plain(finding: Any) -> dict[str, Any]:
    return finding.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def scan_to_template(report: ReportRecord) -> Affine | None:
    """Scan world mm to template world mm, from a report's geometry log; None if the scan was not aligned."""
    for step in report.geometry:
        if step.name == "affine alignment" and step.before is not None and step.after is not None:
            return np.array(step.after) @ np.linalg.inv(np.array(step.before))
    return None


def _logged(log: str | Path | None) -> dict[str, ScanResult]:
    """Results of a log by their key; a last line that a killed run left unfinished is cut off, and done again."""
    if log is None or not Path(log).exists():
        return {}
    whole = Path(log).read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        write_bytes_atomic(log, kept, overwrite=True)
    found: dict[str, ScanResult] = {}
    for number, line in enumerate(kept.decode(errors="replace").splitlines(), start=1):
        try:
            result = ScanResult.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ScanError(
                f"{Path(log).name}, line {number}: not a result of evaluate --scans",
                seen=line[:100],
                hint="give another --log",
            ) from error
        found[result.key] = result
    return found


def _append(log: Path, result: ScanResult) -> None:
    try:
        with log.open("ab") as stream:
            stream.write(json.dumps(asdict(result)).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"{log} cannot be written", seen=error.strerror or str(error), exit_code=74) from error
