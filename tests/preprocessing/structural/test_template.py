"""The template read from nilearn's files is the one that nilearn's own loaders give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nilearn import datasets
from scipy.ndimage import binary_fill_holes

from neuroflamingo_preprocessing.errors import NotFoundError
from neuroflamingo_preprocessing.structural import template


def test_it_is_what_nilearn_loads() -> None:
    ours = template.load_template()
    image: Any = datasets.load_mni152_template(resolution=1)
    mask: Any = datasets.load_mni152_brain_mask(resolution=1)
    assert np.array_equal(ours.affine, image.affine)
    assert np.array_equal(ours.t1, image.dataobj)
    assert np.array_equal(ours.mask, binary_fill_holes(np.asarray(mask.dataobj) > 0))
    maps: list[tuple[np.ndarray, Callable[..., Any]]] = [
        (ours.grey, datasets.load_mni152_gm_template),
        (ours.white, datasets.load_mni152_wm_template),
    ]
    for values, load in maps:
        assert values.dtype == np.float32 and np.array_equal(values, load(resolution=1).dataobj)


@pytest.mark.parametrize("installed", [True, False])
def test_a_template_that_is_not_there_is_named(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)]) if installed else None
    monkeypatch.setattr(template, "find_spec", lambda name: spec)
    with pytest.raises(NotFoundError, match="t1 map is missing") as caught:
        template.template_file("t1")
    assert "nilearn" in str(caught.value)
