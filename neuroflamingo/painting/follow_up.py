"""Two scans of one head with known change between them, all drawn from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from neuroflamingo.findings.changes import Change, ChangeKind, Comparison, change_order
from neuroflamingo.findings.vocabulary import FOCAL, Finding, FindingClass, report_order
from neuroflamingo.painting.anatomy import Volume, load_anatomy
from neuroflamingo.painting.case import Case
from neuroflamingo.painting.cases import (
    THE_TEMPLATES,
    Blueprint,
    draw_atrophy,
    draw_blueprint,
    draw_build,
    draw_focal_wish,
    draw_posture,
    draw_scanner,
    draw_warp,
    draw_wishes,
    wall_push,
)
from neuroflamingo.painting.lattice import draw_lattice, lattice_affine
from neuroflamingo.painting.placing import SIZE_MM, place_one, shrink

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuroflamingo.painting.anatomy import Anatomy
    from neuroflamingo.painting.lesions import Lesion, Outline

BASELINE_SEEDS = 1_000_000_000
"""The baseline's own seed (scanner, posture, noise) is so much above that of the follow-up, which is the pair's."""
OTHER_SHARE, NORMAL_SHARE = 0.15, 0.15
"""Shares of pairs of two people (where there are two heads), and of pairs of one head without any finding."""
LEAST_MM, LEAST_SHARE = 6.0, 0.2
"""Least change of a diameter, in mm and as a share of the larger one."""
CHANGEABLE_MM = 16.0
"""Diameter that a focal finding of changing size has at least in the scan in which it is larger."""
_NEW, _GONE, _LARGER, _SMALLER, _UNCHANGED = ChangeKind
FOCAL_SHARES = {_UNCHANGED: 0.35, _LARGER: 0.2, _SMALLER: 0.2, _NEW: 0.125, _GONE: 0.125}
DIFFUSE_SHARES = {
    FindingClass.WHITE_MATTER_LESIONS: {_UNCHANGED: 0.45, _LARGER: 0.3, _NEW: 0.25},
    FindingClass.VENTRICULAR_ENLARGEMENT: {_UNCHANGED: 0.35, _LARGER: 0.2, _SMALLER: 0.2, _NEW: 0.15, _GONE: 0.1},
    FindingClass.ATROPHY: {_UNCHANGED: 0.65, _NEW: 0.35},
}
"""White matter lesions and atrophy do not recede; ventricles do, as after a shunt."""
PAIRS_TRIED = 6
"""Number of places tried for a lesion that is to fit in both of its sizes."""


@dataclass(frozen=True)
class FollowUp:
    """Two scans and what changed between them.

    Attributes:
        baseline, follow_up: the scans, each with the findings that are true of it. They share the head (warp, build,
            sulci, pattern of white matter lesions and atrophy) and differ in posture, scanner and noise.
        comparison: true changes; of two different people there are none.
    """

    baseline: Blueprint
    follow_up: Blueprint
    comparison: Comparison


@dataclass(frozen=True)
class _Course:
    """A finding, with its lesion if it is focal, in the baseline and in the follow-up; None where it is not there."""

    kind: ChangeKind
    before: tuple[Lesion | None, Finding] | None
    after: tuple[Lesion | None, Finding] | None

    @property
    def change(self) -> Change:
        return Change(kind=self.kind, before=self.before and self.before[1], after=self.after and self.after[1])


def is_of_two_people(seed: int) -> bool:
    """Whether a pair shows two people, if there is another head for it."""
    return bool(np.random.default_rng([seed, 10]).random() < OTHER_SHARE)


def draw_follow_up(
    seed: int, anatomy: Anatomy, outlines: Sequence[Outline] = (), other: Anatomy | None = None
) -> FollowUp:
    """Draw two scans with known change; a pure function of its arguments.

    Args:
        anatomy: head of the follow-up, and of the baseline unless the pair shows two people.
        outlines: of real lesions, for half of the infarcts.
        other: head of another person, whose baseline stands in 15 % of pairs: two heads, no changes.
    """
    before, after = BASELINE_SEEDS + seed, seed
    if other is not None and is_of_two_people(seed):
        scans = draw_blueprint(before, other, outlines=outlines), draw_blueprint(after, anatomy, outlines=outlines)
        return FollowUp(*scans, Comparison(same_head=False, changes=()))
    rng = np.random.default_rng([seed, 11])
    build = draw_build(rng)
    courses = _draw_courses(rng, anatomy, build, outlines)
    atrophy = draw_atrophy(rng, [course.change.finding for course in courses])
    person = Blueprint(
        seed=seed,
        findings=(),
        lesions=(),
        lesion_findings=(),
        ventricle_push_mm=0.0,
        white_matter_grade=0,
        white_matter_contrast=float(rng.uniform(0.35, 0.75)),
        white_matter_noise=Volume(draw_lattice(rng, 1, 7.0, 1.0), lattice_affine(7.0)),
        atrophy=atrophy,
        sulci=float(rng.uniform(0.0, 0.3)),
        to_head=np.eye(4),
        warp=draw_warp(rng, rng.uniform(0.5, 1.2)),
        scanner=THE_TEMPLATES,
    )
    scans = (
        _scan(replace(person, seed=before), anatomy, build, seed, [course.before for course in courses]),
        _scan(replace(person, seed=after), anatomy, build, seed, [course.after for course in courses]),
    )
    changes = change_order(course.change for course in courses)
    return FollowUp(*scans, Comparison(same_head=True, changes=changes))


def _scan(
    person: Blueprint,
    anatomy: Anatomy,
    build: tuple[NDArray[np.float64], NDArray[np.float64]],
    head_seed: int,
    states: list[tuple[Lesion | None, Finding] | None],
) -> Blueprint:
    """One scan of the person, whose blueprint has the scan's own seed, with the findings that it shows."""
    shown = [state for state in states if state]
    findings = [finding for _, finding in shown]
    grades = {f.kind: f.grade or 0 for f in findings}
    rng = np.random.default_rng([person.seed, 12])
    # The same draws in both scans: one head's own ventricles, and equal ones for equal grades.
    push = wall_push(
        np.random.default_rng([head_seed, 13]), grades.get(FindingClass.VENTRICULAR_ENLARGEMENT, 0), anatomy
    )
    return replace(
        person,
        findings=tuple(report_order(findings)),
        lesions=tuple(lesion for lesion, _ in shown if lesion),
        lesion_findings=tuple(finding for lesion, finding in shown if lesion),
        ventricle_push_mm=push,
        white_matter_grade=grades.get(FindingClass.WHITE_MATTER_LESIONS, 0),
        atrophy=person.atrophy if FindingClass.ATROPHY in grades else {},
        to_head=draw_posture(rng, *build),
        scanner=draw_scanner(rng),
    )


