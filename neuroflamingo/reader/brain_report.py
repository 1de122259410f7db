"""Records of a report that was read: its findings with their attributes, what it denies, and what was not read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from neuroflamingo.findings.vocabulary import FOCAL, Certainty, Finding, FindingClass, Region, Side
from neuroflamingo.reader.brain_findings import BY_NAME, OTHER

_DIFFUSE_REGION = {
    FindingClass.WHITE_MATTER_LESIONS: Region.WHITE_MATTER,
    FindingClass.VENTRICULAR_ENLARGEMENT: Region.VENTRICLES,
}


@dataclass(frozen=True)
class ReadFinding:
    """A finding as a report states it; what it leaves unsaid is None or empty.

    Attributes:
        name: in the table of brain findings, or "other finding".
        words: of the report, that name it.
        start, end: characters of these words in the text.
        side: of the patient.
        regions: names of places, regions of the findings' vocabulary first among their kind.
        size_mm: longest diameter, or a shift's or tonsils' distance.
        dimensions_mm: all diameters of that size, in the order of the text.
        previous_mm: longest diameter in an earlier scan.
        grade: 1 (mild) to 3 (severe).
        certainty: of the name.
        seen_as: a more general finding that is stated beside it for certain ("mass" in "mass, likely a meningioma").
        change: "new", "larger", "smaller" or "unchanged" since an earlier scan.
        section: "findings" or "impression".
    """

    name: str
    words: str
    start: int
    end: int
    side: Side | None = None
    regions: tuple[str, ...] = ()
    size_mm: float | None = None
    dimensions_mm: tuple[float, ...] = ()
    previous_mm: float | None = None
    grade: int | None = None
    certainty: Certainty = Certainty.DEFINITE
    seen_as: str | None = None
    change: str | None = None
    section: str = "findings"

    @property
    def code(self) -> str | None:
        """SNOMED CT code in DICOM's free set, or None where that set has none."""
        return None if self.name == OTHER else BY_NAME[self.name].code

    def as_finding(self) -> Finding | None:
        """The finding in the six classes of the embedded model, or None if it is in none of them."""
        rows = [BY_NAME[name] for name in (self.name, self.seen_as) if name in BY_NAME]
        kinds = [row.kind for row in rows if row.kind]
        if not kinds:
            return None
        regions = [Region(name) for name in self.regions if name in set(Region)]
        certainty = Certainty.DEFINITE if self.seen_as else self.certainty
        kind, region = kinds[0], regions[0] if regions else None
        if kind in FOCAL:
            return Finding(kind=kind, side=self.side, region=region, size_mm=self.size_mm, certainty=certainty)
        side = self.side or (Side.BILATERAL if kind in _DIFFUSE_REGION else None)
        region = _DIFFUSE_REGION.get(kind, region)
        return Finding(kind=kind, side=side, region=region, grade=self.grade, certainty=certainty)


@dataclass(frozen=True)
class ReadSentence:
    """One sentence: characters [start, end), and how far it was read.

    Attributes:
        section: "findings", "impression", or "silent" for technique, indication, history and the like.
        share: read part, 0 to 1; None for sentences that state nothing about the brain.
        unread: words of findings or negation that no rule used, or all of a sentence that was not understood.
    """

    start: int
    end: int
    text: str
    section: str
    share: float | None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrainReport:
    """A report that was read.

    Attributes:
        findings: that it states, in the order of the text; one that the impression repeats stands once.
        absent: names of findings that it denies.
        past: findings of the history, or treated ones.
        contradictions: in words.
        coverage: mean share read of the sentences that state something; 0 without any.
        sentences: all of them.
    """

    findings: tuple[ReadFinding, ...] = ()
    absent: frozenset[str] = frozenset()
    past: tuple[ReadFinding, ...] = ()
    contradictions: tuple[str, ...] = ()
    coverage: float = 0.0
    sentences: tuple[ReadSentence, ...] = field(default=())

    def as_record(self) -> dict[str, Any]:
        """All of it as plain data for JSON, with each finding's code and class."""
        record = asdict(self) | {"absent": sorted(self.absent), "coverage": round(self.coverage, 3)}
        for key, findings in (("findings", self.findings), ("past", self.past)):
            for row, finding in zip(record[key], findings, strict=True):
                kind = finding.as_finding()
                row |= {"code": finding.code, "class": kind and str(kind.kind)}
        return record

    @property
    def classes(self) -> tuple[Finding, ...]:
        """Its findings in the six classes of the embedded model; those of other classes are left out."""
        return tuple(found for found in (finding.as_finding() for finding in self.findings) if found is not None)
