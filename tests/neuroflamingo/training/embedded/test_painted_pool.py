"""The pool of painted cases: resumable, and the same whoever paints it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroflamingo.painting.case import paint_case
from neuroflamingo.training.embedded.painted_pool import CasePool, paint_in_background
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


def test_a_dead_painter_is_an_error_not_a_hang(tmp_path: Path) -> None:
    with pytest.raises(NeuroFlamingoError, match="stopped early"):
        CasePool(tmp_path, 40, 2).wait(1)
