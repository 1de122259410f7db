"""Records of a report: sections, statements, evidence, citations, pictures, the generated text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from neuroflamingo.findings.agreement import MirrorVerdict
from neuroflamingo.findings.changes import Comparison
from neuroflamingo.findings.vocabulary import Finding, FindingClass, Region, Side
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
        mirrored: text about the mirrored scans; None if they cannot be mirrored, or the decoding was not greedy.
        tokens: `[scan, token, width]`, the encoder's tokens of the report's scans; None if they have frames.
    """

    text: str
    boundaries: tuple[int, ...]
    attention: Float[np.ndarray, "text scan token"] | None
    positions: Float[np.ndarray, "token 3"] | None
    ended: bool
    new_tokens: int
    mirrored: str | None = None
    tokens: Float[np.ndarray, "scan token width"] | None = None


BANNER = "Research use only, not for diagnosis. Machine-generated, not reviewed."


Plane = Literal["axial", "coronal", "sagittal"]
PictureKind = Literal["seen", "look", "alignment", "mean", "motion", "carpet", "array", "example"]


Verdict = Literal["stated", "possible", "withheld"]
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
    says whether the side and region that the sentence states lie within `within_mm` of the peak, for focal findings and
    atrophy only: None if nothing can be compared. `in_brain` says whether the peak lies in the brain, None if that is
    unknown; a peak outside is no evidence. `shared_with` are the other sentences with the same peak; it is `contested`,
    and no evidence for any of them alone, if two of them state a place. Attention shows where information came from; it
    does not prove why a word was generated.
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
    within_mm: float | None = None
    in_brain: bool | None = None
    shared_with: tuple[str, ...] = ()
    contested: bool = False
    tokens: tuple[TokenWeight, ...] = ()

    @property
    def supports(self) -> bool | None:
        """Whether the peak speaks for the sentence; None if it states no place."""
        if self.peak_matches is None:
            return None
        return self.peak_matches and self.in_brain is not False and not self.contested


class Statement(Record):
    """One sentence of the text: `text[start:end]` of the report, with the findings it states.

    `doubts` are reasons to doubt it, in a few words each: what contradicts it in the text, in the mirrored head, or in
    where the model looked. `verdict` says whether the report states it: `stated`, `possible` or `withheld`, which the
    report leaves out, since its finding is too unlikely.
    """

    id: str
    section: SectionName
    start: int
    end: int
    text: str
    findings: tuple[Finding, ...] = ()
    evidence: Evidence | None = None
    doubts: tuple[str, ...] = ()
    verdict: Verdict = "stated"


class Assessment(Record):
    """What speaks for or against one finding of FINDINGS, beside the text.

    `statement` is the sentence that states it. `mirror` says what becomes of its side in the report on the mirrored
    head: `swaps` as it must, `stays` (the side is uncertain), `absent` (nothing of its class is stated there); None
    for a finding without a left or right, or if the head was not mirrored. `probability` is calibrated on held-out
    heads; None if the model has no calibration for the class. `verdict` is what follows from it: the finding is stated,
    possible, or withheld, and then not among the report's findings. `doubts` are those of its sentence.
    """

    statement: str
    finding: Finding
    mirror: MirrorVerdict | None = None
    probability: float | None = None
    verdict: Verdict = "stated"
    doubts: tuple[str, ...] = ()


class KindError(Record):
    """A kind of finding that a model knows, and its measured errors: None if they were not measured.

    `false` is the share of those stated that were not there, `missed` the share of those there that were not stated,
    `cases` how many were there.
    """

    kind: FindingClass
    false: float | None = None
    missed: float | None = None
    cases: int = 0


class ModelCard(Record):
    """The essentials of the model's card: what its reports can be worth.

    `invented_on_normals` is the share of painted normal heads with an invented finding. `real` are figures on real
    scans, in words.
    """

    trained_on: str
    kinds: tuple[KindError, ...]
    measured_on: str | None = None
    invented_on_normals: float | None = None
    real: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


class LikenessRecord(Record):
    """How far the prepared head is from those that the model knows: above the threshold it is unlike them."""

    score: float
    threshold: float
    unlike: bool


class Sections(Record):
    """The text of each section, without its heading."""

    technique: str = ""
    findings: str = ""
    comparison: str = ""
    impression: str = ""


class ShownExample(Record):
    """One example that the model was shown before the scan: the name of its scan, and the words of its report."""

    name: str
    report: str


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
    """Contents of a report; see `Report`.

    `text` is what the model wrote. `stated_text` is what the report states of it, where findings are withheld or called
    possible for their probability; None if it is all of the text. `comparison` is what the text says has changed from
    the baseline, the first scan, to the follow-up, the second, which `findings` are of; None if it compares nothing.
    """

    banner: str = BANNER
    title: str
    text: str
    sections: Sections
    findings: tuple[Finding, ...]
    impression_findings: tuple[Finding, ...]
    comparison: Comparison | None = None
    statements: tuple[Statement, ...]
    assessments: tuple[Assessment, ...] = ()
    mirrored_text: str | None = None
    stated_text: str | None = None
    likeness: LikenessRecord | None = None
    model_card: ModelCard | None = None
    examples: tuple[ShownExample, ...] = ()
    parse: Parse
    methods: Methods
    warnings: tuple[str, ...] = ()
    provenance: Provenance
    pictures: tuple[Picture, ...] = Field(default=(), exclude=True, repr=False)

    @property
    def geometry(self) -> tuple[GeometryEntry, ...]:
        """Log of all reorientations, registrations and resamplings."""
        return self.provenance.geometry
