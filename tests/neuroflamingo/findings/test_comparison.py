"""Reading of COMPARISON: own texts without loss in every style, other people's words as far as the rules go."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroflamingo.findings.changes import Change, ChangeKind, Comparison, change_between
from neuroflamingo.findings.comparison import parse_comparison
from neuroflamingo.findings.house_styles import UNSEEN_STYLES, HouseStyle, drawable_styles, render_in_style
from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import (
    FOCAL,
    FOCAL_REGIONS,
    LOBES,
    SIGNAL_OF,
    Finding,
    FindingClass,
    Region,
    Side,
)
from neuroflamingo.findings.wording import render_report

MASS, INFARCT, ATROPHY = FindingClass.MASS, FindingClass.INFARCT, FindingClass.ATROPHY
VENTRICLES, LESIONS = FindingClass.VENTRICULAR_ENLARGEMENT, FindingClass.WHITE_MATTER_LESIONS
PLACE = {VENTRICLES: Region.VENTRICLES, LESIONS: Region.WHITE_MATTER}


def key(change: Change) -> tuple[object, ...]:
    """All that a comparison states of a change."""

    def seen(finding: Finding | None) -> tuple[object, ...] | None:
        return finding and (finding.kind, finding.side, finding.region, finding.size_mm, finding.grade)

    return change.kind, seen(change.before), seen(change.after)


@st.composite
def focal_changes(draw: st.DrawFn) -> Change:
    kind = draw(st.sampled_from(FOCAL))
    side, region = draw(st.sampled_from([Side.LEFT, Side.RIGHT, Side.MIDLINE])), draw(st.sampled_from(FOCAL_REGIONS))
    size = draw(st.integers(4, 60))
    finding = Finding(kind=kind, side=side, region=region, size_mm=size, signal=SIGNAL_OF[kind])
    other = finding.model_copy(update={"size_mm": float(size + draw(st.integers(6, 40)))})
    before, after = draw(
        st.sampled_from([(None, finding), (finding, None), (finding, finding), (finding, other), (other, finding)])
    )
    return change_between(before, after)


@st.composite
def graded_changes(draw: st.DrawFn, kind: FindingClass) -> Change:
    before, after = draw(st.tuples(*[st.sampled_from([None, 1, 2, 3])] * 2).filter(any))
    scans = [
        None if grade is None else Finding(kind=kind, side=Side.BILATERAL, region=PLACE[kind], grade=grade)
        for grade in (before, after)
    ]
    return change_between(*scans)


@st.composite
def atrophy_changes(draw: st.DrawFn) -> Change:
    side, region = draw(st.sampled_from([Side.LEFT, Side.RIGHT, Side.BILATERAL])), draw(st.sampled_from(LOBES))
    finding = Finding(kind=ATROPHY, side=side, region=region)
    return change_between(draw(st.sampled_from([finding, None])), finding)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    changes = draw(st.lists(focal_changes(), max_size=4)) + draw(st.lists(atrophy_changes(), max_size=1))
    changes += draw(st.lists(graded_changes(VENTRICLES), max_size=1))
    changes += draw(st.lists(graded_changes(LESIONS), max_size=1))
    return Comparison(same_head=True, changes=tuple(changes))


def assert_read(comparison: Comparison, text: str) -> None:
    parsed = parse_comparison(text)
    assert Counter(map(key, parsed.changes)) == Counter(map(key, comparison.changes)), text
    assert Counter(map(key, parsed.comparison.changes)) == Counter(map(key, comparison.changes))
    assert parsed.coverage == 1.0, (text, parsed.unparsed)
    assert parsed.has_section and parsed.stated and parsed.same_head
    assert parsed.nothing == (not comparison.changes)
    assert not parsed.contradictions, (text, parsed.contradictions)


def follow_up(comparison: Comparison) -> list[Finding]:
    return [change.after for change in comparison.changes if change.after]


@settings(max_examples=150, deadline=None)
@given(comparisons(), st.sampled_from([*drawable_styles(), *UNSEEN_STYLES]))
def test_every_style_reads_back_without_loss(comparison: Comparison, style: HouseStyle) -> None:
    assert_read(comparison, render_in_style(follow_up(comparison), style, comparison).text)


@settings(max_examples=60, deadline=None)
@given(comparisons(), st.integers(0, 10_000))
def test_every_wording_reads_back_without_loss(comparison: Comparison, seed: int) -> None:
    assert_read(comparison, render_report(follow_up(comparison), seed, comparison=comparison).text)


@pytest.mark.parametrize("wording", range(6))
def test_different_heads_are_read(wording: int) -> None:
    style = HouseStyle("one", wording=wording)  # type: ignore[arg-type]
    text = render_in_style([Finding(kind=MASS)], style, Comparison(same_head=False)).text
    parsed = parse_comparison(text)
    assert parsed.comparison == Comparison(same_head=False)
    assert parsed.stated and parsed.coverage == 1.0 and not parsed.contradictions
    assert [finding.kind for finding in parse_report(text).findings] == [MASS]


def one(text: str) -> tuple[object, ...]:
    (change,) = parse_comparison(text).changes
    before, after = change.before, change.after
    sizes = (before and before.size_mm, after and after.size_mm)
    return change.kind.value, change.finding.kind.value, str(change.finding.side), str(change.finding.region), *sizes


@pytest.mark.parametrize(
    ("words", "kind", "before", "after"),
    [
        ("Interval growth of the left frontal mass, now 25 mm, previously 15 mm.", "larger", 15, 25),
        ("The left frontal mass has enlarged from 1.5 to 2.5 cm.", "larger", 15, 25),
        ("Left frontal mass, increased in size, 25 x 20 mm (previously 15 x 10 mm).", "larger", 15, 25),
        ("The mass in the left frontal lobe measures 25 mm, compared with 15 mm before.", "larger", 15, 25),
        ("The left frontal mass was 15 mm and is now 25 mm.", "larger", 15, 25),
        ("The left frontal mass has progressed.", "larger", None, None),
        ("The left frontal mass has decreased in size from 20 to 12 mm.", "smaller", 20, 12),
        ("Decrease in size of the left frontal tumour, 12 mm vs 20 mm.", "smaller", 20, 12),
        ("Left frontal glioma, smaller, 12 mm; previously 20 mm.", "smaller", None, 12),
        ("Stable left frontal mass, 20 mm.", "unchanged", 20, 20),
        ("No significant interval change of the left frontal mass.", "unchanged", None, None),
        ("The left frontal mass has not grown.", "unchanged", None, None),
        ("There is no interval growth of the left frontal mass.", "unchanged", None, None),
        ("The left frontal mass is similar in size.", "unchanged", None, None),
        ("The left frontal mass has resolved.", "gone", None, None),
        ("The left frontal mass, previously 20 mm, is no longer visible.", "gone", 20, None),
        ("Resolution of the left frontal mass.", "gone", None, None),
        ("New left frontal mass of 25 mm.", "new", None, 25),
        ("There is a new 25 mm mass in the left frontal lobe.", "new", None, 25),
        ("A mass in the left frontal lobe has appeared.", "new", None, None),
        ("The left frontal mass, not seen on the previous scan, measures 12 mm.", "new", None, 12),
        ("The previously seen left frontal mass is not seen on the current scan.", "gone", None, None),
        ("Left frontal mass, smaller than before (12 mm vs. 20 mm).", "smaller", 20, 12),
        ("The left frontal mass has increased by 10 mm and is now 25 mm.", "larger", None, 25),
        ("Resolved edema around the unchanged left frontal mass.", "unchanged", None, None),
        ("Compared to the prior study, the left frontal mass is unchanged at 25 mm.", "unchanged", 25, 25),
    ],
)
def test_other_words_for_a_change(words: str, kind: str, before: float | None, after: float | None) -> None:
    expected = (kind, "mass", "left", "frontal lobe", before, after)
    assert one(f"COMPARISON: {words}") == expected
    assert one(f"FINDINGS: {words} No hemorrhage.\nIMPRESSION: As above.") == expected
    assert one(words) == expected


def test_several_changes_in_a_sentence() -> None:
    text = "COMPARISON: The left frontal mass is larger and the right thalamic infarct is unchanged."
    assert [change.kind for change in parse_comparison(text).changes] == ["larger", "unchanged"]
    text = "COMPARISON: New left frontal mass and resolved right thalamic hematoma."
    assert [change.kind for change in parse_comparison(text).changes] == ["new", "gone"]
    text = "COMPARISON: The left frontal mass and the right thalamic infarct are stable."
    assert [change.kind for change in parse_comparison(text).changes] == ["unchanged", "unchanged"]


def test_ventricles_and_grades() -> None:
    for words, kind, grades in (
        ("The ventricles have enlarged.", "larger", (None, None)),
        ("The lateral ventricles are larger than before.", "larger", (None, None)),
        ("Enlargement of the lateral ventricles is stable.", "unchanged", (None, None)),
        ("Ventricular enlargement has decreased from severe to mild.", "smaller", (3, 1)),
        ("Hydrocephalus, now moderate, previously mild.", "larger", (1, 2)),
        ("Slight interval increase of hydrocephalus, now moderate.", "larger", (None, 2)),
        ("Hydrocephalus has increased slightly.", "larger", (None, None)),
    ):
        (change,) = parse_comparison(f"COMPARISON: {words}").changes
        assert change.before and change.after
        assert (change.kind, change.finding.kind) == (kind, VENTRICLES)
        assert (change.before.grade, change.after.grade) == grades, words


@pytest.mark.parametrize(
    "text",
    [
        "FINDINGS: The ventricles are enlarged. There is a mass in the left frontal lobe, 25 mm.",
        "FINDINGS: The ventricles are wider than expected for age. Increased signal of a left frontal mass.",
        "COMPARISON: None.\nFINDINGS: There is a mass in the left frontal lobe.",
        "COMPARISON: CT of 3 March 2019.\nFINDINGS: No mass.",
        "COMPARISON: No new mass or hemorrhage.",
        "COMPARISON: The left frontal mass has increased T1 signal.",
        "COMPARISON: No infarct, unchanged. A mass was not seen.",
        "FINDINGS: No mass or hemorrhage, stable.",
        "FINDINGS: No new infarct. No other findings.",
        "",
        "lorem ipsum",
    ],
)
def test_what_is_no_change(text: str) -> None:
    parsed = parse_comparison(text)
    assert parsed.changes == () and not parsed.stated and parsed.same_head


def test_nothing_changed_makes_every_finding_unchanged() -> None:
    text = "FINDINGS: There is a mass in the left frontal lobe, 25 mm.\nCOMPARISON: No change since the previous scan."
    parsed = parse_comparison(text)
    assert [(c.kind, c.before, c.after) for c in parsed.changes] == [
        (ChangeKind.UNCHANGED, *parse_report(text).findings * 2)
    ]
    text = text.replace("No change", "There is a new infarct in the right insula. Otherwise no change")
    assert [c.kind for c in parse_comparison(text).changes] == ["new", "unchanged"]


def test_findings_complete_what_the_comparison_leaves_unsaid() -> None:
    text = (
        "FINDINGS: There is a mass in the left frontal lobe, 25 mm.\nCOMPARISON: The mass is larger, previously 15 mm."
    )
    assert one(text) == ("larger", "mass", "left", "frontal lobe", 15.0, 25.0)
    text = "COMPARISON: The left frontal mass has grown. It measures 25 mm, previously 15 mm."
    assert one(text) == ("larger", "mass", "left", "frontal lobe", 15.0, 25.0)


@pytest.mark.parametrize(
    ("findings", "comparison", "words"),
    [
        ("No mass.", "The mass in the left frontal lobe is new.", "left frontal lobe mass in COMPARISON but not in"),
        ("There is a mass in the left insula.", "New infarct in the left insula.", "in FINDINGS but not in COMPARISON"),
        (
            "There is a mass in the left insula.",
            "The mass in the left insula is gone.",
            "left insula mass gone in COMPARISON but in FINDINGS",
        ),
        (
            "There is a mass in the left insula, 15 mm.",
            "The mass in the left insula is larger: 15 mm, previously 25 mm.",
            "left insula mass larger, but its size changes by -10 mm",
        ),
        ("There is a mass in the left insula.", "Different heads. The mass in the left insula is new.", "and yet"),
    ],
)
def test_contradictions_are_told(findings: str, comparison: str, words: str) -> None:
    parsed = parse_comparison(f"FINDINGS: {findings}\nCOMPARISON: {comparison}")
    assert any(words in told for told in parsed.contradictions), parsed.contradictions


def test_the_comparison_is_no_part_of_the_findings() -> None:
    text = "TECHNIQUE: T1. FINDINGS: No mass. COMPARISON: The left frontal mass is gone. IMPRESSION: Normal brain MRI."
    parsed = parse_report(text)
    assert parsed.findings == () and parsed.impression == () and not parsed.contradictions
    assert one(text)[0] == "gone"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["", "COMPARISON: ", "COMPARISON: The left frontal mass is larger "]))
def test_never_fails_on_any_text(text: str, lead: str) -> None:
    parsed = parse_comparison(lead + text)
    assert 0.0 <= parsed.coverage <= 1.0


def test_a_section_that_only_names_the_scan_before_contradicts_nothing() -> None:
    text = (
        "COMPARISON: MRI of May.\nFINDINGS: The left frontal mass is stable. There is an infarct in the right insula."
    )
    parsed = parse_comparison(text)
    assert [change.kind for change in parsed.changes] == ["unchanged"]
    assert parsed.has_section and parsed.coverage == 0.0 and not parsed.contradictions