def _draw_courses(
    rng: np.random.Generator,
    anatomy: Anatomy,
    build: tuple[NDArray[np.float64], NDArray[np.float64]],
    outlines: Sequence[Outline],
) -> list[_Course]:
    """Draw findings and their changes; lesions of both scans lie apart from one another."""
    if rng.random() < NORMAL_SHARE:
        return []
    to_head = np.eye(4)
    to_head[:3, :3] = build[0] @ build[1]  # without the posture: a diameter is the same in both scans
    while not (wishes := draw_wishes(rng)):
        pass
    courses: list[_Course] = []
    lesions: list[Lesion] = []
    for wish in wishes:
        if wish.kind not in FOCAL:
            change = draw_diffuse_change(rng, wish)
            courses.append(_Course(change.kind, _without_lesion(change.before), _without_lesion(change.after)))
        elif course := _draw_focal(rng, anatomy, to_head, wish, outlines, lesions):
            courses.append(course)
    return courses


def _without_lesion(finding: Finding | None) -> tuple[None, Finding] | None:
    return None if finding is None else (None, finding)


def draw_focal_kind(rng: np.random.Generator) -> ChangeKind:
    """Draw what becomes of a focal finding."""
    return _draw_kind(rng, FOCAL_SHARES)


def _draw_kind(rng: np.random.Generator, shares: dict[ChangeKind, float]) -> ChangeKind:
    return list(shares)[rng.choice(len(shares), p=list(shares.values()))]


