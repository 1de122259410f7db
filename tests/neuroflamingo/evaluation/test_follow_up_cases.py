"""Painted pairs are prepared like real scans, and a pair that cannot be prepared is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import neuroflamingo
from neuroflamingo.evaluation import follow_up_cases
from neuroflamingo.evaluation.evaluate import TEST_SEED
from neuroflamingo.evaluation.follow_up_cases import PaintedPair, PaintedSession, encode_pairs, pairs_to_paint
from neuroflamingo.painting.follow_up import is_of_two_people, paint_follow_up
from neuroflamingo_preprocessing.scan import Scan


def test_a_folder_of_heads_takes_turns_and_lends_other_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(follow_up_cases, "find_heads", lambda folder: ("a.nii", "b.nii"))
    pairs = pairs_to_paint(range(10, 14), str(tmp_path))
    assert [(one.anatomy, one.other) for one in pairs] == [("a.nii", "b.nii")] * 2 + [("b.nii", "a.nii")] * 2
    assert {one.other for one in pairs_to_paint(range(10, 14), "icbm2009a")} == {None}


class CroppedSession(PaintedSession):
    """A session of which, as the baseline of an odd pair, one corner is left."""

    def __call__(self) -> Scan:
        scan = super().__call__()
        return replace(scan, voxels=scan.voxels[:40, :40, :40]) if self.pair.seed % 2 and not self.number else scan


@pytest.mark.slow
def test_pairs_are_prepared_like_real_scans_and_failed_ones_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = neuroflamingo.load("tiny-t1w", device="cpu")[0].encoder
    two = next(seed for seed in range(TEST_SEED, TEST_SEED + 99, 2) if is_of_two_people(seed))
    pairs = [
        PaintedPair(TEST_SEED + 1, "icbm2009a"),
        PaintedPair(two, "icbm2009a", "mni6"),
        PaintedPair(TEST_SEED, "icbm2009a"),
    ]
    first, last = (PaintedSession(pairs[1], number)() for number in (0, 1))
    assert first.voxels.shape != last.voxels.shape
    monkeypatch.setattr(follow_up_cases, "PaintedSession", CroppedSession)
    encoded = encode_pairs(pairs, encoder, processes=1)  # type: ignore[arg-type]
    assert list(encoded.failed) == [0] and encoded.tokens.shape[:2] == (2, 2) and encoded.heads == 1
    assert [one.same_head for one in encoded.comparisons] == [True, False, True]
    baseline, follow_up = paint_follow_up(TEST_SEED)
    assert (encoded.baseline[2], encoded.findings[2]) == (baseline.findings, follow_up.findings)
    assert encoded.of_all(["second", "third"]) == ["", "second", "third"]
    monkeypatch.undo()
    alone = encode_pairs(pairs[2:], encoder, processes=1)  # type: ignore[arg-type]
    assert (alone.tokens[0] - encoded.tokens[1]).abs().max() < 1e-3
    assert (alone.tokens[0, 0] - alone.tokens[0, 1]).abs().max() > 0.1
