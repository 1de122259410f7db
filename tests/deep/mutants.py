"""Files with damaged bytes: each gives a scan, or an error that names the file, and ends in no time."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import zarr
from safetensors.torch import save

from neuroflamingo.model.plain_files import weight_tensors
from neuroflamingo.recipe.plain_yaml import parse_yaml
from neuroflamingo_encoders.build import read_weights
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_preprocessing.errors import ConfigError, NeuroFlamingoError
from neuroflamingo_preprocessing.read import read_scan
from tests.preprocessing.formats.dicom.dicom_heads import Slab, write_series
from tests.preprocessing.formats.nifti.nifti_by_hand import build

SECONDS = 60
AFFINE = np.array([[-6.0, 0, 0, 80], [0, 6, 0, -96], [0, 0, 6, -66], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(1, 250, (26, 32, 24)).astype(np.int16)
SLAB = Slab(columns=24, rows=26, slices=10, spacing=(8.0, 8.0, 16.0))
CODES = {2, 65, 66, 69, 73, 74, 75, 78}
Try = Callable[[np.random.Generator], object]


@dataclass
class Outcome:
    """What became of the mutants of one kind: how many were read, how many refused, and what else happened."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def change(good: bytes, rng: np.random.Generator, head: int | None = None) -> bytes:
    """Change some of the first `head` bytes: one byte, one bit, several, a cut, a shift, or a run of one value."""
    raw, head = bytearray(good), min(head or len(good), len(good))
    kind, place = int(rng.integers(7)), int(rng.integers(head))
    if kind == 0:
        raw[place] = int(rng.integers(256))
    elif kind == 1:
        raw[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        for other in rng.integers(head, size=int(rng.integers(2, 9))):
            raw[other] = int(rng.integers(256))
    elif kind == 3:
        del raw[int(rng.integers(len(raw))) :]
    elif kind == 4:
        raw[place:place] = bytes(rng.integers(256, size=int(rng.integers(1, 5)), dtype=np.uint8))
    elif kind == 5:
        end = min(head, place + int(rng.integers(2, 17)))
        raw[place:end] = bytes([int(rng.choice([0, 255, 127, 128]))]) * (end - place)
    else:
        del raw[place : place + int(rng.integers(1, 5))]
    return bytes(raw)


def change_json(plain: Any, rng: np.random.Generator) -> Any:
    """Replace or remove one value somewhere in plain data, or add one."""
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        1e308,
        float("nan"),
        "",
        "evil",
        [],
        [0],
        {},
        {"a": 1},
    ]
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key, value in list(inner.items()) if isinstance(inner, dict) else list(enumerate(inner)):
            places.append((inner, key))
            if isinstance(value, dict | list):
                walk(value)

    plain = json.loads(json.dumps(plain))
    walk(plain)
    inner, key = places[int(rng.integers(len(places)))]
    value = odd[int(rng.integers(len(odd)))]
    if rng.random() < 0.15:
        del inner[key]
    elif isinstance(inner[key], int | float) and not isinstance(inner[key], bool) and rng.random() < 0.4:
        inner[key] = inner[key] + int(rng.integers(-3, 4))
    else:
        inner[key] = value
    return plain


def nifti_headers(folder: Path) -> Try:
    """NIfTI-1 and NIfTI-2, both byte orders, with one form or two."""
    good = [
        build(VOXELS, AFFINE, version=version, order=order, forms=forms, quaternion=((0.0, 1.0, 0.0), -1))
        for version in (1, 2)
        for order in "<>"
        for forms in ("sform", "both")
    ]

    def attempt(rng: np.random.Generator) -> object:
        raw = good[int(rng.integers(len(good)))]
        (folder / "m.nii").write_bytes(change(raw, rng, 352 if raw[:1] in b"\x5c\x00"[:1] else 544))
        return read_scan(folder / "m.nii")

    return attempt


def mgh_headers(folder: Path) -> Try:
    """FreeSurfer's MGH."""
    out = io.BytesIO()
    image = nib.MGHImage(VOXELS, AFFINE)  # pyright: ignore[reportArgumentType]
    image.to_file_map({"image": nib.FileHolder(fileobj=out), "header": nib.FileHolder(fileobj=out)})
    good = out.getvalue()

    def attempt(rng: np.random.Generator) -> object:
        (folder / "m.mgh").write_bytes(change(good, rng, 90))
        return read_scan(folder / "m.mgh")

    return attempt


