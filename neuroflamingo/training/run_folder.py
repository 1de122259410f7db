"""Folder of a run: its recipe, and the finished model."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.model.folder import DONE
from neuroflamingo.training.checkpoints import CHECKPOINTS, check_same, replace_folder
from neuroflamingo_preprocessing.drafts import draft_folder, sweep_drafts
from neuroflamingo_preprocessing.errors import ConfigError, not_created
from neuroflamingo_preprocessing.files import read_json, write_text_atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.evaluation.likeness import Likeness
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.training.task import Plan

RECIPE, LOG = "recipe.json", "log.jsonl"


def check_folder(folder: Path, plan: Plan, resume: bool | str | Path, accelerator: Accelerator) -> None:
    """Refuse to mix two recipes in one folder; nothing is written, and what a killed run left half done is swept.

    Args:
        folder: of the run.
        plan: with the recipe, and what of it may change.
        resume: as in `train`.
        accelerator: tells which process this is.

    Raises:
        ConfigError, OutputError: see `refuse_folder`.
    """
    if accelerator.is_main_process:
        refuse_folder(folder, plan, resume)
        for place in (folder, folder / CHECKPOINTS):
            sweep_drafts(place)
    accelerator.wait_for_everyone()


def refuse_folder(folder: Path, plan: Plan, resume: bool | str | Path) -> None:
    """Refuse a folder that this run cannot have; nothing is written.

    Args:
        folder, plan, resume: as for `check_folder`.

    Raises:
        ConfigError: the folder holds a run of another recipe that did a step, or something that is no run.
        OutputError: no folder can be made there (exit 73).
    """
    above = nearest_folder(folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = errno.EACCES if above.is_dir() else errno.ENOTDIR
        raise not_created(folder, OSError(reason, os.strerror(reason)))
    path = folder / RECIPE
    if folder.exists() and not path.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} holds something that is no run",
            expected=f"a new folder, or that of a run ({RECIPE} lies in it)",
            seen=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]),
            hint="choose another folder: -o FOLDER",
        )
    if resume is True and path.exists() and _has_begun(folder):
        hint = "start over with --restart"
        before = read_json(path, expected="the recipe of a run", hint=hint, name=str(path), error=ConfigError)
        check_same(plan.recipe, before, str(folder), plan.free)


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))


def claim_folder(folder: Path, plan: Plan, resume: bool | str | Path, accelerator: Accelerator) -> None:
    """Save the resolved recipe with the run, once it can begin; a run that is started over loses what is there.

    Args:
        folder, plan, resume, accelerator: as for `check_folder`, which came before.
    """
    if accelerator.is_main_process:
        if resume is False and folder.exists():
            shutil.rmtree(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_created(folder, error) from error
        write_text_atomic(folder / RECIPE, json.dumps(plan.recipe, indent=1) + "\n", overwrite=True)
    accelerator.wait_for_everyone()


def _has_begun(folder: Path) -> bool:
    """Whether anything was done in a run's folder: a start that failed leaves its recipe, and perhaps an empty log."""
    left = [path for path in folder.rglob("*") if path.is_file() and path != folder / RECIPE]
    return any(path != folder / LOG or path.stat().st_size for path in left)


def is_done(folder: Path) -> bool:
    """Tell whether the run in this folder has its finished model."""
    return (folder / "model" / DONE).exists()


def write_model(
    folder: Path,
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    how_far: dict[str, Any],
    likeness: Likeness | None = None,
) -> None:
    """Write the finished model of a run atomically, with its record of the heads that it knows if there is one."""
    target = folder / "model"
    with draft_folder(target) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        if likeness is not None:
            likeness.save(draft)
        (draft / DONE).write_text(json.dumps(how_far, indent=1) + "\n", encoding="utf-8")
        replace_folder(draft, target)
