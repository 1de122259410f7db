"""Tables of figures: what the pages say is what was measured."""

from __future__ import annotations

import copy
import json

import pytest

import evaluation_tables
from marked_pages import fill


@pytest.fixture(scope="module")
def measured() -> dict:
    return json.loads((evaluation_tables.MODEL / "evaluation.json").read_text())


def test_pages_hold_the_tables_of_what_was_measured(measured: dict) -> None:
    short, whole = evaluation_tables.sections(measured)
    card = (evaluation_tables.ROOT / "docs" / "tiny-t1w.md").read_text()
    assert short in (evaluation_tables.ROOT / "README.md").read_text()
    assert whole in card and whole in (evaluation_tables.MODEL / "README.md").read_text()
    assert evaluation_tables.goal_table(measured) in card


def test_a_goal_is_reached_at_its_bound_and_not_a_thousandth_beyond(measured: dict) -> None:
    for value, at_most, finding in ((0.8, 0.06, "reached"), (0.7999, 0.0601, "**short**")):
        moved = copy.deepcopy(measured)
        moved["icbm2009a"]["finding_f1"] = value
        moved["icbm2009a"]["other_patient"]["full_finding_f1"] = at_most
        table = evaluation_tables.goal_table(moved, "painted into the template")
        rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
        assert rows["finding F1"].endswith(f"| {finding} |")
        assert rows["full-finding F1 with another patient's scan"].endswith(f"| {finding} |")


def test_painted_and_real_figures_stand_side_by_side(measured: dict) -> None:
    assert evaluation_tables.side_by_side({"icbm2009a": measured["icbm2009a"]}) == ""
    rows = {known: {"value": 0.25, "count": 2.0, "of": 8.0} for _, _, known in evaluation_tables.SIDE_BY_SIDE if known}
    rows["wrong side"] = {"value": None, "count": 0.0, "of": 0.0}
    real = {"as_it_came": {"scans": 9, "persons": 7, "figures": rows}}
    lines = evaluation_tables.side_by_side(measured | {"heads": measured["mni6"], "real": real}).splitlines()
    cells = {line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[1:]] for line in lines}
    assert cells["scans"] == ["1,000", "80", "9 of 7 persons"] and cells["wrong side"][2] == ""
    invented = f"{measured['icbm2009a']['hallucination_on_normals']:.0%}"
    assert cells["healthy heads with an invented finding"][::2] == [invented, "25% (2 of 8)"]
    short, whole = evaluation_tables.sections(measured | {"real": real})
    assert "25% (2 of 8)" in short and "25% (2 of 8)" in whole and "| real |" not in whole


def test_what_was_not_measured_has_no_goal(measured: dict) -> None:
    alone = {"icbm2009a": measured["icbm2009a"]}
    table = evaluation_tables.goal_table(alone)
    assert table == evaluation_tables.goal_table(alone, "painted into the template") and "other template" not in table


def test_figures_of_examples_and_follow_ups_have_tables_and_goals(measured: dict) -> None:
    about = {"cases": 9, "first_seed": 4, "dtype": "float32", "device": "cpu"}
    scores = {"finding_f1": 0.7, "hallucination_on_normals": 0.0}
    few = {"style_trained": 0.96, "style_unseen": 0.69, "leaks": 0.0, "same_findings_blank": 1.0}
    few |= {"same_findings_exchanged": 0.97, "alone": scores | {"finding_f1": 0.71}, "trained_styles": scores}
    few |= {"unseen_styles": scores, "about": about | {"examples": 2}}
    answers = {name: {"findings": scores, "changes": {"kinds_right": 0.9}} for name in ("report", "swapped")}
    answers |= {"one_scan": {"findings": scores | {"finding_f1": 0.75}, "changes": None}}
    pairs = answers | {"intervals": {}, "about": about | {"reversed_share": None}}
    both = measured | {"few_shot": few, "follow_up": pairs}
    goals = evaluation_tables.goal_table(both, "after examples", "baseline and follow-up")
    ends = {line.split(" | ")[0].strip("| "): line.split(" | ")[2:] for line in goals.splitlines()}
    assert ends["finding F1 lost against no example"] == ["0.010", "reached |"]
    assert ends["the same, styles that never trained"] == ["0.690", "**short** |"]
    assert ends["finding F1 lost against the follow-up alone"] == ["0.050", "**short** |"]
    assert "stated changes that turn round in swapped order" not in ends
    assert "| in the examples' style |  | 0.96 | 0.69 |" in evaluation_tables.few_shot_table(few)
    table = evaluation_tables.follow_up_table(pairs)
    assert "| kind of change right | 0.90 | 0.90 |  |" in table and "| finding F1 | 0.70 | 0.70 | 0.75 |" in table


def test_a_page_without_marks_is_refused(tmp_path) -> None:
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(ValueError, match="no marks"):
        fill(tmp_path / "page.md", "figures", "table")
