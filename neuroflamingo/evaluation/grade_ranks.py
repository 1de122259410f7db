"""Whether a stated grade follows how much was painted: rank correlation with the volumes behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.findings.parsing import parse_report
from neuroflamingo.findings.vocabulary import FindingClass
from neuroflamingo.painting.rendering import render_on_model_grid

if TYPE_CHECKING:
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.painting.case import Case

GRADED = (FindingClass.VENTRICULAR_ENLARGEMENT, FindingClass.WHITE_MATTER_LESIONS)
VOXEL_ML, WHITE_MATTER_CHANNEL = 0.027, 3
"""Volume of a voxel of the model grid, and where its white matter lesions are."""
LEAST = 3
"""Below so many cases there is no rank correlation."""


def graded_volumes(case: Case) -> dict[FindingClass, float]:
    """Volume of the lateral ventricles and of white matter lesions, ml in template space; of true findings only."""
    drawn, kinds = case.blueprint, {finding.kind for finding in case.findings}
    volumes: dict[FindingClass, float] = {}
    if FindingClass.VENTRICULAR_ENLARGEMENT in kinds:
        volumes[FindingClass.VENTRICULAR_ENLARGEMENT] = case.anatomy.ventricles_ml(drawn.ventricle_push_mm)
    if FindingClass.WHITE_MATTER_LESIONS in kinds:
        shares = render_on_model_grid(drawn, case.anatomy).lesions[WHITE_MATTER_CHANNEL]
        volumes[FindingClass.WHITE_MATTER_LESIONS] = float(shares.sum()) * VOXEL_ML
    return volumes


def grade_ranks(volumes: Sequence[Mapping[FindingClass, float]], texts: Sequence[str]) -> dict[str, float | None]:
    """Spearman's rank correlation of stated grade and painted volume, over the cases that have the finding.

    A finding that is not stated has grade 0. With three grades equally frequent the best possible value is .94,
    since volumes differ within a grade. None for fewer than three cases, or if all grades are the same.

    Args:
        volumes: see `graded_volumes`, one for each case.
        texts: its report.
    """
    from scipy.stats import spearmanr

    reports = [parse_report(text).findings for text in texts]
    ranks: dict[str, float | None] = {}
    for kind in GRADED:
        pairs = [
            (by_kind[kind], _grade(stated, kind))
            for by_kind, stated in zip(volumes, reports, strict=True)
            if kind in by_kind
        ]
        painted, grades = zip(*pairs, strict=True) if pairs else ((), ())
        constant = len(pairs) < LEAST or len(set(grades)) == 1 or len(set(painted)) == 1
        ranks[str(kind)] = None if constant else float(np.asarray(spearmanr(painted, grades).statistic))
    return ranks


def _grade(stated: Sequence[Finding], kind: FindingClass) -> int:
    return max((finding.grade or 0 for finding in stated if finding.kind is kind), default=0)
