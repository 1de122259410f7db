"""Verbs killed at random moments: what has its final name is whole, and the same command then ends well.

A warmed process forks a child for each run, so that a kill costs what the verb itself takes. Trainings that are killed
are in `tests/neuroflamingo/training/test_exact_resume.py`, workers and Dask workers in `tests/preprocessing/stores/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nilearn.datasets import load_mni152_template
from safetensors.torch import load_file

from neuroflamingo.cli import main
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.tokens.files import read_tokens
from neuroflamingo_preprocessing.drafts import TEMPORARY_PREFIX
from neuroflamingo_preprocessing.stores.scans import ScanStore
from neuroflamingo_preprocessing.structural import prepare_volume
from tests.aligned import lies_in_the_template

WIDTH = precomputed_card(16).output.width


@dataclass(frozen=True)
class Verb:
    """A verb, what it is given, and what must be whole after a kill."""

    words: Callable[[Path], list[str]]
    check: Callable[[Path], None]


def inputs(folder: Path) -> None:
    """A head that lies in the template already (its alignment is not what is tried here), and a checkpoint."""
    image = load_mni152_template(resolution=2)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    nib.Nifti1Image((voxels / voxels.max() * 1000).astype(np.int16), image.affine).to_filename(folder / "head.nii.gz")
    np.savez(folder / "ready.npz", tokens=np.random.default_rng(0).standard_normal((7, WIDTH)).astype(np.float32))
    torch.save({"a.weight": torch.zeros(64, 64), "b": torch.ones(3)}, folder / "weights.pth")
    found = lies_in_the_template()
    prepare_volume.align = lambda voxels, affine: found


def _report(folder: Path) -> list[str]:
    words = ["report", str(folder / "head.nii.gz"), "-o", f"{folder}/out/", "--max-new-tokens", "4"]
    return [*words, "--overwrite", "--quiet", "--device", "cpu"]


def _check_report(folder: Path) -> None:
    for file in (folder / "out").glob("[!.]*"):
        text = file.read_text()
        assert text.endswith("\n") or text.endswith(">"), file
        if file.suffix == ".json":
            json.loads(text)
        if file.suffix == ".html":
            assert text.rstrip().endswith("</html>"), file


def _encode(folder: Path) -> list[str]:
    words = ["encode", str(folder / "head.nii.gz"), "-o", str(folder / "tokens.zarr"), "--encoder", "tiny-t1w-cnn"]
    return [*words, "--init", "random", "--overwrite", "--device", "cpu"]


def _check_encode(folder: Path) -> None:
    if (folder / "tokens.zarr").exists():
        assert len(read_tokens(folder / "tokens.zarr").scans) == 1


def _prepare(folder: Path) -> list[str]:
    return ["prepare", str(folder / "head.nii.gz"), "-o", str(folder / "store"), "--encoder", "vit3d", "--quiet"]


def _check_prepare(folder: Path) -> None:
    if (folder / "store" / "store.json").exists():
        store = ScanStore(folder / "store")
        assert all(store.fault(key, thorough=True) is None for key in store)


def _convert(folder: Path) -> list[str]:
    return ["models", "convert", str(folder / "weights.pth"), "-o", str(folder / "out.safetensors"), "--overwrite"]


def _check_convert(folder: Path) -> None:
    if (folder / "out.safetensors").exists():
        assert set(load_file(folder / "out.safetensors")) == {"a.weight", "b"}


VERBS = {
    "report": Verb(_report, _check_report),
    "encode": Verb(_encode, _check_encode),
    "prepare": Verb(_prepare, _check_prepare),
    "convert": Verb(_convert, _check_convert),
}


def fork(words: list[str]) -> int:
    """A child that runs a verb; gives its process number."""
    child = os.fork()
    if child == 0:
        os.setsid()  # so that its workers can be killed with it
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = 70
        with contextlib.suppress(BaseException):
            code = main(words)
        os._exit(code)
    return child


def ended(child: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left_over(folder: Path) -> list[Path]:
    """Drafts anywhere below a folder."""
    return list(folder.rglob(f"{TEMPORARY_PREFIX}*"))


def run(verb: str, count: int, folder: Path) -> Counter[str]:
    """Kill a verb so often, at moments spread over its run, and look at what is left; every tenth time it is run again.

    Raises:
        AssertionError: a file under its final name is not whole, a draft stays, or the command does not end well.
    """
    torch.set_num_threads(1)
    tried, moments, counts = VERBS[verb], random.Random(f"kills of {verb}"), Counter[str]()
    words = tried.words(folder)
    begin = time.monotonic()
    assert ended(fork(words)) == 0, f"{verb} does not end well by itself"
    whole = time.monotonic() - begin
    for number in range(count):
        if verb == "prepare" and number % 2:  # else the item is there, and there is nothing to do
            store = ScanStore(folder / "store")
            for key in store:
                store.drop(key)
        child = fork(words)
        time.sleep(moments.uniform(0, whole))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        counts["killed" if ended(child) == -signal.SIGKILL else "was done"] += 1
        tried.check(folder)
        if number % 10 == 9 or number == count - 1:
            code = ended(fork(words))
            assert code == 0, f"{verb} after a kill: exit {code}"
            tried.check(folder)
            assert not left_over(folder), left_over(folder)
            counts["run again"] += 1
    return counts