def _draw_focal(
    rng: np.random.Generator,
    anatomy: Anatomy,
    to_head: NDArray[np.float64],
    wish: Finding,
    outlines: Sequence[Outline],
    lesions: list[Lesion],
) -> _Course | None:
    """Draw the change of a focal finding and place it, as large as it gets, among the lesions; None without room."""
    kind = draw_focal_kind(rng)
    resized = kind in (_LARGER, _SMALLER)
    while resized and (wish.size_mm or 0.0) < CHANGEABLE_MM:
        wish = draw_focal_wish(rng)
    for _ in range(PAIRS_TRIED):
        large = place_one(rng, anatomy, to_head, wish, outlines, lesions)
        if large is None:
            return None
        small = _draw_smaller(rng, anatomy, to_head, *large) if resized else large
        if small is not None:
            lesions.append(large[0])
            first, last = (small, large) if kind is _LARGER else (large, small)
            return _Course(kind, None if kind is _NEW else first, None if kind is _GONE else last)
    return None


def _draw_smaller(
    rng: np.random.Generator, anatomy: Anatomy, to_head: NDArray[np.float64], lesion: Lesion, finding: Finding
) -> tuple[Lesion, Finding] | None:
    """Draw a smaller state of a lesion; None if it is too small to change, or does not fit when smaller."""
    size = finding.size_mm or 0.0
    largest = min(size - LEAST_MM, size * (1.0 - LEAST_SHARE))
    if largest < SIZE_MM[0]:
        return None
    small = shrink(lesion, finding, float(rng.uniform(SIZE_MM[0], largest)), anatomy, to_head)
    return small if small and SIZE_MM[0] - 0.5 <= (small[1].size_mm or 0.0) <= largest else None


def draw_diffuse_change(rng: np.random.Generator, finding: Finding) -> Change:
    """Draw what becomes of a diffuse finding, by its grade."""
    kind = _draw_kind(rng, DIFFUSE_SHARES[finding.kind])
    if kind not in (_LARGER, _SMALLER):
        before, after = None if kind is _NEW else finding, None if kind is _GONE else finding
        return Change(kind=kind, before=before, after=after)
    grades = sorted(int(grade) for grade in rng.choice([1, 2, 3], size=2, replace=False))
    low, high = (finding.model_copy(update={"grade": grade}) for grade in grades)
    return Change(kind=kind, before=low, after=high) if kind is _LARGER else Change(kind=kind, before=high, after=low)


def paint_follow_up(
    seed: int,
    anatomy: str = "icbm2009a",
    outlines: Sequence[Outline] = (),
    other: str | None = None,
) -> tuple[Case, Case]:
    """Paint a baseline and a follow-up with known change between them; the same seed gives the same pair.

    Each scan has its own posture, contrast, noise, orientation, resolution and slice thickness, as two sessions have.

    Args:
        anatomy, other: names of the heads, as for `draw_follow_up`; see `neuroflamingo.painting.heads`.
        outlines: of real lesions, for half of the infarcts.

    Returns:
        baseline and follow-up, which has the `comparison` of the two.
    """
    head = load_anatomy(anatomy)
    baseline_head = load_anatomy(other) if other is not None and is_of_two_people(seed) else None
    pair = draw_follow_up(seed, head, outlines, baseline_head)
    return Case(pair.baseline, baseline_head or head), Case(pair.follow_up, head, pair.comparison)
