"""Reading and preparing beside nibabel and nilearn on the same files, interleaved in one run.

A head at 1 mm and a run of 100 frames at 2 mm, made by rule from the template, 16-bit and gzipped; an atlas of 424
blocks. Results of both sides are compared before anything is timed. Run by `make bench`, or:

    python tests/benchmarks/bench_preparing.py --rounds 5 --write docs/performance.md
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from comparing import Comparison

LAS = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE, FRAMES, PARCELS = (91, 109, 91), 100, 424
T1W, BOLD, FILE, MEMORY, AGAIN = (
    "T1w .nii.gz to float32",
    "BOLD .nii.gz to float32, 100 frames",
    "parcel series, from the file",
    "parcel series, in memory",
    "20 runs into a store, again",
)
GOALS = {T1W: 1.4, BOLD: 1.5, FILE: 3.0, MEMORY: 5.0, AGAIN: 10.0}


@lru_cache(maxsize=1)
def folder() -> Path:
    """Files of the benchmark; removed at the end."""
    from neuroflamingo_preprocessing.resampling import resample
    from neuroflamingo_preprocessing.template import load_template

    place = Path(tempfile.mkdtemp(prefix="bench-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    rng, template = np.random.default_rng(0), load_template()
    head = 1000 * template.t1 + rng.normal(0, 20, template.t1.shape)
    _save(place / "head.nii.gz", head.clip(0).astype(np.int16), template.affine)
    still = 1000 * resample(template.t1 * template.mask, template.affine, SHAPE, LAS, 2.0, 0.0)
    frames = np.stack([np.where(still > 50, still + rng.normal(0, 20, SHAPE), 0) for _ in range(FRAMES)], axis=-1)
    _save(place / "bold.nii.gz", frames.astype(np.int16), LAS)
    x, y, z = np.indices(SHAPE)
    blocks = (1 + ((x // 6) * 361 + (y // 6) * 19 + z // 6) % PARCELS) * (still > 100)
    _save(place / "atlas.nii.gz", blocks.astype(np.int16), LAS)
    (place / "runs").mkdir()
    for number in range(20):
        _save(
            place / "runs" / f"sub-{number:02}_bold.nii.gz", np.roll(frames, number, -1)[..., :12].astype(np.int16), LAS
        )
    return place


def _save(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    if values.ndim == 4:
        image.header.set_zooms((2.0, 2.0, 2.0, 0.8))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)


def our_head() -> Callable[[], np.ndarray]:
    from neuroflamingo_preprocessing import read_scan

    path = folder() / "head.nii.gz"
    return lambda: read_scan(path).voxels


def our_run() -> Callable[[], np.ndarray]:
    from neuroflamingo_preprocessing import read_run

    def work() -> np.ndarray:
        run = read_run(folder() / "bold.nii.gz")
        out = np.empty((*run.shape, run.frames), np.float32, order="F")
        for first, block in run.blocks():
            out[..., first : first + block.shape[-1]] = block
        return out

    folder()
    return work


def with_nibabel(name: str) -> Callable[[], np.ndarray]:
    path = folder() / name
    return lambda: nibabel.load(path).get_fdata(dtype=np.float32)  # type: ignore[attr-defined]


def our_series() -> Callable[[], np.ndarray]:
    from neuroflamingo_preprocessing import parcel_series, read_atlas, read_run

    place = folder()
    return lambda: parcel_series(read_run(place / "bold.nii.gz"), read_atlas(place / "atlas.nii.gz"))[0]


def _masker() -> Any:
    from nilearn.maskers import NiftiLabelsMasker

    return NiftiLabelsMasker(str(folder() / "atlas.nii.gz"), resampling_target="data", standardize=None)


def nilearn_series() -> Callable[[], np.ndarray]:
    path = str(folder() / "bold.nii.gz")
    return lambda: _masker().fit_transform(path).T


def _in_memory() -> tuple[np.ndarray, np.ndarray]:
    run = nibabel.load(folder() / "bold.nii.gz").get_fdata(dtype=np.float32)  # type: ignore[attr-defined]
    labels = np.asarray(nibabel.load(folder() / "atlas.nii.gz").dataobj, dtype=np.int32)  # type: ignore[attr-defined]
    return np.asfortranarray(run), labels


def our_means() -> Callable[[], np.ndarray]:
    from neuroflamingo_preprocessing.parcels import ParcelMeans

    run, labels = _in_memory()
    return lambda: ParcelMeans(labels, np.arange(1, PARCELS + 1, dtype=np.int32))(run)


def nilearn_means() -> Callable[[], np.ndarray]:
    run, _ = _in_memory()
    image, masker = nibabel.Nifti1Image(run, LAS), _masker().fit()
    return lambda: masker.transform(image).T


def _store(again: bool) -> Callable[[], int]:
    from neuroflamingo.encoder_input import Preparation
    from neuroflamingo.store_making import prepare_into_store
    from neuroflamingo_encoders import encoder_card

    place, card = folder(), encoder_card("fc-baseline", parcels=PARCELS)
    how = Preparation.of(card.scan, atlas=place / "atlas.nii.gz")

    def work() -> int:
        store = place / ("warm" if again else "cold")
        if not again:
            shutil.rmtree(store, ignore_errors=True)
        done = prepare_into_store(place / "runs", store, card, how)
        return done.done + done.present

    if again:
        work()
    return work


SYSTEMS: dict[str, dict[str, Callable[[], Callable[[], Any]]]] = {
    T1W: {"neuroflamingo": our_head, "nibabel": lambda: with_nibabel("head.nii.gz")},
    BOLD: {"neuroflamingo": our_run, "nibabel": lambda: with_nibabel("bold.nii.gz")},
    FILE: {"neuroflamingo": our_series, "nilearn": nilearn_series},
    MEMORY: {"neuroflamingo": our_means, "nilearn": nilearn_means},
    AGAIN: {"neuroflamingo": lambda: _store(True), "the first time": lambda: _store(False)},
}


def agree(first: Any, other: Any) -> None:
    np.testing.assert_allclose(first, other, rtol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(Comparison(__file__, "bench-preparing", SYSTEMS, GOALS, agree, __doc__ or "").main())
