"""Reports on unreadable scans, instead of calling an empty scan normal."""

from __future__ import annotations

from neuroflamingo.findings.wording import IMPRESSION, RenderedReport

_TECHNIQUE = "TECHNIQUE: T1-weighted brain MRI without contrast.\n"
_WORDINGS = (
    ("The scan is not readable.", "No report is possible."),
    ("The scan is blank and not readable.", "No report is possible."),
    ("No brain is seen on the scan.", "No report is possible."),
)


def unreadable_report(seed: int) -> RenderedReport:
    """Report on a scan without a brain; all words after TECHNIQUE count as spans."""
    findings, impression = _WORDINGS[seed % len(_WORDINGS)]
    text = f"{_TECHNIQUE}FINDINGS: {findings}{IMPRESSION} {impression}"
    first, second = text.index(findings), text.index(impression)
    return RenderedReport(text, ((first, first + len(findings)), (second, second + len(impression))))
