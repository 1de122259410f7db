"""`train`: the function behind `neuroflamingo train`, for research recipes and for the stages of embedded models."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from neuroflamingo.data.batches import TrainingBatches
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.read import load_any_recipe
from neuroflamingo.recipe.schema import Recipe
from neuroflamingo.training import checkpoints
from neuroflamingo.training.assembly import build
from neuroflamingo.training.embedded.stages import train_stages
from neuroflamingo.training.fused_task import FusedTask, plan_of
from neuroflamingo.training.loop import Loop
from neuroflamingo.training.parallel import accelerate_for, gather
from neuroflamingo.training.run_folder import DONE, check_folder, claim_folder, is_done, write_model
from neuroflamingo.training.trainable import merge_lora
from neuroflamingo.training.twin import tiny_stages, tiny_twin
from neuroflamingo_preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.training.checkpoints import Checkpoint
    from neuroflamingo.training.task import Plan

__all__ = ["DONE", "finish", "loop_for", "prepare_loop", "train"]

LOG = logging.getLogger(__name__)


def train(
    config: str | Path | Recipe | EmbeddedRecipe,
    overrides: list[str] | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool | str | Path = True,
    allow_download: bool = False,
    tiny: bool = False,
    quiet: bool = False,
) -> Path:
    """Train by a recipe and return the folder of the finished model.

    Args:
        config: a `Recipe` or `EmbeddedRecipe` (the stages of an embedded model), or a YAML file with one.
        overrides: `section.key=value` items.
        folder: folder of the run; `runs/NAME` by default.
        resume: True: resume at the exact step where the run in that folder stopped, if there is one; False: start over;
            a checkpoint's folder: go on from it, with the recipe as it is now.
        allow_download: language models, encoders and data may come from a hub.
        tiny: train the recipe's tiny twin, on toy data beside the folder; see `neuroflamingo.training.twin`. Values of
            the overrides stay as they are said.
        quiet: no progress on standard error.

    Raises:
        ConfigError: the recipe is invalid, or the folder belongs to another one.
        NeuroFlamingoError: unusable data, weights or loss; exit code 75 if the same command will resume.
    """
    said = [override.partition("=")[0] for override in overrides or []]
    if not isinstance(config, Recipe | EmbeddedRecipe):
        config = load_any_recipe(config, overrides)
    folder = run_folder(config, folder, tiny)
    if isinstance(config, EmbeddedRecipe):
        resume = whole_run_only(config, resume)
        return train_stages(tiny_stages(config, said) if tiny else config, folder, resume=resume, quiet=quiet)
    if tiny:
        config = tiny_twin(config, folder.with_name(f"{folder.name}-twin"), said)
    return _train(config, folder, resume, allow_download, quiet)


def run_folder(recipe: Recipe | EmbeddedRecipe, folder: str | Path | None, tiny: bool) -> Path:
    """The folder of a run: the one that is given, or `runs/NAME`."""
    return Path(folder or Path("runs") / (recipe.name + "-tiny" * tiny))


def whole_run_only(recipe: EmbeddedRecipe, resume: bool | str | Path) -> bool:
    """Refuse a chosen checkpoint, which stages do not resume from.

    Raises:
        ConfigError: a checkpoint was named.
    """
    if isinstance(resume, bool):
        return resume
    raise ConfigError(
        f"the stages of {recipe.name} resume where they stopped, not from a chosen checkpoint",
        expected="the same command without --resume FOLDER",
        seen=str(resume),
        hint=f"to start a stage from these weights: --set name=... --set STAGE.start={resume}",
    )


def _train(recipe: Recipe, folder: Path, resume: bool | str | Path, allow_download: bool, quiet: bool) -> Path:
    accelerator = accelerate_for(recipe, folder)
    check_folder(folder, plan_of(recipe), resume, accelerator)
    if resume is True and is_done(folder):
        return folder / "model"
    loop = prepare_loop(recipe, folder, accelerator, allow_download=allow_download, quiet=quiet)
    start = None if resume is False else start_of(folder, loop.plan, resume)
    claim_folder(folder, loop.plan, resume, accelerator)
    if start is not None:
        loop.restore(start)
    loop.run()
    return finish(loop)


def start_of(
    folder: Path, plan: Plan, resume: bool | str | Path, read: Callable[..., Checkpoint] = checkpoints.load
) -> Checkpoint | None:
    """Choose the checkpoint to continue from, and read it: by `checkpoints.load` or `verify`.

    Raises:
        ConfigError: a checkpoint was named, and the folder has later ones, which would be lost.
        NeuroFlamingoError: see `newest` and `load`.
    """
    if isinstance(resume, bool):
        return checkpoints.newest(folder / checkpoints.CHECKPOINTS, plan.recipe, plan.free, read)
    asked = read(Path(resume))
    name = checkpoints.folder_name(asked.progress)
    later = [path.name for path in checkpoints.numbered(folder / checkpoints.CHECKPOINTS) if path.name > name]
    if later:
        raise ConfigError(
            f"{folder} has later checkpoints than {name}",
            expected="another folder for a run from an earlier checkpoint",
            seen=", ".join(later),
            hint=f"-o {folder}-2",
        )
    return asked


def prepare_loop(
    recipe: Recipe, folder: Path, accelerator: Accelerator, *, allow_download: bool = False, quiet: bool = False
) -> Loop:
    """Build model, data and optimiser of a recipe, ready to run on this process's device."""
    model, processor = build(recipe, allow_download=allow_download)
    return loop_for(recipe, model, processor, folder, accelerator, allow_download=allow_download, quiet=quiet)


def loop_for(
    recipe: Recipe,
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    folder: Path,
    accelerator: Accelerator,
    *,
    allow_download: bool = False,
    quiet: bool = False,
) -> Loop:
    """Make the loop for a model that is already frozen except for its trainable parts; for your own scripts.

    Raises:
        ConfigError: a batch size not divisible by the number of processes.
        NeuroFlamingoError: unusable data.
    """
    if recipe.run.deterministic:
        torch.use_deterministic_algorithms(True)
    plan = plan_of(recipe)
    plan.share(accelerator.num_processes)
    batches = TrainingBatches.open(
        recipe, model, processor, world=accelerator.num_processes, allow_download=allow_download
    )
    if batches.dropped:
        LOG.warning("samples left out: %s", ", ".join(f"{n} {why}" for why, n in batches.dropped.items()))
    return Loop(FusedTask(recipe, model, processor, batches, accelerator), plan, folder, quiet)


def finish(loop: Loop) -> Path:
    """Write the best weights (or the last, without validation) as a model folder, LoRA merged, with its record."""
    task = loop.task
    assert isinstance(task, FusedTask)
    loop.take_best()
    gather(task.model)
    if loop.accelerator.is_main_process:
        if task.recipe.trained.lora is not None:
            merge_lora(task.model)
        if getattr(task.model.lang_encoder, "hf_quantizer", None) is not None:
            task.model.lang_encoder.dequantize()  # a model folder holds plain weights
        progress = asdict(loop.progress)
        task.model.config.training = {"recipe": loop.plan.recipe, "progress": progress}
        write_model(loop.folder, task.model, task.processor, progress)
    loop.accelerator.wait_for_everyone()
    return loop.folder / "model"
