"""Reading, preparing and storing beside nibabel, nilearn and MONAI on the same files, interleaved in one run.

Heads at 1 mm (197 x 233 x 189), runs at 2 mm (91 x 109 x 91) and an atlas of 424 blocks, made by rule from the
template, 16-bit and gzipped. Results of both sides are compared before anything is timed. Run by `make bench`, or:

    python tests/benchmarks/bench_preparing.py --rounds 3 --write docs/performance.md
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import preparing_caches as caches
import preparing_data
import torch
from comparing import OURS, Comparison
from preparing_caches import Near, Work, heads, scratch
from preparing_data import LAS, SHAPE, begin_with, folder, sizes

CROP = (64, 64, 64)
SIZE = sizes()
T1W, BOLD = "T1w .nii.gz to float32", f"BOLD .nii.gz to float32, {SIZE.frames} frames"
FILE, MEMORY = "parcel series, from the file", "parcel series, in memory"
WHOLE, CROPS = "cached epoch, whole volumes at 2 mm", "cached epoch, random 64^3 crops at 2 mm"
BUILD, PLAIN = "store build, orient + smooth + resample + mask", "store build, orient + resample + mask"
EPOCH, DISK = "epoch over that store", "disk of that store"
AGAIN, PROCESSES = f"{SIZE.runs} runs into a store, again", f"{SIZE.heads} heads aligned into a store"
PEAK_HEAD, PEAK_RUN = "memory: one head prepared", f"memory: one run of {SIZE.frames} frames prepared"
GOALS = {T1W: 1.4, BOLD: 1.5, WHOLE: 4.0, CROPS: 15.0, FILE: 3.0, MEMORY: 5.0, AGAIN: 10.0}
GOALS |= {BUILD: 1.5, PLAIN: 1.5, EPOCH: 1.2, DISK: 2.5, PROCESSES: 1.6}
BOUNDS = {
    PEAK_HEAD: 3 * 96 * 112 * 96 * 4 / 2**20 + 300,
    PEAK_RUN: 1.5 * 96**3 * SIZE.frames * 4 / 2**20 + 300,
}
NOTE = (
    f"Files are 16-bit, gzip level 1, unpacked 17 MB a head, {np.prod(SHAPE) * SIZE.frames * 2 / 1e6:.0f} MB the run. "
    "Memory is the peak above what the imports take."
)


def agree(first: Any, other: Any) -> None:
    if isinstance(first, Near):
        for ours, theirs in zip(first.values, other.values, strict=True):
            apart = np.abs(ours - theirs) > 0.005 * ours.max()
            assert ours.shape == theirs.shape and apart.mean() < 0.002, apart.mean()
        return
    if isinstance(first, np.ndarray | list | tuple | int):
        np.testing.assert_allclose(first, other, rtol=1e-5)
    else:
        import_module("bids_index").agree(first, other)


# --- reading -----------------------------------------------------------------------------------------------------


def our_head() -> Work:
    from neuroflamingo_preprocessing import read_scan

    path = heads()[0]
    return lambda: read_scan(path).voxels


def our_run() -> Work:
    from neuroflamingo_preprocessing import read_run

    def work() -> np.ndarray:
        run = read_run(folder() / "bold.nii.gz")
        ((_, voxels),) = run.blocks(run.frames)
        return voxels

    return work


def with_nibabel(path: Path) -> np.ndarray:
    return nibabel.load(path).get_fdata(dtype=np.float32)  # type: ignore[attr-defined]


# --- parcels -----------------------------------------------------------------------------------------------------


def our_series() -> Work:
    from neuroflamingo_preprocessing import parcel_series, read_atlas, read_run

    place = folder()
    return lambda: parcel_series(read_run(place / "bold.nii.gz"), read_atlas(place / "atlas.nii.gz"))[0]


def _masker() -> Any:
    from nilearn.maskers import NiftiLabelsMasker

    return NiftiLabelsMasker(str(folder() / "atlas.nii.gz"), resampling_target="data", standardize=None)


def nilearn_series() -> Work:
    path = str(folder() / "bold.nii.gz")
    return lambda: _masker().fit_transform(path).T


def our_means() -> Work:
    from neuroflamingo_preprocessing.functional.parcellation import ParcelMeans

    run = np.asfortranarray(with_nibabel(folder() / "bold.nii.gz"))
    labels = np.asarray(nibabel.load(folder() / "atlas.nii.gz").dataobj, dtype=np.int32)  # type: ignore[attr-defined]
    return lambda: ParcelMeans(labels, np.arange(1, SIZE.parcels + 1, dtype=np.int32))(run)


def nilearn_means() -> Work:
    image = nibabel.Nifti1Image(np.asfortranarray(with_nibabel(folder() / "bold.nii.gz")), LAS)
    masker = _masker().fit()
    return lambda: masker.transform(image).T


def on_disk() -> Iterator[dict[str, Any]]:
    """Two rows: bytes of both caches."""
    bytes_of = {system: caches.bytes_on_disk(system) for system in (OURS, "monai")}
    for system, size in bytes_of.items():
        goal = f">= {GOALS[DISK]}" if system != OURS else ""
        row = {"case": DISK, "system": system, "shown": f"{size / 1e6:.2f} MB", "ratio": size / bytes_of[OURS]}
        yield row | {"memory_mb": None, "goal": goal}


# --- the whole road ----------------------------------------------------------------------------------------------


def into_store(again: bool) -> Work:
    from neuroflamingo_encoders import encoder_card
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.stores.build import prepare_into_store

    place, card, store = folder(), encoder_card("fc-baseline", parcels=SIZE.parcels), scratch() / "store"
    how = Preparation.of(card.scan, atlas=place / "atlas.nii.gz")

    def work() -> int:
        if not again:
            shutil.rmtree(store, ignore_errors=True)
        done = prepare_into_store(place / "runs", store, card, how)
        return done.done + done.present

    if again:
        work()
    return work


def by_processes(count: int) -> Work:
    """The command itself, start included."""
    store = scratch() / "store"
    command = [sys.executable, "-m", "neuroflamingo", "prepare", folder() / "heads", "-o", store]
    command += ["--encoder", caches.GRID, "--nprocs", str(count)]

    def work() -> int:
        shutil.rmtree(store, ignore_errors=True)
        subprocess.run(command, check=True, capture_output=True)
        return len(list(store.glob("items/??/*/commit.json")))

    return work


def one_head() -> Work:
    import SimpleITK  # noqa: F401
    from nilearn import datasets  # noqa: F401
    from scipy import ndimage  # noqa: F401

    from neuroflamingo_encoders import encoder_card
    from neuroflamingo_preprocessing import prepare, read_scan

    spec = encoder_card(caches.GRID).scan
    return lambda: prepare(read_scan(heads()[0]), spec).tensor.shape


def one_run() -> Work:
    from nilearn import datasets  # noqa: F401
    from scipy import ndimage  # noqa: F401

    from neuroflamingo_encoders import encoder_card
    from neuroflamingo_preprocessing import prepare_run, read_run

    spec = encoder_card("swift").scan
    return lambda: sum(window.frames for window in prepare_run(read_run(folder() / "bold.nii.gz"), spec).windows())


SYSTEMS: dict[str, dict[str, Callable[[], Work]]] = {
    T1W: {OURS: our_head, "nibabel": lambda: partial(with_nibabel, heads()[0])},
    BOLD: {OURS: our_run, "nibabel": lambda: partial(with_nibabel, folder() / "bold.nii.gz")},
    WHOLE: {OURS: lambda: caches.our_epoch(None), "nibabel + scipy": lambda: caches.nibabel_epoch(None)},
    CROPS: {OURS: lambda: caches.our_epoch(CROP), "nibabel + scipy": lambda: caches.nibabel_epoch(CROP)},
    FILE: {OURS: our_series, "nilearn": nilearn_series},
    MEMORY: {OURS: our_means, "nilearn": nilearn_means},
    PEAK_HEAD: {OURS: one_head},
    PEAK_RUN: {OURS: one_run},
    AGAIN: {OURS: lambda: into_store(True), "the first time": lambda: into_store(False)},
    BUILD: {OURS: lambda: caches.our_build(True), "monai": lambda: caches.monai_build(True)},
    PLAIN: {OURS: lambda: caches.our_build(False), "monai": lambda: caches.monai_build(False)},
    EPOCH: {OURS: lambda: caches.epochs_of(caches.our_cached), "monai": lambda: caches.epochs_of(caches.monai_cached)},
    PROCESSES: {OURS: lambda: by_processes(2), "1 process": lambda: by_processes(1)},
}
if find_spec("bids_index"):
    bids_index = import_module("bids_index")
    SYSTEMS |= bids_index.SYSTEMS
    GOALS |= bids_index.GOALS


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="monai")
    sys.exit(
        Comparison(
            __file__,
            "bench-preparing",
            SYSTEMS,
            GOALS,
            agree,
            __doc__ or "",
            bounds=BOUNDS,
            wall=frozenset({PROCESSES}),
            most_rounds={PROCESSES: 2},
            more={DISK: on_disk},
            begin=begin_with(preparing_data.make),
            note=NOTE,
        ).main()
    )
