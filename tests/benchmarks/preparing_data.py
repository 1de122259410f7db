"""Files for the benchmark of preparing: heads, runs and an atlas, made by rule from the template."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

LAS = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (91, 109, 91)
PLACE, QUICK = "NEUROFLAMINGO_BENCH_FOLDER", "NEUROFLAMINGO_BENCH_QUICK"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    heads: int = 32
    cached: int = 4
    frames: int = 60
    runs: int = 10
    run_frames: int = 12
    parcels: int = 424
    epochs: int = 5


def sizes() -> Sizes:
    """Those of the table, or as few as a test of the script needs."""
    return Sizes(2, 1, 20, 2, 4, 40, 1) if os.environ.get(QUICK) else Sizes()


def folder() -> Path:
    """Where the files are; `make` made them, for this process and those that it starts."""
    return Path(os.environ[PLACE])


def begin_with(make: Callable[[Path], None]) -> Callable[[bool], None]:
    """What makes the files in a folder, which goes when this process ends.

    `--quick` begins the script anew, so that sizes are small from the start.
    """

    def begin(quick: bool) -> None:
        if quick and not os.environ.get(QUICK):
            os.environ[QUICK] = "1"
            os.execv(sys.executable, [sys.executable, *sys.argv])
        place = Path(tempfile.mkdtemp(prefix="bench-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        os.environ[PLACE] = str(place)
        make(place)

    return begin


def make(place: Path) -> None:
    """Write all files."""
    from neuroflamingo_preprocessing.structural.resampling import resample
    from neuroflamingo_preprocessing.structural.template import load_template

    size, rng, template = sizes(), np.random.default_rng(0), load_template()
    head = 1000 * template.t1 + rng.standard_normal(template.t1.shape, np.float32) * 20
    (place / "heads").mkdir()
    (place / "runs").mkdir()
    for number in range(size.heads):
        values = (head * (1 + 0.02 * number)).clip(0).astype(np.int16)
        _save(place / "heads" / f"sub-{number:02}_T1w.nii.gz", values, template.affine)
    still = 1000 * resample(template.t1 * template.mask, template.affine, SHAPE, LAS, 2.0, 0.0)
    brain = still > 50
    frames = np.zeros((*SHAPE, size.frames), np.int16, order="F")
    for frame in range(size.frames):
        frames[..., frame][brain] = still[brain] + rng.standard_normal(int(brain.sum()), np.float32) * 20
    _save(place / "bold.nii.gz", frames, LAS)
    x, y, z = np.indices(SHAPE)
    blocks = (1 + ((x // 6) * 361 + (y // 6) * 19 + z // 6) % size.parcels) * (still > 100)
    _save(place / "atlas.nii.gz", blocks.astype(np.int16), LAS)
    for number in range(size.runs):
        first = number % (size.frames - size.run_frames + 1)
        part = frames[..., first : first + size.run_frames]
        _save(place / "runs" / f"sub-{number:02}_bold.nii.gz", part, LAS)


def _save(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    if values.ndim == 4:
        image.header.set_zooms((2.0, 2.0, 2.0, 0.8))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
