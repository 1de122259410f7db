"""Heads of one's own to paint into: read from files, divided into tissues, kept, and painted with exact truth."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroflamingo.painting.anatomy import load_anatomy, load_coarse_anatomy
from neuroflamingo.painting.cases import draw_blueprint
from neuroflamingo.painting.export import paint_cases
from neuroflamingo.painting.heads import load_head
from neuroflamingo.painting.real_heads import bias_field, find_heads, read_head
from neuroflamingo.painting.rendering import render_on_model_grid
from neuroflamingo.training.embedded.painted_pool import CasePool, PoolHeads
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError, UsageError
from neuroflamingo_preprocessing.geometry import apply
from neuroflamingo_preprocessing.structural.template import load_template


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template at 2 mm, tilted, with another contrast and a bias field, as a stranger's head without skull."""
    template = load_template()
    voxels, affine = template.t1[::2, ::2, ::2], template.affine @ np.diag([2.0, 2, 2, 1])
    along = np.linspace(-1, 1, voxels.shape[1])[None, :, None]
    signal = np.where(template.mask[::2, ::2, ::2] > 0.5, voxels**0.8 * np.exp(0.3 * along), 0) * 900
    turn = np.eye(4)
    turn[:2, :2] = [[0.995, -0.0998], [0.0998, 0.995]]
    folder = tmp_path_factory.mktemp("Doe John")
    nib.Nifti1Image(signal.astype(np.float32), turn @ affine).to_filename(folder / "sub-01_T1w.nii.gz")
    return folder


@pytest.fixture(scope="module")
def head(folder: Path) -> str:
    return find_heads(folder)[0]


def test_heads_of_a_folder(folder: Path, tmp_path: Path) -> None:
    assert [Path(one).name for one in find_heads(folder)] == ["sub-01_T1w.nii.gz"]
    with pytest.raises(NotFoundError):
        find_heads(tmp_path / "none")
    with pytest.raises(UsageError, match="unknown head"):
        load_head("no such head")


@pytest.mark.slow
def test_tissues_and_bias_field(head: str) -> None:
    template = load_template()
    t1, grey, white, mask, affine = read_head(head)
    assert t1.shape == template.t1.shape and np.array_equal(affine, template.affine)
    brain = template.mask > 0.5
    assert (mask[brain] > 0.5).mean() > 0.95 and (mask[~brain] > 0.5).mean() < 0.02
    assert np.corrcoef(white[brain], template.white[brain])[0, 1] > 0.85
    assert np.corrcoef(grey[brain], template.grey[brain])[0, 1] > 0.6
    # Front and back are equally bright again: the field of exp(0.3) at both ends is gone.
    core = template.white > 0.95
    y = apply(affine, np.argwhere(core))[:, 1]
    front, back = t1[core][y > 20], t1[core][y < -50]
    assert abs(np.median(front) / np.median(back) - 1) < 0.08
    assert t1.min() >= 0 and 0.7 < np.median(t1[core]) < 0.95


def test_a_known_field_is_found() -> None:
    template = load_template()
    mask = template.mask > 0.5
    x = np.linspace(-1, 1, mask.shape[0], dtype=np.float32)[:, None, None]
    field = np.exp(0.25 * x)
    found = bias_field(np.where(mask, template.t1 * field, np.float32(0)), mask)
    rest = (field / found)[mask]
    assert rest.std() / rest.mean() < 0.05 < np.broadcast_to(field, mask.shape)[mask].std()


def test_another_contrast_is_refused(tmp_path: Path) -> None:
    template = load_template()
    signal = template.mask * (1.0 - 0.5 * template.grey - 0.65 * template.white)
    image = nib.Nifti1Image(signal[::2, ::2, ::2].astype(np.float32), template.affine @ np.diag([2.0, 2, 2, 1]))
    image.to_filename(tmp_path / "sub-02_T1w.nii.gz")
    with pytest.raises(ScanError, match="cannot be painted into"):
        read_head(tmp_path / "sub-02_T1w.nii.gz")


@pytest.mark.slow
def test_what_is_kept_is_what_was_made(head: str, tmp_path: Path) -> None:
    made, kept = (load_coarse_anatomy(head, tmp_path) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1 and made.real and kept.real and kept.name == "sub-01_T1w.nii.gz"
    for seed in (5, 7):
        first, second = (render_on_model_grid(draw_blueprint(seed, one), one, True) for one in (made, kept))
        np.testing.assert_allclose(first.volume, second.volume, atol=0.02)
        np.testing.assert_allclose(first.centres, second.centres, atol=0.1)


@pytest.mark.slow
def test_cases_in_heads_that_take_turns(head: str, tmp_path: Path) -> None:
    paths = paint_cases(2, 10, tmp_path, anatomy=["icbm2009a", head])
    assert [path.name for path in paths] == sorted(path.name for path in paths) and len(paths) == 2
    truth = [(tmp_path / f"case-0000001{k}.json").read_text() for k in (0, 1)]
    assert '"icbm2009a"' in truth[0] and '"sub-01_T1w.nii.gz"' in truth[1] and "Doe" not in "".join(truth)


@pytest.mark.slow
def test_a_pool_draws_heads_by_seed_alone(head: str, tmp_path: Path) -> None:
    heads = PoolHeads((head,), share=0.5, extracted=True, cache=tmp_path / "heads")
    chosen = [heads.of(seed) for seed in range(200)]
    assert 70 < chosen.count(head) < 130 and chosen == [heads.of(seed) for seed in range(200)]
    (tmp_path / "heads").mkdir()
    pool = CasePool(tmp_path / "pool", 40, 3, heads).start()
    pool.wait(3)
    for index in range(3):
        anatomy = load_coarse_anatomy(heads.of(40 + index), tmp_path / "heads")
        again = render_on_model_grid(draw_blueprint(40 + index, anatomy), anatomy, True)
        np.testing.assert_allclose(np.asarray(pool.volumes[index], np.float32), again.volume, atol=2e-3)


def test_the_template_is_no_head_of_a_file() -> None:
    assert not load_anatomy().real and load_coarse_anatomy("icbm2009a").fine is load_coarse_anatomy("icbm2009a").coarse
