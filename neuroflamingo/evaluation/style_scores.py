"""Scores of reports after examples: whether they follow the examples' house style, and what leaks from the examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroflamingo.findings.changes import Comparison
from neuroflamingo.findings.comparison import parse_comparison
from neuroflamingo.findings.house_styles import HouseStyle, alike_styles, render_in_style
from neuroflamingo.findings.parsing import parse_report, place_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neuroflamingo.findings.vocabulary import Finding


_TIE_MM = 1e-4


def _later(finding: Finding | None, place: int) -> Finding | None:
    """A finding made smaller by nothing that is written, so that alike sizes stay in the order of the text."""
    if finding is None or finding.size_mm is None:
        return finding
    return finding.model_copy(update={"size_mm": finding.size_mm - _TIE_MM * place})


def follows_style(text: str, style: HouseStyle, examples: Sequence[Sequence[Finding]] = ()) -> bool:
    """Whether a report is written as the house writes.

    The rule: its findings (and its comparison, if it has that section) are read, and written again in the style. The
    two texts must agree word for word, headings, marks and punctuation included; only blanks and line breaks may
    differ. Whether the findings are true does not matter. If IMPRESSION states other findings than FINDINGS, it is held
    against those that it states itself: that is a fault, but not one of style.

    Args:
        text: the report.
        style: of the house.
        examples: findings of each example that the writer was shown. What they do not show of the style is free: after
            a normal head as the only example, sizes may be in mm or in cm.
    """
    parsed, compared = parse_report(text), parse_comparison(text)
    findings = [one for place, finding in enumerate(parsed.findings) if (one := _later(finding, place))]
    changes = [
        change.model_copy(update={"before": _later(change.before, place), "after": _later(change.after, place)})
        for place, change in enumerate(compared.changes if compared.same_head else ())
    ]
    comparison = Comparison(same_head=compared.same_head, changes=tuple(changes)) if compared.has_section else None

    def written(house: HouseStyle) -> list[str]:
        lines = render_in_style(findings, house, comparison).text.split("\n")
        if not parsed.agrees:
            lines[-1] = render_in_style(parsed.impression, house).text.split("\n")[-1]
        return " ".join(lines).split()

    words = text.split()
    return written(style) == words or any(written(other) == words for other in alike_styles(style, examples)[1:])


def leaked(text: str, truth: Sequence[Finding], example_findings: Sequence[Finding]) -> bool:
    """Whether a report states a finding that is not there, but in an example.

    Findings are the same if class, side and region are. An invention may be an example's by chance: compare with the
    share for examples that the model was not shown.

    Args:
        text: the report.
        truth: true findings of its scan.
        example_findings: true findings of all examples before it.
    """
    foreign = set(map(place_key, example_findings)) - set(map(place_key, truth))
    return not foreign.isdisjoint(map(place_key, parse_report(text).findings))
