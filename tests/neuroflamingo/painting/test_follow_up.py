"""Painted follow-ups: one head in two scans, with exactly the changes that the truth states."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from neuroflamingo.findings.changes import Change, ChangeKind
from neuroflamingo.findings.vocabulary import FOCAL, FindingClass
from neuroflamingo.painting.anatomy import load_anatomy
from neuroflamingo.painting.case import paint_case
from neuroflamingo.painting.follow_up import FollowUp, draw_follow_up, is_of_two_people, paint_follow_up
from neuroflamingo.painting.lesions import measure
from neuroflamingo.painting.rendering import render_on_model_grid

SEEDS = range(60, 92)


@cache
def pairs() -> tuple[FollowUp, ...]:
    return tuple(draw_follow_up(seed, load_anatomy()) for seed in SEEDS)


def changes(*kinds: ChangeKind) -> list[tuple[FollowUp, Change]]:
    found = [(pair, one) for pair in pairs() for one in pair.comparison.changes if one.kind in kinds]
    assert found
    return found


def test_the_findings_of_both_scans_are_those_of_the_changes() -> None:
    for pair in pairs():
        before = [one.before for one in pair.comparison.changes if one.before]
        after = [one.after for one in pair.comparison.changes if one.after]
        assert sorted(map(str, before)) == sorted(map(str, pair.baseline.findings))
        assert sorted(map(str, after)) == sorted(map(str, pair.follow_up.findings))
    kinds = [one.kind for pair in pairs() for one in pair.comparison.changes if one.finding.kind in FOCAL]
    assert set(kinds) == set(ChangeKind) and 0.2 < kinds.count(ChangeKind.UNCHANGED) / len(kinds) < 0.55
    assert 0.03 < np.mean([not pair.comparison.changes for pair in pairs()]) < 0.3


def test_the_head_is_the_same_and_the_scan_is_not() -> None:
    for pair in pairs()[:10]:
        one, other = pair.baseline, pair.follow_up
        assert one.warp is other.warp and one.white_matter_noise is other.white_matter_noise
        assert one.sulci == other.sulci and one.white_matter_contrast == other.white_matter_contrast
        builds = [scan.to_head[:3, :3].T @ scan.to_head[:3, :3] for scan in (one, other)]  # free of the rotation
        assert np.allclose(builds[0], builds[1]) and not np.allclose(one.to_head, other.to_head, atol=0.1)
        assert one.seed != other.seed and one.scanner.signal != other.scanner.signal
        assert one.scanner.noise != other.scanner.noise and not torch.equal(one.scanner.bias, other.scanner.bias)


def test_a_lesion_grows_and_shrinks_in_place_by_what_is_stated() -> None:
    for pair, change in changes(ChangeKind.LARGER, ChangeKind.SMALLER):
        if change.finding.kind not in FOCAL:
            assert change.before and change.after and change.before.grade and change.after.grade
            assert (change.after.grade > change.before.grade) is (change.kind is ChangeKind.LARGER)
            continue
        first, last = (
            scan.lesions[scan.lesion_findings.index(finding)]  # type: ignore[arg-type]
            for scan, finding in ((pair.baseline, change.before), (pair.follow_up, change.after))
        )
        sizes = [
            measure(lesion, load_anatomy(), scan.to_head[:3, :3])[0]
            for lesion, scan in ((first, pair.baseline), (last, pair.follow_up))
        ]
        grown = (change.size_change_mm or 0.0) * (1 if change.kind is ChangeKind.LARGER else -1)
        assert (
            grown >= 6.0 - 1e-6
            and grown >= 0.2 * max(one.size_mm or 0.0 for one in (change.before, change.after) if one) - 0.1
        )
        assert sizes[1] - sizes[0] == pytest.approx(change.size_change_mm, abs=3.0)
        assert np.array_equal(first.centre, last.centre) and first.contrast == last.contrast
        scale = np.linalg.norm(first.shape) / np.linalg.norm(last.shape)
        assert np.allclose(first.shape, scale * last.shape, rtol=1e-3)  # one shape, scaled


def test_what_is_unchanged_is_the_same_lesion() -> None:
    for pair, change in changes(ChangeKind.UNCHANGED):
        assert change.before == change.after
        if change.finding.kind in FOCAL:
            places = [scan.lesion_findings.index(change.finding) for scan in (pair.baseline, pair.follow_up)]
            assert pair.baseline.lesions[places[0]] is pair.follow_up.lesions[places[1]]
        if change.finding.kind is FindingClass.VENTRICULAR_ENLARGEMENT:
            assert pair.baseline.ventricle_push_mm == pair.follow_up.ventricle_push_mm
        if change.finding.kind is FindingClass.ATROPHY:
            assert pair.baseline.atrophy == pair.follow_up.atrophy
    assert all(
        change.kind in (ChangeKind.UNCHANGED, ChangeKind.NEW, ChangeKind.LARGER)
        for pair in pairs()
        for change in pair.comparison.changes
        if change.finding.kind in (FindingClass.ATROPHY, FindingClass.WHITE_MATTER_LESIONS)
    )


def test_lesions_of_both_scans_lie_apart() -> None:
    for pair in pairs():
        lesions = {one.centre.tobytes(): one for one in (*pair.baseline.lesions, *pair.follow_up.lesions)}
        for key, one in lesions.items():
            for other in (lesions[k] for k in lesions if k != key):
                assert np.linalg.norm(one.centre - other.centre) > 0.5 * one.radius_mm + 0.5 * other.radius_mm + 6.0


def test_the_voxels_show_what_changed_and_nothing_else() -> None:
    """Lesion shares on the model grid: a gone lesion is nowhere, one that grew covers more."""
    seen = set()
    for pair, change in changes(ChangeKind.LARGER, ChangeKind.GONE, ChangeKind.NEW):
        focal = [one for one in pair.comparison.changes if one.finding.kind in FOCAL]
        if len(focal) != 1 or change.finding.kind not in FOCAL or change.kind in seen:
            continue
        seen.add(change.kind)
        before, after = (
            float(render_on_model_grid(scan, load_anatomy()).lesions[:3].sum())
            for scan in (pair.baseline, pair.follow_up)
        )
        assert (before == 0.0) is (change.kind is ChangeKind.NEW) and (after == 0.0) is (change.kind is ChangeKind.GONE)
        assert change.kind is not ChangeKind.LARGER or after > 1.3 * before
    assert seen == {ChangeKind.LARGER, ChangeKind.GONE, ChangeKind.NEW}


def test_two_people_have_no_changes_and_need_another_head() -> None:
    head = load_anatomy()
    assert 0.1 < np.mean([is_of_two_people(seed) for seed in range(1000)]) < 0.2
    seed = next(seed for seed in SEEDS if is_of_two_people(seed))
    pair = draw_follow_up(seed, head, other=head)
    assert not pair.comparison.same_head and pair.comparison.changes == ()
    assert not np.array_equal(pair.baseline.warp.data, pair.follow_up.warp.data)
    assert pair.follow_up.findings == paint_case(seed).findings
    assert draw_follow_up(seed, head).comparison.same_head
    same = next(seed for seed in SEEDS if not is_of_two_people(seed))
    assert draw_follow_up(same, head, other=head).comparison == draw_follow_up(same, head).comparison


def test_scans_of_a_pair_are_those_of_two_sessions_and_the_same_every_time() -> None:
    seed = 61
    baseline, follow_up = paint_follow_up(seed)
    again = draw_follow_up(seed, load_anatomy())
    assert (
        follow_up.comparison == again.comparison
        and baseline.comparison is None
        and baseline.findings == again.baseline.findings
    )
    assert np.array_equal(baseline.blueprint.warp.data, again.baseline.warp.data)
    scans = baseline.scan(), follow_up.scan()
    assert scans[0].voxels.shape != scans[1].voxels.shape
    assert not np.allclose(scans[0].affine, scans[1].affine, atol=0.1)
    assert baseline.name != follow_up.name
