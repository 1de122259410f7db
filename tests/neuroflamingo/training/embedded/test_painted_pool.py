"""The pool of painted cases: resumable, and the same whoever paints it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroflamingo.painting.case import paint_case
from neuroflamingo.training.embedded.painted_pool import CasePool
from neuroflamingo_preprocessing.errors import NeuroFlamingoError


@pytest.mark.slow
def test_pool_paints_in_the_background_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pool = CasePool(tmp_path, 40, 3).start()
    pool.wait(3)
    case = paint_case(41)
    assert np.allclose(pool.volumes[1], case.on_model_grid()[0], atol=2e-3)
    assert pool[1].findings == case.findings and pool[1].seed == 41
    assert len(pool[1].centres) == len(case.blueprint.lesions)

    lines = (tmp_path / "truth.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "truth.jsonl").write_bytes(lines[0] + lines[1][:20])  # killed in the middle of a line
    volumes = np.array(pool.volumes)
    again = CasePool(tmp_path, 40, 3).start()
    again.wait(3)
    assert (tmp_path / "truth.jsonl").read_bytes() == b"".join(lines)
    assert np.array_equal(again.volumes, volumes)


def test_a_dead_painter_is_an_error_not_a_hang(tmp_path: Path) -> None:
    with pytest.raises(NeuroFlamingoError, match="stopped early"):
        CasePool(tmp_path, 40, 2).wait(1)
