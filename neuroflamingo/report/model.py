"""The report as a value: text, the findings parsed from it, where the model looked, and where everything came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from neuroflamingo.findings.schema import Finding, Region, Side
from neuroflamingo.provenance import GeometryEntry, Provenance, Record

BANNER = "Research use only, not for diagnosis. Machine-generated, not reviewed."
Plane = Literal["axial", "coronal", "sagittal"]
SectionName = Literal["technique", "findings", "impression", "other"]


class TokenWeight(Record):
    """One encoder token that the gated attention looked at: its centre (RAS+ mm) and its share of the attention."""

    position_mm: tuple[float, float, float]
    weight: float


class Evidence(Record):
    """Where the gated attention looked while one sentence was written.

    `placed_share` is the attention on tokens that have a place (encoders may add summary tokens that have none); the
    rest is about that part. `share_near_peak` is the share within `radius_mm` of the peak; `even_share` is what an even
    spread would put there, so their ratio says how much the sentence singled a place out. `peak_matches` compares
    the peak's side and region with those the sentence states, for focal findings only: None where nothing can be
    compared. Attention shows where information was taken from; it does not prove why a word was written.
    """

    scan: int
    peak_mm: tuple[float, float, float]
    peak_side: Side
    peak_region: Region
    radius_mm: float
    share_near_peak: float
    even_share: float
    placed_share: float = 1.0
    peak_matches: bool | None = None
    tokens: tuple[TokenWeight, ...] = ()


class Statement(Record):
    """One sentence of the text: `text[start:end]` of the report, with the findings it states."""

    id: str
    section: SectionName
    start: int
    end: int
    text: str
    findings: tuple[Finding, ...] = ()
    evidence: Evidence | None = None


class Sections(Record):
    technique: str = ""
    findings: str = ""
    impression: str = ""


class Parse(Record):
    """How much of the text the closed grammar of findings understood."""

    coverage: float
    unparsed: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()


class Citation(Record):
    key: str
    text: str
    url: str | None = None


class Methods(Record):
    text: str
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One slice as an encoded image file, always with patient's left on the right side of the picture."""

    kind: Literal["seen", "look", "alignment"]
    plane: Plane
    scan: int
    position_mm: float
    media_type: str
    data: bytes
    width: int
    height: int
    alt: str
    statement: str | None = None


class Report(Record):
    """A machine-written report that can be checked: every sentence, number and file is traceable.

    `text` is what the model wrote, unchanged; `sections`, `findings`, `impression_findings` and `statements` are parsed
    from it. `findings` are those of the FINDINGS section. `pictures` are for the page and are left out of the JSON.
    """

    banner: str = BANNER
    title: str
    text: str
    sections: Sections
    findings: tuple[Finding, ...]
    impression_findings: tuple[Finding, ...]
    statements: tuple[Statement, ...]
    parse: Parse
    methods: Methods
    warnings: tuple[str, ...] = ()
    provenance: Provenance
    pictures: tuple[Picture, ...] = Field(default=(), exclude=True, repr=False)

    @property
    def geometry(self) -> tuple[GeometryEntry, ...]:
        """The log of every reorientation, registration and resampling."""
        return self.provenance.geometry

    def to_text(self) -> str:
        from neuroflamingo.report.render import to_text

        return to_text(self)

    def to_json(self) -> str:
        from neuroflamingo.report.render import to_json

        return to_json(self)

    def to_html(self) -> str:
        from neuroflamingo.report.render import to_html

        return to_html(self)


def json_schema() -> dict:
    """The published schema of the JSON form (the same as report.schema.json in this folder)."""
    schema = Report.model_json_schema(mode="serialization")
    schema["properties"].pop("pictures", None)
    schema.get("$defs", {}).pop("Picture", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
