"""Verbs killed at random moments: what has its final name is whole, and the same command then ends well.

A warmed process forks a child for each run, so that a kill costs what the verb itself takes. Of trainings that are
killed, the finished weights are those of an undisturbed one. Killed workers are in `worker_kills`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from nilearn.datasets import load_mni152_template
from safetensors.torch import load_file

from neuroflamingo.cli import main
from neuroflamingo.training.checkpoints import verify
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.tokens.files import read_tokens
from neuroflamingo_preprocessing.drafts import TEMPORARY_PREFIX
from neuroflamingo_preprocessing.stores.scans import ScanStore
from neuroflamingo_preprocessing.structural import prepare_volume
from tests.aligned import lies_in_the_template
from tests.neuroflamingo.training.small_runs import write_language_model, write_samples
from tests.tiny import WIDTH as TOKEN_WIDTH

WIDTH = precomputed_card(16).output.width


@dataclass(frozen=True)
class Verb:
    """A verb, what it is given, and what must be whole after a kill."""

    words: Callable[[Path], list[str]]
    check: Callable[[Path], None]
    again: Callable[[Path], None] = lambda folder: None
    """Makes room for another run, if the last one came to its end."""


def inputs(folder: Path) -> None:
    """A head that lies in the template already (its alignment is not what is tried here), and a checkpoint."""
    image = load_mni152_template(resolution=2)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    nib.Nifti1Image((voxels / voxels.max() * 1000).astype(np.int16), image.affine).to_filename(folder / "head.nii.gz")
    np.savez(folder / "ready.npz", tokens=np.random.default_rng(0).standard_normal((7, WIDTH)).astype(np.float32))
    torch.save({"a.weight": torch.zeros(64, 64), "b": torch.ones(3)}, folder / "weights.pth")
    write_samples(folder / "samples")
    write_language_model(folder / "lm")
    optim, run = {"steps": 8, "accumulate": 2, "batch": 2, "ema": 0.9}, {"precision": "fp32", "deterministic": True}
    model = {"token_width": TOKEN_WIDTH, "language_model": {"source": str(folder / "lm")}}
    model["resampler"] = {"depth": 1, "num_latents": 4, "heads": 2, "dim_head": 8}
    model["cross_attention"] = {"heads": 2, "dim_head": 8}
    data = {"source": str(folder / "samples"), "train": ["train.jsonl"], "max_tokens": 24}
    recipe = {"name": "killed", "model": model, "data": data, "optim": optim, "run": run, "checkpoint": {"every": 1}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
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


def _train(folder: Path) -> list[str]:
    return ["train", str(folder / "recipe.yaml"), "-o", str(folder / "run"), "--quiet"]


def _check_train(folder: Path) -> None:
    run, alone = folder / "run", folder / "run-alone"
    for saved in (run / "checkpoints").glob("[!.]*"):
        verify(saved)
    if (run / "model").exists():
        if not alone.exists():
            shutil.copytree(run, alone)
        found, right = (load_file(place / "model" / "model.safetensors") for place in (run, alone))
        assert found.keys() == right.keys() and all(torch.equal(found[name], right[name]) for name in right)


def _new_run(folder: Path) -> None:
    if (folder / "run" / "model").exists():
        shutil.rmtree(folder / "run")


VERBS = {
    "report": Verb(_report, _check_report),
    "encode": Verb(_encode, _check_encode),
    "prepare": Verb(_prepare, _check_prepare),
    "convert": Verb(_convert, _check_convert),
    "train": Verb(_train, _check_train, _new_run),
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
    tried.check(folder)
    for number in range(count):
        if verb == "prepare" and number % 2:  # else the item is there, and there is nothing to do
            store = ScanStore(folder / "store")
            for key in store:
                store.drop(key)
        tried.again(folder)
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
