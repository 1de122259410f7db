"""The pool of painted cases: resumable, and the same whoever paints it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from neuroflamingo.painting.anatomy import load_coarse_anatomy
from neuroflamingo.painting.case import paint_case
from neuroflamingo.painting.follow_up import draw_follow_up, is_of_two_people
from neuroflamingo.painting.heads import TEMPLATE
from neuroflamingo.painting.rendering import render_on_model_grid
from neuroflamingo.training.embedded.painted_pool import CasePool, PoolHeads, paint_in_background
from neuroflamingo.training.embedded.token_cache import TokenCache
from neuroflamingo_encoders.families.tiny_t1w.network import TinyT1wEncoder
from neuroflamingo_preprocessing.errors import NeuroFlamingoError


@pytest.mark.slow
def test_pool_paints_in_the_background_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pool = CasePool(tmp_path, 40, 3).start()
    pool.wait(3)
    case = paint_case(41)
    assert np.allclose(pool.volumes[1], case.on_model_grid()[0], atol=2e-3)
    assert pool[1].findings == case.findings and pool[1].seed == 41
    assert len(pool[1].centres) == len(case.blueprint.lesions)

    files = sorted(tmp_path.glob("truth-*.jsonl"))
    lines = [file.read_bytes() for file in files]
    assert sum(text.count(b"\n") for text in lines) == 3
    files[0].write_bytes(lines[0][:-20])  # killed in the middle of a line
    volumes = np.array(pool.volumes)
    again = CasePool(tmp_path, 40, 3)
    assert len(again.missing()) == 1
    again.start().wait(3)
    assert files[0].read_bytes() == lines[0]
    assert np.array_equal(again.volumes, volumes)


@pytest.mark.slow
def test_a_pool_is_the_same_whatever_the_number_of_painters(tmp_path: Path) -> None:
    pools = {count: CasePool(tmp_path / str(count), 40, 5, crowded=0.5) for count in (1, 3)}
    for count, pool in pools.items():
        paint_in_background(pool, processes=count)
        pool.wait(5)
    assert len(list((tmp_path / "3").glob("truth-*.jsonl"))) == 3
    assert np.array_equal(pools[1].volumes, pools[3].volumes)
    assert np.array_equal(pools[1].occupancy, pools[3].occupancy)
    assert [pools[1][i].findings for i in range(5)] == [pools[3][i].findings for i in range(5)]


@pytest.mark.slow
def test_a_pool_of_pairs_is_the_same_whatever_the_number_of_painters(tmp_path: Path) -> None:
    first = next(seed for seed in range(40, 99) if is_of_two_people(seed) and not is_of_two_people(seed + 1))
    heads = PoolHeads(("mni6",), share=0.5)
    pools = {count: CasePool(tmp_path / str(count), first, 4, heads, pairs=True) for count in (1, 3)}
    for count, pool in pools.items():
        paint_in_background(pool, processes=count)
        pool.wait(4)
    assert pools[1].volumes.shape == (4, 2, 56, 64, 56)
    assert np.array_equal(pools[1].volumes, pools[3].volumes)
    assert np.array_equal(pools[1].occupancy, pools[3].occupancy)
    for index in range(4):
        one, other = pools[1][index], pools[3][index]
        assert (one.findings, one.baseline, one.comparison) == (other.findings, other.baseline, other.comparison)
        assert len(one.centres) == len(draw_lesions(heads, first + index))
    assert pools[1][0].comparison and not pools[1][0].comparison.same_head
    assert pools[1][1].comparison and pools[1][1].comparison.same_head
    anatomy = load_coarse_anatomy(heads.of(first + 1))
    pair = draw_follow_up(first + 1, anatomy)
    assert (pools[1][1].baseline, pools[1][1].comparison) == (pair.baseline.findings, pair.comparison)
    for scan, blueprint in enumerate((pair.baseline, pair.follow_up)):
        again = render_on_model_grid(blueprint, anatomy).volume
        np.testing.assert_allclose(np.asarray(pools[1].volumes[1, scan], np.float32), again, atol=2e-3)


def draw_lesions(heads: PoolHeads, seed: int) -> tuple:
    other = heads.other(seed)
    assert other is not None
    return draw_follow_up(seed, load_coarse_anatomy(heads.of(seed)), other=load_coarse_anatomy(other)).follow_up.lesions


def test_the_other_person_has_another_head_by_the_seed_alone() -> None:
    heads = PoolHeads(("a.nii", "b.nii"), share=0.5)
    drawn = {(heads.of(seed), heads.other(seed)) for seed in range(100)}
    names = (TEMPLATE, "a.nii", "b.nii")
    assert drawn == {(one, other) for one in names for other in names if one != other}
    assert PoolHeads().other(1) is None and PoolHeads(("a.nii",)).other(1) is None  # the template alone


@pytest.mark.slow
def test_the_token_cache_holds_both_scans_of_a_pair(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = TinyT1wEncoder().eval()
    pool = CasePool(tmp_path / "pairs", 40, 2, pairs=True).start()
    cache = TokenCache(tmp_path / "tokens", pool, encoder, Accelerator(cpu=True), quiet=True)
    found = cache[np.array([0, 1, 1]), np.array([1, 1, 0])]
    assert cache.tokens.shape[:3] == (2, 2, 2) and found.shape == (3, 2, *cache.blank.shape[1:])
    assert cache.blank.shape[0] == 1
    volumes = torch.from_numpy(np.asarray(pool.volumes, np.float32))
    with torch.no_grad():
        for row, (case, flipped) in enumerate(((1, False), (1, True), (0, True))):
            for scan in (0, 1):
                x = volumes[case, scan][None, None, None]
                alone = encoder(x.flip(3) if flipped else x).tokens[0, 0]
                torch.testing.assert_close(found[row, scan], alone, atol=0.02, rtol=0.01)
    assert (found[0, 0] - found[0, 1]).abs().max() > 0.1


def test_a_dead_painter_is_an_error_not_a_hang(tmp_path: Path) -> None:
    with pytest.raises(NeuroFlamingoError, match="stopped early"):
        CasePool(tmp_path, 40, 2).wait(1)
