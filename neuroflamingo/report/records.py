"""Records that a report is made of: sections, statements, evidence, citations, pictures, the generated text."""

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
        text: what the model wrote, without special tokens and surrounding blanks.
        boundaries: characters of `text` after 0, 1, 2 ... generated tokens.
        looks: `[text, scan, token]`, where the position that wrote each generated token looked, for the asked scans;
            None if the model cannot tell.
        positions: `[token, 3]` world mm of the encoder's tokens, None if they have no place.
        ended: whether the model ended the text itself.
        new_tokens: how many tokens it wrote.
    """

    text: str
    boundaries: tuple[int, ...]
    looks: Float[np.ndarray, "text scan token"] | None
    positions: Float[np.ndarray, "token 3"] | None
    ended: bool
    new_tokens: int


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
    """The text of each section, without its heading."""

    technique: str = ""
    findings: str = ""
    impression: str = ""


class Parse(Record):
    """How much of the text the closed grammar of findings understood."""

    coverage: float
    unparsed: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()


class Citation(Record):
    """One reference of the methods text."""

    key: str
    text: str
    url: str | None = None


class Methods(Record):
    """What was done, as a paragraph for a paper, and its references."""

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


class ReportRecord(Record):
    """What a report holds; see `Report`."""

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