def zarr_metadata(folder: Path) -> Try:
    """Zarr v3 arrays: values of `zarr.json` and its bytes."""
    array = zarr.create_array(
        folder / "m.zarr", shape=VOXELS.shape, chunks=(16, 16, 16), dtype="int16", dimension_names=["x", "y", "z"]
    )
    array[...] = VOXELS
    array.attrs["neuroflamingo"] = {"affine": AFFINE.tolist(), "world": "RAS+ mm"}
    file = folder / "m.zarr" / "zarr.json"
    plain = json.loads(file.read_text())

    def attempt(rng: np.random.Generator) -> object:
        told = json.dumps(change_json(plain, rng)).encode()
        file.write_bytes(told if rng.random() < 0.6 else change(json.dumps(plain).encode(), rng))
        return read_scan(folder / "m.zarr")

    return attempt


def dicom_files(folder: Path) -> Try:
    """One file of a series, whole or its first kilobyte."""
    good = write_series(folder / "good", SLAB)
    series = shutil.copytree(good, folder / "series")
    names = sorted(file.name for file in good.iterdir())

    def attempt(rng: np.random.Generator) -> object:
        name = names[int(rng.integers(len(names)))]
        raw = (good / name).read_bytes()
        (series / name).write_bytes(change(raw, rng, 1500 if rng.random() < 0.8 else None))
        try:
            return read_scan(series)
        finally:
            (series / name).write_bytes(raw)

    return attempt


def safetensors_files(folder: Path) -> Try:
    """A model's weights and an encoder's: headers, lengths, cuts."""
    good = save({"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2, dtype=torch.float16)})
    head = 8 + int.from_bytes(good[:8], "little")
    plain, card = json.loads(good[8:head]), precomputed_card(4)

    def attempt(rng: np.random.Generator) -> object:
        if rng.random() < 0.5:
            text = json.dumps(change_json(plain, rng)).encode()
            raw = len(text).to_bytes(8, "little") + text + good[head:]
        else:
            raw = change(good, rng, head)
        (folder / "model.safetensors").write_bytes(raw)
        return read_weights(card, folder / "model.safetensors") if rng.random() < 0.5 else weight_tensors(folder)

    return attempt


def recipe_texts(folder: Path) -> Try:
    """YAML as recipes have it."""
    good = b"name: a\nmodel: &m {encoder: {name: vit3d}, list: [1, 2.5, yes]}\ndata:\n  train: [x.jsonl]\nother: *m\n"

    def attempt(rng: np.random.Generator) -> object:
        try:
            return parse_yaml(change(good, rng).decode("utf-8")) or ()
        except ValueError as error:
            raise ConfigError("not YAML", seen=str(error)) from error

    return attempt


KINDS: dict[str, tuple[Callable[[Path], Try], int]] = {
    "NIfTI-1 and NIfTI-2 headers": (nifti_headers, 100_000),
    "MGH headers": (mgh_headers, 50_000),
    "zarr metadata": (zarr_metadata, 50_000),
    "DICOM files": (dicom_files, 20_000),
    "safetensors files": (safetensors_files, 100_000),
    "recipes": (recipe_texts, 50_000),
}
"""What makes the attempts of each kind, and how many the nightly run has."""


def run(kind: str, count: int, folder: Path) -> Outcome:
    """Try so many mutants, each by its own fixed seed; anything but a scan or a typed error is a fault.

    A `read` scan may be damaged where the format has no checksum: only that it is finite and whole is looked at.
    """
    attempt, outcome = KINDS[kind][0](folder), Outcome()
    previous = signal.signal(signal.SIGALRM, _too_long)
    try:
        for number in range(count):
            rng = np.random.default_rng([number, sum(kind.encode())])
            signal.alarm(SECONDS)
            try:
                found = attempt(rng)
                voxels = getattr(found, "voxels", None)
                if voxels is not None and not np.isfinite(voxels).all():
                    outcome.faults.append(f"{number}: voxels that are not finite")
                outcome.counts["read"] += 1
            except NeuroFlamingoError as error:
                outcome.counts[f"exit {error.exit_code}"] += 1
                if error.exit_code not in CODES:
                    outcome.faults.append(f"{number}: exit {error.exit_code}: {error}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome.faults.append(f"{number}: {type(error).__name__}: {error}"[:300])
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, previous)
    return outcome


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS} s")


def memory_folder() -> str | None:
    """A folder in memory, where there is one: the mutants are written by the hundred thousand."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
