"""The page, text and JSON of a report that compares two scans, and of one that was shown examples."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from neuroflamingo.findings.changes import Comparison, change_between
from neuroflamingo.findings.house_styles import TRAINED_STYLES, UNSEEN_STYLES, HouseStyle, render_in_style
from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.report.model import Report
from neuroflamingo.report.pictures import canvas_of, picture_of_example, picture_of_slices
from neuroflamingo.report.records import ShownExample
from neuroflamingo.report.render import linked_slices
from neuroflamingo.report.sections import split_sections
from neuroflamingo.report.tracing import common_extent
from tests.neuroflamingo.report.conftest import GRID

SMALL = Finding(kind="mass", side="left", region="frontal lobe", size_mm=24)  # type: ignore[arg-type]
LARGE = SMALL.model_copy(update={"size_mm": 40.0})
MILD = Finding(kind="ventricular enlargement", side="bilateral", region="lateral ventricles", grade=1)  # type: ignore[arg-type]
ATROPHY = Finding(kind="lobar atrophy", side="left", region="temporal lobe")  # type: ignore[arg-type]
CHANGES = Comparison(
    same_head=True,
    changes=(change_between(SMALL, LARGE), change_between(MILD, None), change_between(None, ATROPHY)),
)


@pytest.fixture
def follow_up(make_report, head: np.ndarray):
    """Builder of a report on two scans, the second one moved by a voxel."""

    def build(comparison: Comparison | None = CHANGES, **changes) -> Report:
        report = make_report()
        one, other = canvas_of(head, GRID), canvas_of(np.roll(head, 1, axis=2), GRID)
        extent = common_extent([one, other])
        slices = (*picture_of_slices(one, 0, extent=extent), *picture_of_slices(other, 1, extent=extent))
        scan = report.provenance.inputs[0]
        inputs = (scan, scan.model_copy(update={"name": "sub-01_ses-2_T1w.nii.gz"}))
        others = tuple(picture for picture in report.pictures if picture.kind != "seen")
        changes |= {"comparison": comparison, "pictures": (*slices, *others)}
        changes["provenance"] = report.provenance.model_copy(update={"inputs": inputs})
        return report.model_copy(update=changes)

    return build


def test_what_changed_is_a_table_with_before_and_after(follow_up) -> None:
    report = follow_up()
    page = report.to_html()
    table = page[page.index('id="changes"') :].split("</section>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[2:]]
    assert [[re.sub("<[^>]*>", "", cell) for cell in row] for row in rows] == [
        ["mass", "left frontal lobe", "larger by 16 mm", "24 mm", "40 mm"],
        ["ventricular enlargement", "bilateral lateral ventricles", "gone", "mild", "none"],
        ["lobar atrophy", "left temporal lobe", "new", "none", "present"],
    ]
    text = report.to_text()
    assert "WHAT CHANGED\n- larger by 16 mm: mass, left frontal lobe (before: 24 mm; after: 40 mm)\n- gone: " in text
    stored = json.loads(report.to_json())["comparison"]
    assert [change["kind"] for change in stored["changes"]] == ["larger", "gone", "new"]
    assert Report.model_validate_json(report.to_json()).comparison == CHANGES


def test_two_different_heads_are_not_compared(follow_up, make_report) -> None:
    words = "The two scans show different heads; no comparison is made."
    for form in (page := (report := follow_up(Comparison(same_head=False))).to_html(), report.to_text()):
        assert words in form
    assert "<table" not in page[page.index('id="changes"') :].split("</section>")[0]
    for plain in (make_report(), follow_up(None)):
        assert 'id="changes"' not in plain.to_html() and "WHAT CHANGED" not in plain.to_text()
        assert plain.comparison is None


def test_the_same_slices_of_both_scans_stand_side_by_side(follow_up, make_report) -> None:
    report = follow_up()
    groups = linked_slices(report.pictures)
    assert len(groups) == 18
    for first, second in groups:
        assert (first.scan, second.scan) == (0, 1) and first.data != second.data
        assert (first.plane, first.position_mm) == (second.plane, second.position_mm)
    page = report.to_html()
    assert page.count('class="slot"') == 18 and page.count("<b>baseline</b>") == page.count("<b>follow-up</b>") == 18
    assert "Baseline: sub-01_T1w.nii.gz. Follow-up: sub-01_ses-2_T1w.nii.gz." in page
    assert "follow-up: " not in make_report().to_html()
    assert page.count("<dd>baseline: ") == 2, "whose peak it is"
    unnamed = follow_up(None).to_html()
    assert unnamed.count("<b>scan 1</b>") == unnamed.count("<b>scan 2</b>") == 18
    assert 'class="slot"' not in make_report().to_html()


def test_scans_on_other_grids_are_drawn_each_by_itself(head: np.ndarray) -> None:
    one, other = canvas_of(head, GRID), canvas_of(head[:, :, 4:], GRID)
    assert common_extent([one, other]) is None and common_extent([]) is None
    assert common_extent([one, replace(one, affine=GRID + np.eye(4))]) is None
    apart = [*picture_of_slices(one, 0), *picture_of_slices(other, 1)]
    assert linked_slices(apart) == []
    assert picture_of_slices(one, 0, extent=one.grey) == picture_of_slices(one, 0), "one scan is drawn as ever"


def test_each_example_is_shown_small_with_its_report_folded(make_report, head: np.ndarray) -> None:
    report = make_report()
    examples = (
        ShownExample(name="a<b.nii.gz", report="FINDINGS: No mass.\nIMPRESSION: <script>"),
        ShownExample(name="c.nii.gz", report="Normal."),
    )
    small = (*picture_of_example(canvas_of(head, GRID), 0), *picture_of_example(canvas_of(head, GRID), 1))
    shown = report.model_copy(update={"examples": examples, "pictures": (*report.pictures, *small)})
    page = shown.to_html()
    part = page[page.index('id="examples"') :].split('<section id="geometry"')[0]
    assert part.count("<img ") == 6 and part.count("<details><summary>") == 2 and "<details open" not in part
    assert "a&lt;b.nii.gz" in part and "No mass." in part and "<script" not in page
    assert max(picture.width for picture in small) < 200
    seen = page[page.index('id="seen"') : page.index('id="examples"')]
    assert seen.count("<img ") == make_report().to_html().split('id="seen"')[1].split("<section")[0].count("<img ")
    assert "1. a<b.nii.gz\n   FINDINGS: No mass.\n   IMPRESSION: <script>\n2. c.nii.gz\n   Normal." in shown.to_text()
    assert json.loads(shown.to_json())["examples"][1] == {"name": "c.nii.gz", "report": "Normal."}
    assert 'id="examples"' not in report.to_html() and "EXAMPLES" not in report.to_text()


@pytest.mark.parametrize("style", [*TRAINED_STYLES, *UNSEEN_STYLES], ids=lambda style: style.name)
def test_sections_of_every_house_are_told_apart(style: HouseStyle) -> None:
    text = render_in_style([LARGE, ATROPHY], style, CHANGES).text
    sections = split_sections(text)
    assert all(sections.model_dump().values()), "no section is empty"
    assert "40 mm" in sections.findings or "4.0 cm" in sections.findings
    assert "24 mm" in sections.comparison or "2.4 cm" in sections.comparison
    assert "24 mm" not in sections.findings and "2.4 cm" not in sections.findings + sections.impression
    said = sections.model_dump().values()
    assert sum(len("".join(part.split())) for part in said) > 0.85 * len("".join(text.split()))


def test_words_that_are_no_headings_stay_in_their_section() -> None:
    sections = split_sections(
        "FINDINGS: In comparison: larger.\nThe body: small. COMPARISON: Stable.\nConclusion: None."
    )
    assert sections.findings == "In comparison: larger.\nThe body: small."
    assert (sections.comparison, sections.impression) == ("Stable.", "None.")
