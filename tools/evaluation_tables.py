"""`python tools/evaluation_tables.py`: the measured tables of README, docs and model card, from one JSON file.

`neuroflamingo/pretrained/NAME/evaluation.json` holds what `neuroflamingo evaluate --json` printed, by anatomy, where
`heads` are real heads of people that trained nothing, and under `real` what `evaluate --scans --json` printed; nothing
in a table is typed by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marked_pages import fill

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "neuroflamingo" / "pretrained" / "tiny-t1w"
ROWS = (
    ("finding_f1", "finding F1"),
    ("full_finding_f1", "full-finding F1 (class, side and region right)"),
    ("laterality_accuracy", "laterality on matched findings"),
    ("wrong_side_rate", "wrong side"),
    ("region_accuracy", "region on matched findings"),
    ("size_mae_mm", "size, mean absolute error (mm)"),
    ("hallucination_on_normals", "normal heads with an invented finding"),
    ("omission_rate", "findings not reported"),
    ("parse_coverage", "sentences understood by the parser"),
    ("impression_agreement", "FINDINGS and IMPRESSION agree"),
)
INVENTED = "healthy heads with an invented finding"
PATIENTS = "invented focal findings per examination of a patient"
COLUMNS = ("blank", "other_patient", "mirrored", "constant", "readout")


TEMPLATE, HEADS, REAL, FEW_SHOT, FOLLOW_UP = "icbm2009a", "heads", "real", "few_shot", "follow_up"


@dataclass(frozen=True)
class Goal:
    """One bound that a model is held to.

    Attributes:
        name: what is measured.
        key: in what was measured, its parts joined by slashes; `derived` are those of `derived`.
        bound: what it has to reach, from above where `at_most`.
        digits: after the point.
    """

    name: str
    key: str
    bound: float
    at_most: bool = False
    digits: int = 3


GOALS = {
    "painted into the template": (
        Goal("finding F1", "icbm2009a/finding_f1", 0.80),
        Goal("full-finding F1 (class, side, region)", "icbm2009a/full_finding_f1", 0.76),
        Goal("laterality on matched findings", "icbm2009a/laterality_accuracy", 0.95),
        Goal("size, mean absolute error (mm)", "icbm2009a/size_mae_mm", 6.0, at_most=True, digits=1),
        Goal("normal heads with an invented finding", "icbm2009a/hallucination_on_normals", 0.08, at_most=True),
        Goal("chronic infarct, F1", "icbm2009a/by_class/chronic infarct/f1", 0.65),
        Goal("finding F1 on a blank scan", "icbm2009a/blank/finding_f1", 0.02, at_most=True),
        Goal("full-finding F1 with another patient's scan", "icbm2009a/other_patient/full_finding_f1", 0.06, True),
        Goal("finding F1 below the encoder's own readout", "derived/gap", 0.05, at_most=True),
        Goal("FINDINGS and IMPRESSION agree", "icbm2009a/impression_agreement", 0.98),
        Goal("full-finding F1 on the worst other template, as a share of this one's", "derived/other_share", 0.8),
    ),
    "painted into real heads that never trained": (
        Goal("finding F1", "heads/finding_f1", 0.75),
        Goal("full-finding F1", "heads/full_finding_f1", 0.68),
        Goal("full-finding F1, as a share of the template's", "derived/heads_share", 0.9),
        Goal("laterality on matched findings", "heads/laterality_accuracy", 0.97),
        Goal(
            "wrong side, of those that the mirror check leaves", "heads/about/mirror_check/wrong_side_rate", 0.01, True
        ),
        Goal("stated grade against painted volume, ventricles", "heads/about/grade_ranks/ventricular enlargement", 0.9),
        Goal("the same, white matter lesions", "heads/about/grade_ranks/white matter lesions", 0.7),
    ),
    "real heads that never trained, no painting": (
        Goal("healthy heads with an invented finding", f"real/as_it_came/figures/{INVENTED}/value", 0.05, True),
        Goal("the same, eight disturbed versions of each", f"real/disturbed/figures/{INVENTED}/value", 0.05, True),
        Goal(
            "invented focal findings per examination of a patient",
            f"real/as_it_came/figures/{PATIENTS}/value",
            0.25,
            True,
        ),
    ),
    "after examples": (
        Goal("report in the examples' house style, trained styles", "few_shot/style_trained", 0.95),
        Goal("the same, styles that never trained", "few_shot/style_unseen", 0.70),
        Goal("finding F1 lost against no example", "derived/few_shot_loss", 0.02, at_most=True),
        Goal("reports with a finding of an example", "few_shot/leaks", 0.01, at_most=True),
        Goal("findings unchanged when the examples' scans are blank", "few_shot/same_findings_blank", 0.98),
        Goal("the same, when they are exchanged", "few_shot/same_findings_exchanged", 0.98),
    ),
    "baseline and follow-up": (
        Goal("kind of change right, of all true changes", "follow_up/report/changes/kinds_right", 0.85),
        Goal("size change, mean absolute error (mm)", "follow_up/report/changes/size_change_mae_mm", 5.0, True, 1),
        Goal("finding F1 lost against the follow-up alone", "derived/follow_up_loss", 0.02, at_most=True),
        Goal("stated changes that turn round in swapped order", "follow_up/about/reversed_share", 0.90),
        Goal(
            "another person's baseline: a change made up",
            "follow_up/other_person/changes/made_up_other_person",
            0.05,
            True,
        ),
    ),
}
"""By what the cases are; a page shows one or more of these."""


CONTROLS = (
    ("leaks", "with a finding of an example"),
    ("same_findings_blank", "same findings when the examples' scans are blank"),
    ("same_findings_exchanged", "same findings when the examples' scans are exchanged"),
)
CHANGES = (
    ("kinds_right", "kind of change right"),
    ("kinds_right_in_place", "and at the right place"),
    ("kinds_right_of_found", "kind right, of the changes that are stated at all"),
    ("moved_kinds_right", "the same, of true changes but unchanged"),
    ("size_change_mae_mm", "size change, mean absolute error (mm)"),
    ("made_up_no_change", "nothing changed: a change made up"),
    ("different_heads_said", "two people: said to be so"),
    ("made_up_other_person", "two people: a change made up"),
    ("different_heads_wrongly_said", "one person: said to be two"),
)
SIDE_BY_SIDE = (
    ("scans", None, None),
    ("known findings found", "finding_recall", "known findings found"),
    ("of these, with side and region right", "full_share", "found with side and region right"),
    ("wrong side", "wrong_side_rate", "wrong side"),
    (INVENTED, "hallucination_on_normals", INVENTED),
    ("heads refused", "refused", "T1w scans refused"),
)
"""Rows of the table of painted beside real scans: name, key of painted figures, name of the real figure."""


def painted(measured: dict[str, Any]) -> dict[str, Any]:
    """Figures on painted cases, by anatomy."""
    return {name: figures for name, figures in measured.items() if "by_class" in figures}


def side_by_side(measured: dict[str, Any]) -> str:
    """Painted and real figures beside one another, each with its counts; empty without real ones."""
    if REAL not in measured:
        return ""
    real = measured[REAL]["as_it_came"]
    columns = [("painted into the template", TEMPLATE), ("painted into unseen real heads", HEADS)]
    columns = [(title, name) for title, name in columns if name in measured]
    heads = ["", *(title for title, _ in columns), "real scans"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for title, key, known in SIDE_BY_SIDE:
        cells = [_painted_cell(measured[name], key) for _, name in columns]
        cells.append(f"{real['scans']} of {real['persons']} persons" if known is None else _counted(real, known))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _painted_cell(figures: dict[str, Any], key: str | None) -> str:
    about = figures["about"]
    if key is None:
        return f"{about['cases']:,}"
    if key == "refused":
        return f"{len(about.get('failed_preparations', []))} of {about['cases']:,}"
    if key == "full_share":
        return f"{figures['full_finding_f1'] / figures['finding_f1']:.0%}"
    return f"{figures[key]:.0%}"


def _counted(real: dict[str, Any], name: str) -> str:
    row = real["figures"][name]
    return "" if row["value"] is None else f"{row['value']:.0%} ({row['count']:g} of {row['of']:g})"


def derived(measured: dict[str, Any]) -> dict[str, float]:
    """Figures that compare two of what was measured; those that lack one are left out."""
    others = [
        figures["full_finding_f1"] for name, figures in painted(measured).items() if name not in (TEMPLATE, HEADS)
    ]
    template = measured[TEMPLATE]
    found = {"gap": template["readout"]["finding_f1"] - template["finding_f1"]}
    if others:
        found["other_share"] = min(others) / template["full_finding_f1"]
    if HEADS in measured:
        found["heads_share"] = measured[HEADS]["full_finding_f1"] / template["full_finding_f1"]
    if FEW_SHOT in measured:
        shown = measured[FEW_SHOT]
        found["few_shot_loss"] = shown["alone"]["finding_f1"] - shown["trained_styles"]["finding_f1"]
    if FOLLOW_UP in measured:
        alone, after = (measured[FOLLOW_UP][name]["findings"]["finding_f1"] for name in ("one_scan", "report"))
        found["follow_up_loss"] = alone - after
    return found


def goal_table(measured: dict[str, Any], *groups: str) -> str:
    """Each goal, what was measured, and whether that reaches it (before rounding); nothing of what was not measured.

    Args:
        measured: the whole file.
        groups: of `GOALS`; none: all.
    """
    known = measured | {"derived": derived(measured)}
    tables = []
    for group in groups or GOALS:
        rows = [_goal_row(goal, value) for goal in GOALS[group] if (value := _at(known, goal.key)) is not None]
        if rows:
            tables.append("\n".join([f"| {group} | goal | measured | |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(tables)


def _at(known: Any, key: str) -> float | None:
    for part in key.split("/"):
        known = None if known is None else known.get(part)
    return known


def _goal_row(goal: Goal, value: float) -> str:
    reached = value <= goal.bound if goal.at_most else value >= goal.bound
    sign = "at most" if goal.at_most else "at least"
    said = "reached" if reached else "**short**"
    return f"| {goal.name} | {sign} {goal.bound:g} | {value:.{goal.digits}f} | {said} |"


def few_shot_table(figures: dict[str, Any]) -> str:
    """Scores without and after examples."""
    columns = ("alone", "trained_styles", "unseen_styles")
    lines = ["| | no example | trained styles | unseen styles |", "| --- | --- | --- | --- |"]
    names = dict(ROWS)
    for key in figures["alone"]:
        lines.append(f"| {names[key]} | {' | '.join(_cell(figures[name][key]) for name in columns)} |")
    styles = (_cell(figures[f"style_{name}"]) for name in ("trained", "unseen"))
    lines.append(f"| in the examples' style |  | {' | '.join(styles)} |")
    for key, name in CONTROLS:
        lines.append(f"| {name} |  | {figures[key]:.3f} |  |")
    return f"{_facts(figures['about'])}, {figures['about']['examples']} examples each:\n\n" + "\n".join(lines)


def follow_up_table(figures: dict[str, Any]) -> str:
    """Changes and findings of the report, and of every control."""
    columns = [name for name in figures if name not in ("intervals", "about")]
    lines = [
        "| | " + " | ".join(name.replace("_", " ") for name in columns) + " |",
        "|" + " --- |" * (1 + len(columns)),
    ]
    for part, rows in (("changes", CHANGES), ("findings", ROWS)):
        for key, name in rows:
            if key in figures["report"][part]:
                lines.append(
                    f"| {name} | " + " | ".join(_cell((figures[c][part] or {}).get(key)) for c in columns) + " |"
                )
    return f"{_facts(figures['about'])}:\n\n" + "\n".join(lines)


def _facts(about: dict[str, Any]) -> str:
    return f"{about['cases']} cases, seeds from {about['first_seed']}, {about['dtype']} on {about['device']}"


def main_table(figures: dict[str, Any]) -> str:
    """The figures with 95 % intervals and the controls beside them."""
    lines = ["| | reports | 95 % | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + " |"]
    lines.append("|" + " --- |" * (3 + len(COLUMNS)))
    for key, name in ROWS:
        low_high = figures["intervals"].get(key)
        span = f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else ""
        others = [_cell((figures.get(c) or {}).get(key)) for c in COLUMNS]
        lines.append(f"| {name} | **{_cell(figures[key])}** | {span} | " + " | ".join(others) + " |")
    return "\n".join(lines)


def class_table(figures: dict[str, Any]) -> str:
    """Precision, recall and F1 of each class."""
    lines = ["| class | precision | recall | F1 | painted |", "| --- | --- | --- | --- | --- |"]
    for name, row in figures["by_class"].items():
        parts = " | ".join(_cell(row[k]) for k in ("precision", "recall", "f1"))
        lines.append(f"| {name} | {parts} | {row['true']:.0f} |")
    return "\n".join(lines)


def anatomy_table(by_anatomy: dict[str, Any]) -> str:
    """Figures of the anatomies that were never trained on."""
    lines = ["| painted in | cases | finding F1 | full F1 | invented on normals |", "| --- | --- | --- | --- | --- |"]
    for name, figures in painted(by_anatomy).items():
        keys = ("finding_f1", "full_finding_f1", "hallucination_on_normals")
        parts = " | ".join(_cell(figures[key]) for key in keys)
        lines.append(f"| {name} | {figures['about']['cases']} | {parts} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def sections(by_anatomy: dict[str, Any]) -> tuple[str, str]:
    """Short text for the README, and the whole for the model card."""
    figures = by_anatomy[TEMPLATE]
    words = figures["overlap"]
    intro = f"{_facts(figures['about'])}:"
    short = "\n\n".join(filter(None, (side_by_side(by_anatomy), f"{intro}\n\n{main_table(figures)}")))
    overlap = f"For comparison only: BLEU-4 {words['bleu4']:.2f}, ROUGE-L {words['rouge_l']:.2f}."
    blocks = (short, overlap, class_table(figures), "Other anatomies, never trained on:", anatomy_table(by_anatomy))
    return short, "\n\n".join(blocks)


def main() -> None:
    """Write all tables."""
    measured = json.loads((MODEL / "evaluation.json").read_text())
    short, whole = sections(measured)
    fill(ROOT / "README.md", "figures", short)
    for path in (MODEL / "README.md", ROOT / "docs" / "tiny-t1w.md"):
        fill(path, "figures", whole)
    fill(ROOT / "docs" / "tiny-t1w.md", "goals", goal_table(measured))
    for name, table, group in PAGES:
        if name in measured:
            text = f"{goal_table(measured, group)}\n\n{table(measured[name])}"
            fill(ROOT / "docs" / f"{name}.md", "figures", text)


PAGES = ((FEW_SHOT, few_shot_table, "after examples"), (FOLLOW_UP, follow_up_table, "baseline and follow-up"))
"""What has a page of its own: its key, its table, and its goals."""


if __name__ == "__main__":
    main()
