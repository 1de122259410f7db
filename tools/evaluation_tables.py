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
COLUMNS = ("blank", "other_patient", "mirrored", "constant", "readout")


@dataclass(frozen=True)
class Goal:
    """One bound that a model is held to.

    Attributes:
        name: what is measured.
        key: in the figures; with a dot, in one of the controls.
        bound: what it has to reach, from above where `at_most`.
        digits: after the point.
    """

    name: str
    key: str
    bound: float
    at_most: bool = False
    digits: int = 3


GOALS = (
    Goal("finding F1", "finding_f1", 0.80),
    Goal("full-finding F1 (class, side, region)", "full_finding_f1", 0.68),
    Goal("laterality on matched findings", "laterality_accuracy", 0.95),
    Goal("size, mean absolute error (mm)", "size_mae_mm", 6.0, at_most=True, digits=1),
    Goal("normal heads with an invented finding", "hallucination_on_normals", 0.08, at_most=True),
    Goal("finding F1 on a blank scan", "blank.finding_f1", 0.02, at_most=True),
    Goal("full-finding F1 with another patient's scan", "other_patient.full_finding_f1", 0.06, at_most=True),
    Goal("finding F1 below the encoder's own readout", "gap", 0.05, at_most=True),
    Goal("FINDINGS and IMPRESSION agree", "impression_agreement", 0.98),
    Goal("full-finding F1 on the worst other anatomy, as a share of the template's", "share", 0.8),
)
"""Of a model that trains in about two hours on two CPU cores."""


TEMPLATE, HEADS, REAL = "icbm2009a", "heads", "real"
SIDE_BY_SIDE = (
    ("scans", None, None),
    ("known findings found", "finding_recall", "known findings found"),
    ("of these, with side and region right", "full_share", "found with side and region right"),
    ("wrong side", "wrong_side_rate", "wrong side"),
    ("healthy heads with an invented finding", "hallucination_on_normals", "healthy heads with an invented finding"),
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


def goal_table(by_anatomy: dict[str, Any]) -> str:
    """Each goal, what was measured, and whether that reaches it (before rounding)."""
    by_anatomy = painted(by_anatomy)
    figures = by_anatomy[TEMPLATE]
    others = [f["full_finding_f1"] for name, f in by_anatomy.items() if name not in (TEMPLATE, HEADS)]
    derived = {
        "gap": figures["readout"]["finding_f1"] - figures["finding_f1"],
        "share": min(others) / figures["full_finding_f1"] if others else None,
    }
    lines = ["| | goal | measured | |", "| --- | --- | --- | --- |"]
    for goal in GOALS:
        where, _, key = goal.key.rpartition(".")
        value = derived[key] if key in derived else (figures[where] if where else figures)[key]
        if value is None:
            continue
        reached = value <= goal.bound if goal.at_most else value >= goal.bound
        sign = "at most" if goal.at_most else "at least"
        said = "reached" if reached else "**short**"
        lines.append(f"| {goal.name} | {sign} {goal.bound:g} | {value:.{goal.digits}f} | {said} |")
    return "\n".join(lines)


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
    about = figures["about"]
    words = figures["overlap"]
    intro = f"{about['cases']} cases, seeds from {about['first_seed']}, {about['dtype']} on {about['device']}:"
    short = "\n\n".join(filter(None, (side_by_side(by_anatomy), f"{intro}\n\n{main_table(figures)}")))
    overlap = f"For comparison only: BLEU-4 {words['bleu4']:.2f}, ROUGE-L {words['rouge_l']:.2f}."
    blocks = (short, overlap, class_table(figures), "Other anatomies, never trained on:", anatomy_table(by_anatomy))
    return short, "\n\n".join(blocks)


def main() -> None:
    """Write all tables."""
    by_anatomy = json.loads((MODEL / "evaluation.json").read_text())
    short, whole = sections(by_anatomy)
    fill(ROOT / "README.md", "figures", short)
    for path in (MODEL / "README.md", ROOT / "docs" / "tiny-t1w.md"):
        fill(path, "figures", whole)
    fill(ROOT / "docs" / "tiny-t1w.md", "goals", goal_table(by_anatomy))


if __name__ == "__main__":
    main()
