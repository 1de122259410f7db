"""Random findings for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from neuroflamingo.findings.vocabulary import (
    FOCAL,
    FOCAL_REGIONS,
    LOBES,
    Certainty,
    Finding,
    FindingClass,
    Region,
    Side,
    Signal,
)

_CERTAINTY = st.sampled_from(list(Certainty))
_GRADE = st.sampled_from([1, 2, 3, None])

FOCAL_FINDINGS = st.builds(
    Finding,
    kind=st.sampled_from(FOCAL),
    side=st.sampled_from([*Side, None]),
    region=st.sampled_from([*FOCAL_REGIONS, None]),
    size_mm=st.one_of(st.none(), st.integers(1, 120).map(float)),
    signal=st.sampled_from([*Signal, None]),
    certainty=_CERTAINTY,
)
WHITE_MATTER = st.builds(
    Finding,
    kind=st.just(FindingClass.WHITE_MATTER_LESIONS),
    side=st.just(Side.BILATERAL),
    region=st.just(Region.WHITE_MATTER),
    grade=_GRADE,
    certainty=_CERTAINTY,
)
VENTRICLES = st.builds(
    Finding,
    kind=st.just(FindingClass.VENTRICULAR_ENLARGEMENT),
    side=st.just(Side.BILATERAL),
    region=st.just(Region.VENTRICLES),
    grade=_GRADE,
    certainty=_CERTAINTY,
)
ATROPHY = st.builds(
    Finding,
    kind=st.just(FindingClass.ATROPHY),
    side=st.sampled_from([*Side, None]),
    region=st.sampled_from([*LOBES, None]),
    grade=_GRADE,
    certainty=_CERTAINTY,
)


@st.composite
def finding_lists(draw: st.DrawFn) -> list[Finding]:
    """Up to four focal findings, three atrophies, and each diffuse finding or not."""
    findings = draw(st.lists(FOCAL_FINDINGS, max_size=4)) + draw(st.lists(ATROPHY, max_size=3))
    findings += draw(st.lists(WHITE_MATTER, max_size=1)) + draw(st.lists(VENTRICLES, max_size=1))
    return draw(st.permutations(findings))
