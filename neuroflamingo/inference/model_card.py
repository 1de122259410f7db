"""The essentials of a model's card for its reports: what it was trained on, what it knows, and its measured errors.

They come from files beside the weights: `training` in `config.json`, and `evaluation.json`, which holds what
`neuroflamingo evaluate --json` printed, by anatomy, and under `real` what `evaluate --scans --json` printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroflamingo.findings.vocabulary import FindingClass
from neuroflamingo.report.records import KindError, ModelCard
from neuroflamingo.settings import read_model_json

EVALUATION = "evaluation.json"
LIMITS = (
    "It has words for these kinds of finding only. Anything else is missed, or gets one of their names.",
    '"Normal" means that it states none of them. It does not mean that the person is healthy.',
    "The whole list of limits: docs/limits.md of the project.",
)
PAINTED_ONLY = "Figures on painted scans say how well it finds painted findings. They say nothing about patients."
NOT_MEASURED = "Its errors were not measured: there is no readable evaluation.json beside its weights."
REAL_FIGURES = (
    "T1w scans refused",
    "known findings found",
    "healthy heads with an invented finding",
    "invented focal findings per examination of a patient",
)


def model_card(folder: Path, training: Any) -> ModelCard:
    """Essentials of the model in a folder.

    Args:
        folder: of the model.
        training: the record of its training in `config.json`; None: there is none.
    """
    measured = read_model_json(folder / EVALUATION, object) if (folder / EVALUATION).is_file() else None
    painted = _painted(measured)
    real = _real(measured)
    kinds = _kinds(painted)
    limits = [PAINTED_ONLY] if kinds and not real else []
    return ModelCard(
        trained_on=_trained_on(training),
        kinds=kinds or tuple(KindError(kind=kind) for kind in FindingClass),
        measured_on=_measured_on(painted) if kinds else None,
        invented_on_normals=_number(painted.get("hallucination_on_normals")) if kinds else None,
        real=real,
        limits=(*([] if kinds else [NOT_MEASURED]), *limits, *LIMITS),
    )


def _trained_on(training: Any) -> str:
    """What a model was trained on, in words, as far as its config says so."""
    given = _mapping(training)
    paint = _mapping(_mapping(given.get("recipe")).get("paint"))
    if isinstance(given.get("trained_on"), str):
        return str(given["trained_on"])[:500]
    if not paint:
        return "not recorded."
    if paint.get("heads"):
        share = _number(paint.get("real_share"))
        part = f", which are {100 * share:.0f} % of its scans" if share is not None else ""
        return f"findings painted into a template head and into healthy real heads{part}. No patients."
    return "findings painted into a template head. It has seen neither patients nor healthy real heads."


def _painted(measured: Any) -> Mapping[str, Any]:
    """Figures on painted scans, of the first anatomy."""
    return next((_mapping(one) for name, one in _mapping(measured).items() if name != "real"), {})


def _measured_on(painted: Mapping[str, Any]) -> str:
    cases = _number(painted.get("cases")) or 0
    return f"{cases:,.0f} painted scans that it was not trained on"


def _kinds(painted: Mapping[str, Any]) -> tuple[KindError, ...]:
    rows = _mapping(painted.get("by_class"))
    found: list[KindError] = []
    for kind in FindingClass:
        row = _mapping(rows.get(str(kind)))
        right, recall = _share(row.get("precision")), _share(row.get("recall"))
        if row:
            false, missed = (None if part is None else round(1 - part, 4) for part in (right, recall))
            found.append(KindError(kind=kind, false=false, missed=missed, cases=int(_number(row.get("true")) or 0)))
    return tuple(found)


def _real(measured: Any) -> tuple[str, ...]:
    """Figures on real scans in words, each with its counts."""
    at_first = _mapping(_mapping(_mapping(measured).get("real")).get("as_it_came"))
    figures = _mapping(at_first.get("figures"))
    lines: list[str] = []
    for name in REAL_FIGURES:
        row = _mapping(figures.get(name))
        top, of = _number(row.get("count")), _number(row.get("of"))
        if top is not None and of:
            lines.append(f"{name}: {top:g} of {of:g}")
    scans, persons = _number(at_first.get("scans")), _number(at_first.get("persons"))
    return (f"{scans:g} real scans of {persons:g} persons", *lines) if lines and scans and persons else ()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _share(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None
