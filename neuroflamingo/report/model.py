"""`Report`: text, the findings parsed from it, attention evidence, and provenance."""

from __future__ import annotations

from neuroflamingo.report.records import ReportRecord
from neuroflamingo.report.render import to_html, to_json, to_text


class Report(ReportRecord):
    """A machine-generated report that can be verified: every sentence, number and file is traceable.

    `text` is the model's output, unchanged; `sections`, `findings`, `impression_findings` and `statements` are parsed
    from it. `findings` are those of the FINDINGS section. `pictures` are for the page and are omitted from the JSON.

    Example:
        >>> from neuroflamingo import write_report
        >>> from neuroflamingo.painting import paint_case
        >>> report = write_report(paint_case(11).scan(), pictures=False)
        >>> [section for section, text in report.sections if text]
        ['technique', 'findings', 'impression']
        >>> [str(finding.kind) for finding in report.findings]
        []
        >>> report.sections.impression
        'Normal MRI of the brain.'
    """

    def to_text(self) -> str:
        """Render the report as plain text."""
        return to_text(self)

    def to_json(self) -> str:
        """Render the report as JSON, see `json_schema`."""
        return to_json(self)

    def to_html(self) -> str:
        """Render the report as a self-contained HTML page."""
        return to_html(self)


def json_schema() -> dict:
    """Published schema of the JSON format (the same as report.schema.json in this folder)."""
    schema = Report.model_json_schema(mode="serialization")
    schema["description"] = schema["description"].partition("\n\nExample:")[0]
    schema["properties"].pop("pictures", None)
    schema.get("$defs", {}).pop("Picture", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
