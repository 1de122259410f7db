"""`paint_case`: paint a scan with known findings and a report from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.findings.house_styles import draw_style, render_in_style
from neuroflamingo.findings.wording import render_report
from neuroflamingo.painting.anatomy import Anatomy, load_anatomy
from neuroflamingo.painting.cases import Blueprint, draw_blueprint
from neuroflamingo.painting.rendering import render_on_model_grid
from neuroflamingo.painting.scanner_space import Sampling, render_native
from neuroflamingo.painting.visibility import Visibility, visibility
from neuroflamingo_preprocessing.scan import Provenance, Scan

if TYPE_CHECKING:
    from jaxtyping import Float32

    from neuroflamingo.findings.changes import Comparison
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.painting.lesions import Outline


@dataclass(frozen=True)
class Case:
    """A painted case; scans are rendered on demand.

    Attributes:
        blueprint: all random choices.
        anatomy: the head that it is painted into.
        comparison: with the baseline, if the case is a follow-up.
    """

    blueprint: Blueprint
    anatomy: Anatomy
    comparison: Comparison | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """True findings, in report order."""
        return self.blueprint.findings

    @cached_property
    def visibility(self) -> tuple[Visibility, ...]:
        """Visibility of each lesion, in the order of `Blueprint.lesions`."""
        return visibility(self.blueprint, self.anatomy)

    def lesion_numbers(self) -> list[int | None]:
        """For each finding the number of its lesion in `Blueprint.lesions`; None for a finding without a place."""
        painted, numbers = self.blueprint.lesion_findings, list[int | None]()
        for finding in self.findings:
            numbers.append(next((n for n, one in enumerate(painted) if one == finding and n not in numbers), None))
        return numbers

    @property
    def visible(self) -> tuple[bool, ...]:
        """For each finding, whether a reader could see it; those without a place always count as visible."""
        return tuple(number is None or self.visibility[number].visible for number in self.lesion_numbers())

    @property
    def text(self) -> str:
        """Report of the true findings, and of a follow-up's changes; the wording depends on the seed."""
        if self.comparison is None:
            return render_report(self.findings, self.blueprint.seed).text
        style = draw_style(np.random.default_rng([self.blueprint.seed, 15]))
        return render_in_style(self.findings, style, self.comparison).text

    @property
    def name(self) -> str:
        """Name of the case's files, from its seed."""
        return f"case-{self.blueprint.seed:08d}"

    def scan(self, sampling: Sampling | None = None) -> Scan:
        """Scan as stored by a scanner, with its own pose, resolution, orientation, contrast, bias field and noise."""
        voxels, affine = render_native(self.blueprint, self.anatomy, sampling)
        return Scan(voxels, affine, "T1w", Provenance(header={"painted": self.name}))

    def on_model_grid(self) -> Float32[np.ndarray, "channel x y z"]:
        """Head as `prepare` would return it, with a drawn instead of a computed registration error."""
        return render_on_model_grid(self.blueprint, self.anatomy).volume[None]


def paint_into_head(findings: Iterable[Finding], seed: int = 0, anatomy: str = "icbm2009a") -> tuple[Case, Scan]:
    """Paint findings into an otherwise unchanged head: its own pose, shape and contrast, no bias, at 1 mm, 1 % noise.

    Args:
        findings: focal findings as for `paint_case`; the true findings hold the measured values.
        seed: random seed of lesion shapes and noise.
        anatomy: name of the head.

    Raises:
        ValueError: a finding has no room in its region.
    """
    head = load_anatomy(anatomy)
    case = Case(draw_blueprint(seed, head, list(findings), still=True), head)
    return case, case.scan(Sampling((1.0, 1.0, 1.0), (0, 1, 2), (False, False, False), np.eye(3), (1, 1, 1)))


def paint_case(
    seed: int,
    anatomy: str = "icbm2009a",
    findings: Iterable[Finding] | None = None,
    outlines: Sequence[Outline] = (),
) -> Case:
    """Paint one case; the same seed gives the same case.

    Args:
        anatomy: name of the head, see `neuroflamingo.painting.heads`.
        findings: findings to paint (focal ones need class, side, region and size_mm); sizes are met within a quarter,
            and the true findings hold the measured values. None: drawn from the seed, 34 % of cases without any.
        outlines: of real lesions, for half of the infarcts that are drawn.

    Raises:
        ValueError: a requested finding does not fit into its region.
    """
    head = load_anatomy(anatomy)
    return Case(draw_blueprint(seed, head, None if findings is None else list(findings), outlines=outlines), head)
