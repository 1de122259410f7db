"""Checkpoints of a training run: written atomically, verified by hash, usable with any number of processes.

    checkpoints/step-0000100/          or step-0000100-3: the third micro-step after optimiser step 100
        weights.safetensors            trainable parameters, by name
        optimizer.safetensors          their moments, `NAME.exp_avg` and so on
        average.safetensors            the moving average, if there is one
        gradients.safetensors          gradients accumulated in the micro-steps so far, if any
        state.json                     progress, recipe, software, and the SHA-256 of the files above

The order of the data, the learning rate and all random numbers are functions of the step, so none of them is saved:
random numbers are reseeded in each micro-step from (seed, micro-step, process).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from neuroflamingo_preprocessing import drafts
from neuroflamingo_preprocessing.errors import ConfigError, ModelError, NotFoundError, OutputError
from neuroflamingo_preprocessing.files import (
    fsync_folder,
    fsync_tree,
    load_json,
    sha256_of,
)
from neuroflamingo_preprocessing.software import software, utc_now

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)
FORMAT = 1
NAME = re.compile(r"step-(\d{7,})(?:-(\d+))?")
CHECKPOINTS, BEST = "checkpoints", "best"
WEIGHTS = "weights.safetensors"


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        step: optimiser steps done.
        micro: micro-steps done of the next one.
        loss: sum of the loss over these micro-steps.
        parts: the same for each part of the loss that the task logs.
        samples, tokens: number read so far, over all processes.
        best: figures of the best validation, with its `step`; empty before the first one.
        worse: number of validations since the best one.
        scale: of the fp16 loss scaler.
    """

    step: int = 0
    micro: int = 0
    loss: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0
    best: dict[str, float] = field(default_factory=dict)
    worse: int = 0
    scale: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint; tensors are unsharded and on the CPU."""

    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file; empty files are left out."""
        names = ("weights", "optimizer", "average", "gradients")
        return {name: part for name in names if (part := getattr(self, name))}


def folder_name(progress: Progress) -> str:
    """Name the checkpoint folder of a point in a run."""
    return f"step-{progress.step:07d}" + (f"-{progress.micro}" if progress.micro else "")


def save(root: Path, checkpoint: Checkpoint, recipe: Mapping[str, Any], *, keep: int, name: str | None = None) -> Path:
    """Write a checkpoint and remove all numbered ones but the newest `keep` (`best` stays).

    Args:
        root: the folder of checkpoints.
        checkpoint: the checkpoint to write.
        recipe: the resolved recipe, stored in the checkpoint.
        keep: number of numbered checkpoints to keep.
        name: of the folder; None: from the step.

    Raises:
        OutputError: it cannot be written (exit 74); existing checkpoints are untouched.
    """
    target = root / (name or folder_name(checkpoint.progress))
    try:
        root.mkdir(parents=True, exist_ok=True)
        drafts.sweep_drafts(root)
        with drafts.draft_folder(target) as draft:
            _fill(draft, checkpoint, recipe)
            replace_folder(draft, target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"the checkpoint {target.name} cannot be written",
            expected="enough space",
            seen=str(error),
            hint="free some space and run the same command again: it resumes from the previous checkpoint",
            exit_code=74,
        ) from error
    for old in numbered(root)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def numbered(root: Path) -> list[Path]:
    """List the numbered checkpoints of a run, newest first."""
    found = [(NAME.fullmatch(path.name), path) for path in root.glob("step-*")]
    order = [((int(match[1]), int(match[2] or 0)), path) for match, path in found if match]
    return [path for _, path in sorted(order, reverse=True)]


# A run may go on with other values of these: they do not change what is learnt.
FREE = ("run", "log", "checkpoint", "validation", "data.workers", "data.source")


def load(folder: Path, recipe: Mapping[str, Any] | None = None, free: tuple[str, ...] = FREE) -> Checkpoint:
    """Read a checkpoint and verify its hashes.

    Args:
        folder: folder of the checkpoint.
        recipe: recipe of the run; the checkpoint must have been trained with the same one.
        free: prefixes of keys that may differ.

    Raises:
        NotFoundError: no such checkpoint.
        ModelError: the checkpoint is damaged (exit 65).
        ConfigError: it belongs to another recipe; the message names the keys.
    """
    return _read(folder, recipe, free, load_file)


