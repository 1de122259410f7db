"""Records of a report: sections, statements, evidence, citations, pictures, the generated text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from neuroflamingo.findings.vocabulary import Finding, Region, Side
from neuroflamingo.provenance import GeometryEntry, Provenance
from neuroflamingo_preprocessing.software import Record

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float


@dataclass(frozen=True)
class GeneratedText:
    """A generated text.

    Attributes:
        text: the model's output, without special tokens and surrounding blanks.
        boundaries: number of characters of `text` after 0, 1, 2 ... generated tokens.
        attention: `[text, scan, token]`, attention of the position that generated each token, for the scans of the
            report; None if unavailable.
        positions: `[token, 3]` positions of the encoder's tokens in world mm; None if they have none.
        ended: the model ended the text itself.
        new_tokens: number of generated tokens.
    """

    text: str
    boundaries: tuple[int, ...]
    attention: Float[np.ndarray, "text scan token"] | None
    positions: Float[np.ndarray, "token 3"] | None
    ended: bool
    new_tokens: int


BANNER = "Research use only, not for diagnosis. Machine-generated, not reviewed."


Plane = Literal["axial", "coronal", "sagittal"]
PictureKind = Literal["seen", "look", "alignment", "mean", "motion", "carpet", "array"]


SectionName = Literal["technique", "findings", "impression", "other"]


class TokenWeight(Record):
    """One encoder token that the gated attention looked at: its centre (RAS+ mm) and its share of the attention."""

    position_mm: tuple[float, float, float]
    weight: float


class Evidence(Record):
    """Gated attention while one sentence was generated.

    `placed_share` is the attention on tokens that have a position (summary tokens of encoders have none); the other
    values refer to these tokens. `share_near_peak` is the share within `radius_mm` of the peak; `even_share` is the
    share there of a uniform distribution, so that their ratio states how focused the attention is. `peak_matches`
    compares the peak's side and region with those that the sentence states, for focal findings only: None if nothing
    can be compared. Attention shows where information came from; it does not prove why a word was generated.
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
    """The text of each section, without its heading."""

    technique: str = ""
    findings: str = ""
    impression: str = ""


class Parse(Record):
    """Share of the text that the closed grammar of findings understood."""

    coverage: float
    unparsed: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()


class Citation(Record):
    """One reference of the methods text."""

    key: str
    text: str
    url: str | None = None


class Methods(Record):
    """Methods paragraph for a paper, and its references."""

    text: str
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True)
class Picture:
    """An encoded image file: a slice, with the patient's left on the right side of the picture, or a drawing over time.

    `plane` and `position_mm` are those of a slice; None for a drawing.
    """

    kind: PictureKind
    plane: Plane | None
    scan: int
    position_mm: float | None
    media_type: str
    data: bytes
    width: int
    height: int
    alt: str
    statement: str | None = None


class ReportRecord(Record):
    """Contents of a report; see `Report`."""

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
        """Log of all reorientations, registrations and resamplings."""
        return self.provenance.geometry
