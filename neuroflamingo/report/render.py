"""Rendering of a report in three formats with the same content: text, JSON and a self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from neuroflamingo.findings.changes import ChangeKind
from neuroflamingo.progress import visible, visible_lines
from neuroflamingo.report.assessment import NOT_STATED, POSSIBLE, evidence_words, numbers_of
from neuroflamingo.report.records import Sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neuroflamingo.findings.changes import Change
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.report.records import Evidence, Picture, ReportRecord, Statement

_TEMPLATES = Path(__file__).parent / "templates"
PAGE_LIMIT = 5_000_000
_ITEM = re.compile(r" (?=\d{1,2}\. )")
CAPTIONS = {
    "mean": "the mean of the run's frames on the encoder's grid, before the intensity steps. Radiological convention: "
    "the patient's left is on the right of axial and coronal pictures. Positions are in template millimetres (RAS+).",
    "motion": "the run's motion: DVARS, the root mean square change from frame to frame in percent of the mean signal, "
    "and framewise displacement where a table of confounds gives it. Peaks are sudden movements or artefacts.",
    "carpet": "the parcel series as a carpet plot, every parcel a row in units of its own standard deviation. Vertical "
    "stripes are changes of the whole brain at once: motion, breathing or artefacts.",
    "array": "planes of the array as it was given. Where it lies in the body is not recorded, so no side is marked.",
}
"""Captions of pictures that are not slices of a prepared volume, by kind."""
GRADES = {1: "mild", 2: "moderate", 3: "severe"}


def to_json(report: ReportRecord) -> str:
    """Render the report as JSON (see report.schema.json), without pictures."""
    return report.model_dump_json(indent=2) + "\n"


def to_text(report: ReportRecord) -> str:
    """Render the report as plain text, at most 100 columns wide if possible."""
    return visible_lines(_environment().get_template("report.txt.j2").render(**_context(report)).strip()) + "\n"


def to_html(report: ReportRecord) -> str:
    """Render the page: no scripts, no external requests, everything escaped, styles pinned by their hash.

    If pictures would make the page larger than 5 MB, the alignment pictures and then the overlays of the last sentences
    are omitted, and the page states their number.
    """
    pictures = _within_limit(report.pictures)
    return render_page(
        "report.html.j2",
        **_context(report),
        pictures=pictures,
        linked=linked_slices(pictures),
        drawn=CAPTIONS,
        left_out=len(report.pictures) - len(pictures),
    )


def render_page(template: str, *, sheets: Sequence[str] = ("report.css",), style: str = "", **context: Any) -> str:
    """Render a page in the project's style; its policy allows this style by its hash, and nothing else.

    Args:
        template: name of a template in `templates`; all that it shows is escaped.
        sheets: style sheets in `templates`.
        style: rules that follow them; never of text from outside.
        context: values for the template.
    """
    css = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in sheets) + style
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return _environment().get_template(template).render(**context, css=Markup(css), style_hash=f"sha256-{digest}")


def _within_limit(pictures: tuple[Picture, ...]) -> list[Picture]:
    first_out = {"seen": 0, "example": 0, "mean": 0, "motion": 0, "carpet": 0, "array": 0, "look": 1, "alignment": 2}
    kept = sorted(pictures, key=lambda picture: first_out[picture.kind])
    while kept and sum(len(picture.data) for picture in kept) * 4 / 3 > 0.9 * PAGE_LIMIT:
        kept.pop()
    return [picture for picture in pictures if picture in kept]


def linked_slices(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Slices of several scans side by side: in each group the same slice of every scan; empty where that cannot be."""
    seen = [picture for picture in pictures if picture.kind == "seen"]
    scans = sorted({picture.scan for picture in seen})
    groups: dict[tuple[str | None, float | None], list[Picture]] = {}
    for picture in seen:
        groups.setdefault((picture.plane, picture.position_mm), []).append(picture)
    whole = all([picture.scan for picture in group] == scans for group in groups.values())
    return list(groups.values()) if len(scans) > 1 and whole else []


def scan_labels(report: ReportRecord) -> list[str]:
    """What the page calls the scans of the report."""
    count = sum(record.role == "scan" for record in report.provenance.inputs)
    if report.comparison is not None and count == 2:
        return ["baseline", "follow-up"]
    return [f"scan {number}" for number in range(1, count + 1)]


def _context(report: ReportRecord) -> dict[str, Any]:
    return {
        "report": report,
        "provenance": report.provenance,
        "prose": prose(report),
        "shown": _shown(report),
        "numbers": (numbers := numbers_of(report.statements, {one.id: one.verdict for one in report.statements})),
        "verdicts": {
            one.id: evidence_words(one.evidence, numbers) for one in report.statements if one.evidence is not None
        },
        "links": _links(report),
        "labels": scan_labels(report),
        "names": [record.name for record in report.provenance.inputs if record.role == "scan"],
        "doubted": [one for one in report.statements if one.doubts and one.verdict != "withheld"],
        "assessed": (assessed := [one for one in report.assessments if one.verdict != "withheld"]),
        "withheld": [one for one in report.assessments if one.verdict == "withheld"],
        "mirrored": any(one.mirror is not None for one in assessed) and len(assessed) == len(report.findings),
        "judged": any(one.probability is not None for one in assessed) and len(assessed) == len(report.findings),
    }


def _shown(report: ReportRecord) -> list[Statement]:
    return [one for one in report.statements if one.evidence and one.verdict != "withheld"]