def verify(folder: Path, recipe: Mapping[str, Any] | None = None, free: tuple[str, ...] = FREE) -> Checkpoint:
    """Check a checkpoint as `load` does, but leave its tensors in their files: only the progress is given."""
    return _read(folder, recipe, free, lambda path: {})


def _read(
    folder: Path,
    recipe: Mapping[str, Any] | None,
    free: tuple[str, ...],
    read: Callable[[Path], dict[str, Tensor]],
) -> Checkpoint:
    state = _read_state(folder)
    if recipe is not None:
        check_same(recipe, state["recipe"], f"the checkpoint {folder.name}", free)
    parts: dict[str, dict[str, Tensor]] = {}
    for file, digest in state["files"].items():
        path = folder / file
        if Path(file).name != file or not path.is_file() or sha256_of(path) != digest:
            raise _damaged(folder, f"{file} is missing or changed")
        try:
            parts[path.stem] = read(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(folder, f"{file}: {error}") from error
    try:
        return Checkpoint(Progress(**state["progress"]), **parts)
    except TypeError as error:
        raise _damaged(folder, str(error)) from error


def newest(
    root: Path,
    recipe: Mapping[str, Any],
    free: tuple[str, ...] = FREE,
    read: Callable[..., Checkpoint] = load,
) -> Checkpoint | None:
    """Read the newest intact checkpoint; damaged ones are skipped with a warning. None if there are no checkpoints.

    Args:
        root: the folder of checkpoints.
        recipe, free: see `load`.
        read: `load`, or `verify`.

    Raises:
        ModelError: all checkpoints are damaged (exit 65).
        ConfigError: it belongs to another recipe.
    """
    faults: list[ModelError] = []
    for folder in numbered(root):
        try:
            return read(folder, recipe, free)
        except ModelError as error:
            LOG.warning("%s\n  the one before is taken", error)
            faults.append(error)
    if faults:
        raise ModelError(
            f"none of the {len(faults)} checkpoints can be read",
            expected="one whose files have the hashes in its state.json",
            seen=faults[0].what,
            hint="start over with --restart",
            exit_code=65,
        ) from faults[0]
    return None


def check_same(
    recipe: Mapping[str, Any], trained_with: Mapping[str, Any], what: str, free: tuple[str, ...] = FREE
) -> None:
    """Check that two recipes agree except for free keys.

    Raises:
        ConfigError: they differ; the message names each key with both values.
    """
    ours, theirs = _flat(recipe), _flat(trained_with)
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if not key.startswith(free)]
    other = [key for key in keys if ours.get(key) != theirs.get(key)]
    if other:
        raise ConfigError(
            f"{what} belongs to another recipe",
            expected="; ".join(f"{key}: {theirs.get(key)!r}" for key in other[:8]),
            seen="; ".join(f"{key}: {ours.get(key)!r}" for key in other[:8]),
            hint="choose another name for the run (--set name=...), or start over with --restart",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _fill(draft: Path, checkpoint: Checkpoint, recipe: Mapping[str, Any]) -> None:
    files = {}
    for name, tensors in checkpoint.parts().items():
        path = draft / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        files[path.name] = sha256_of(path)
    state = {
        "format": FORMAT,
        "written": utc_now(),
        "progress": asdict(checkpoint.progress),
        "recipe": dict(recipe),
        "software": software().model_dump(mode="json"),
        "files": files,
    }
    (draft / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def replace_folder(draft: Path, target: Path) -> None:
    """Put a finished draft where the target is, durably; see `drafts.replace_folder`."""
    fsync_tree(draft)
    drafts.replace_folder(draft, target)
    fsync_folder(target.parent)


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    if not folder.is_dir():
        raise NotFoundError(f"there is no checkpoint {folder}", hint="leave out --resume to use the newest one")
    try:
        state = load_json(path)
        if state["format"] == FORMAT and isinstance(state["files"], dict) and WEIGHTS in state["files"]:
            return state
        raise _damaged(folder, "another format, or no weights")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"state.json: {error}") from error


def _damaged(folder: Path, seen: str) -> ModelError:
    return ModelError(
        f"the checkpoint {folder.name} is damaged",
        expected="the files that its state.json names, unchanged",
        seen=seen,
        hint="use an older one: --resume FOLDER",
        exit_code=65,
    )
