"""A report that disagrees with itself, or with the report on the mirrored head, is marked."""

from __future__ import annotations

import pytest

from neuroflamingo.findings.agreement import disagreements, mirror_verdicts
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import Finding, mirror
from neuroflamingo.findings.wording import render_report
from neuroflamingo.painting.anatomy import load_anatomy
from neuroflamingo.painting.cases import draw_blueprint


def words(findings: str, impression: str) -> list[str]:
    parsed = parse_report(f"FINDINGS: {findings}\nIMPRESSION: {impression}")
    return [point.words for point in disagreements(parsed)]


@pytest.mark.parametrize(
    ("findings", "impression", "expected"),
    [
        (
            "Hematoma in the right temporal lobe, 35 mm. Hematoma in the left temporal lobe, 10 mm.",
            "1. Right temporal lobe hematoma. 2. Right temporal lobe hematoma.",
            ["subacute hematoma: FINDINGS says left, IMPRESSION right"],
        ),
        (
            "The lateral ventricles are mildly enlarged.",
            "Moderate ventricular enlargement.",
            ["ventricular enlargement: FINDINGS says mild, IMPRESSION moderate"],
        ),
        (
            "Mass in the left frontal lobe, 20 mm.",
            "Left parietal mass of 4 cm.",
            ["mass: FINDINGS says frontal lobe, 20 mm, IMPRESSION parietal lobe, 40 mm"],
        ),
        (
            "Mass in the left frontal lobe.",
            "Left frontal infarct.",
            ["chronic infarct in IMPRESSION", "mass in FINDINGS"],
        ),
        ("Mass in the left frontal lobe.", "Normal MRI of the brain.", ["mass in FINDINGS but not in IMPRESSION"]),
        (
            "Infarct in the left insula. Infarct in the right thalamus.",
            "Right thalamic infarct.",
            ["chronic infarct: 2 in FINDINGS, 1 in IMPRESSION"],
        ),
        ("Mass in the left insula. No mass.", "Left insular mass.", ["mass both stated and denied"]),
    ],
)
def test_what_disagrees_is_named(findings: str, impression: str, expected: list[str]) -> None:
    seen = words(findings, impression)
    assert len(seen) == len(expected) and all(any(one in line for line in seen) for one in expected), seen


@pytest.mark.parametrize(
    ("findings", "impression"),
    [
        (
            "Mass in the left frontal lobe, measuring 24 mm. Mild white matter lesions.",
            "Left frontal mass of 2.4 cm. Mild white matter lesions.",
        ),
        (
            "Infarct in the left insula, 12 mm. Infarct in the right insula, 30 mm.",
            "1. Right insular infarct. 2. Left insular infarct.",
        ),
        ("No infarct, mass or hemorrhage.", "Normal MRI of the brain."),
    ],
)
def test_what_is_left_unsaid_is_no_disagreement(findings: str, impression: str) -> None:
    assert words(findings, impression) == []


def test_a_text_without_both_sections_has_nothing_to_compare() -> None:
    assert disagreements(parse_report("Mass in the left frontal lobe.")) == ()
    assert disagreements(parse_report("IMPRESSION: Left frontal mass.")) == ()
    assert disagreements(parse_report("")) == ()


@pytest.mark.slow
def test_rendered_reports_agree_with_themselves_and_with_their_mirror_image() -> None:
    head = load_anatomy("icbm2009a")
    for seed in range(40):
        truth = draw_blueprint(seed, head, crowded=seed % 2 == 0).findings
        parsed = parse_report(render_report(list(truth), seed).text)
        assert disagreements(parsed) == ()
        flipped = parse_report(render_report(list(mirror(truth)), seed + 1).text).findings
        assert set(mirror_verdicts(parsed.findings, flipped)) <= {"swaps", None}
        assert all(verdict != "swaps" for verdict in mirror_verdicts(parsed.findings, ()))


def finding(kind: str, side: str, region: str) -> Finding:
    return Finding(kind=kind, side=side, region=region)  # type: ignore[arg-type]


def test_a_side_that_does_not_swap_is_uncertain() -> None:
    left, right = (finding("subacute hematoma", side, "temporal lobe") for side in ("left", "right"))
    mass, stem = finding("mass", "left", "insula"), finding("mass", "midline", "brainstem")
    lobe = finding("lobar atrophy", "left", "frontal lobe")
    both = finding("lobar atrophy", "bilateral", "frontal lobe")
    assert mirror_verdicts([left], [right]) == ("swaps",)
    assert mirror_verdicts([left], [left]) == ("stays",)
    assert mirror_verdicts([left, right], [left]) == ("absent", "swaps")
    assert mirror_verdicts([left, right], [right, left]) == ("swaps", "swaps")
    assert mirror_verdicts([mass, stem], [left]) == ("absent", None)
    assert mirror_verdicts([lobe], [both]) == ("stays",)
    # The one in the same place is preferred to another of the class.
    near, far = finding("mass", "right", "insula"), finding("mass", "left", "cerebellum")
    assert mirror_verdicts([mass, finding("mass", "right", "cerebellum")], [far, near]) == ("swaps", "swaps")