def _links(report: ReportRecord) -> dict[str, str]:
    """For each sentence, the sentence whose overlay it links to: itself, or one that states the same finding."""
    shown = _shown(report)
    links = {statement.id: statement.id for statement in shown}
    for statement in report.statements:
        places = {_place_key(finding) for finding in statement.findings}
        same = [other.id for other in shown if places & {_place_key(finding) for finding in other.findings}]
        if statement.id not in links and same:
            links[statement.id] = same[0]
    return links


def _place_key(finding: Finding) -> tuple[str, str | None, str | None]:
    return str(finding.kind), finding.side, finding.region


def prose(report: ReportRecord) -> list[tuple[str, list[tuple[str, Statement | None]]]]:
    """The text as sections of pieces: `(section, [(words, the statement they belong to or None)])`.

    Nothing is lost but sentences that are withheld.
    """
    out: list[tuple[str, list[tuple[str, Statement | None]]]] = []
    names = [(name.capitalize(), name) for name in Sections.model_fields]
    for title, name in names:
        body = getattr(report.sections, name)
        if body:
            pieces = _pieces(report, body)
            out.append((title, _listed(pieces) if name == "impression" else pieces))
    return out or [("Text", _pieces(report, report.text))]


def _pieces(report: ReportRecord, body: str) -> list[tuple[str, Statement | None]]:
    offset = report.text.find(body)
    if offset < 0:
        return [(body, None)]
    pieces: list[tuple[str, Statement | None]] = []
    at, stop = offset, offset + len(body)
    for statement in sorted(report.statements, key=lambda item: item.start):
        if statement.start < at or statement.end > stop:
            continue
        words = report.text[statement.start : statement.end]
        pieces += [(report.text[at : statement.start], None), _as_stated(words, statement)]
        at = statement.end
    pieces.append((report.text[at:stop], None))
    return [piece for piece in pieces if piece[0]]


def _as_stated(words: str, statement: Statement) -> tuple[str, Statement | None]:
    """A sentence as the report states it: left out, or called possible, where its finding is not likely enough."""
    if statement.verdict == "withheld":
        return (NOT_STATED if statement.section == "impression" else ""), None
    return (POSSIBLE + words if statement.verdict == "possible" else words), statement


def _listed(pieces: list[tuple[str, Statement | None]]) -> list[tuple[str, Statement | None]]:
    """Put numbered items (`1. ... 2. ...`) on separate lines; only white space between sentences changes."""
    return [(words if statement else _ITEM.sub("\n", words), statement) for words, statement in pieces]


def signed(value: float, digits: int = 0) -> str:
    """A coordinate with its sign, as a true minus: `+12`, `−40`."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def place(point: tuple[float, float, float]) -> str:
    """Format the coordinates of a point in mm."""
    return "(" + ", ".join(signed(value) for value in point) + ") mm"


def size(finding: Finding) -> str:
    """The size of a finding, or a dash."""
    return f"{finding.size_mm:g} mm" if finding.size_mm is not None else "–"


def grade(finding: Finding) -> str:
    """Format the grade of a finding, or a dash."""
    return GRADES[finding.grade] if finding.grade is not None else "–"


def percent(share: float | None) -> str:
    """A share in whole percent, or a dash: not measured."""
    return "–" if share is None else f"{100 * share:.0f} %"


def place_of(finding: Finding) -> str:
    """Side and region of a finding, or a dash."""
    return " ".join(str(part) for part in (finding.side, finding.region) if part) or "–"


def describe(finding: Finding) -> str:
    """A finding in one line: `chronic infarct, left temporal lobe, 24 mm`."""
    words = [str(finding.kind), place_of(finding), size(finding), grade(finding)]
    return ", ".join(word for word in words if word and word != "–")


def state(finding: Finding | None) -> str:
    """A finding on one of two scans: its size or grade, `present` without either, `none` if it is not there."""
    if finding is None:
        return "none"
    return next((words for words in (size(finding), grade(finding)) if words != "–"), "present")


def change_words(change: Change) -> str:
    """A change in a few words: `larger by 10 mm`."""
    by = change.size_change_mm
    if by is None or change.kind is ChangeKind.UNCHANGED:
        return str(change.kind)
    return f"{change.kind} by {abs(by):g} mm"


def focus(evidence: Evidence) -> str:
    """Sharpness of the attention: `19 % within 30 mm (8.1 times the even share)`."""
    times = evidence.share_near_peak / evidence.even_share if evidence.even_share else 0.0
    return (
        f"{100 * evidence.share_near_peak:.0f} % within {evidence.radius_mm:.0f} mm ({times:.1f} times the even share)"
    )


def region(evidence: Evidence) -> str:
    """The side and region that a statement's evidence peaks in."""
    side = "midline" if evidence.peak_side == "midline" else str(evidence.peak_side)
    return f"{side} {evidence.peak_region}"


def matrix(rows: tuple[tuple[float, ...], ...] | None) -> str:
    """A 4 x 4 affine as its upper three lines, columns aligned."""
    if not rows:
        return "–"
    words = [[f"{round(value, 3) + 0.0:.3f}".replace("-", "−") for value in row] for row in rows[:3]]
    widths = [max(len(row[column]) for row in words) for column in range(len(words[0]))]
    return "\n".join(" ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in words)


def data_uri(picture: Picture) -> str:
    """A picture as a `data:` address, so that the page needs no other file."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is None or ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        place=place,
        signed=signed,
        size=size,
        grade=grade,
        percent=percent,
        describe=describe,
        place_of=place_of,
        state=state,
        change=change_words,
        focus=focus,
        region=region,
        visible=visible,
        visible_lines=visible_lines,
        matrix=matrix,
        data_uri=data_uri,
    )
    return environment
