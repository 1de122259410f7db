"""Closed vocabulary of findings, from which scans are painted and reports rendered, and by which reports are scored."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class FindingClass(StrEnum):
    """Class of a finding, in the order of statements in a report."""

    INFARCT = "chronic infarct"
    MASS = "mass"
    HEMATOMA = "subacute hematoma"
    WHITE_MATTER_LESIONS = "white matter lesions"
    VENTRICULAR_ENLARGEMENT = "ventricular enlargement"
    ATROPHY = "lobar atrophy"


class Side(StrEnum):
    """Side of the patient, not of the image."""

    LEFT = "left"
    RIGHT = "right"
    BILATERAL = "bilateral"
    MIDLINE = "midline"


class Region(StrEnum):
    """The nine regions of focal findings, then the two of diffuse findings."""

    FRONTAL = "frontal lobe"
    PARIETAL = "parietal lobe"
    TEMPORAL = "temporal lobe"
    OCCIPITAL = "occipital lobe"
    INSULA = "insula"
    BASAL_GANGLIA = "basal ganglia"
    THALAMUS = "thalamus"
    BRAINSTEM = "brainstem"
    CEREBELLUM = "cerebellum"
    WHITE_MATTER = "cerebral white matter"
    VENTRICLES = "lateral ventricles"


class Signal(StrEnum):
    """Signal on the T1-weighted image relative to normal tissue around it."""

    LOW = "low"
    HIGH = "high"


class Certainty(StrEnum):
    """How sure a report is of a finding."""

    DEFINITE = "definite"
    POSSIBLE = "possible"


FOCAL = (FindingClass.INFARCT, FindingClass.MASS, FindingClass.HEMATOMA)
FOCAL_REGIONS = tuple(Region)[:9]
LOBES = (Region.FRONTAL, Region.PARIETAL, Region.TEMPORAL, Region.OCCIPITAL)
MIRRORED = {Side.LEFT: Side.RIGHT, Side.RIGHT: Side.LEFT}
SIGNAL_OF = {FindingClass.INFARCT: Signal.LOW, FindingClass.MASS: Signal.LOW, FindingClass.HEMATOMA: Signal.HIGH}


def _without_example(schema: dict[str, Any]) -> None:
    """Leave the example of the docstring out of a JSON schema's description."""
    schema["description"] = str(schema["description"]).partition("\n\nExample:")[0]


class Finding(BaseModel):
    """One finding on a scan.

    Focal classes have a side, one of nine regions, a longest diameter `size_mm` and a signal; white matter
    lesions and ventricular enlargement have a grade 1-3 (mild, moderate, severe), side bilateral and a fixed region;
    lobar atrophy has a side and a lobe. Attributes that a text does not state are None (in parsed findings only;
    painted ones are complete).

    Example:
        >>> from neuroflamingo import Finding
        >>> finding = Finding(kind="mass", side="left", region="frontal lobe", size_mm=20)
        >>> str(finding.side), finding.certainty.value
        ('left', 'definite')
        >>> Finding(kind="mass", grade=4)
        Traceback (most recent call last):
        ...
        pydantic_core._pydantic_core.ValidationError: 1 validation error for Finding
        ...
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra=_without_example,
    )

    kind: FindingClass
    side: Side | None = None
    region: Region | None = None
    size_mm: float | None = None
    grade: int | None = None
    signal: Signal | None = None
    certainty: Certainty = Certainty.DEFINITE

    @model_validator(mode="after")
    def _attributes_fit_class(self) -> Finding:
        if self.size_mm is not None and self.kind not in FOCAL:
            raise ValueError(f"{self.kind} has no size_mm")
        if self.grade is not None and self.grade not in (1, 2, 3):
            raise ValueError(f"grade must be 1, 2 or 3, not {self.grade}")
        return self


def mirror(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings of the mirrored head, with left and right swapped (to be used together with a flipped scan only)."""
    return tuple(f.model_copy(update={"side": MIRRORED.get(f.side, f.side)}) for f in findings)  # type: ignore[arg-type]


def report_order(findings: list[Finding]) -> list[Finding]:
    """Sort findings as reports state them: by class, then larger first, then by region and side."""
    classes, regions, sides = list(FindingClass), list(Region), list(Side)

    def key(finding: Finding) -> tuple[int, float, int, int]:
        region = regions.index(finding.region) if finding.region else -1
        side = sides.index(finding.side) if finding.side else -1
        return classes.index(finding.kind), -(finding.size_mm or 0.0), region, side

    return sorted(findings, key=key)
