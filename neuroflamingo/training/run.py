"""`train`: the one call behind `neuroflamingo train`, for research recipes and for the stages of embedded models."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.data.batches import TrainingBatches
from neuroflamingo.recipe.read import read_yaml
from neuroflamingo.recipe.schema import Recipe, is_recipe, load_recipe
from neuroflamingo.training import checkpoints
from neuroflamingo.training.assembly import build
from neuroflamingo.training.checkpoints import check_same
from neuroflamingo.training.embedded.stage_settings import load_settings
from neuroflamingo.training.embedded.stages import train_stages
from neuroflamingo.training.loop import Loop
from neuroflamingo.training.parallel import accelerate_for, gather, put_back, runner_of, trained
from neuroflamingo.training.trainable import merge_lora, parameter_groups
from neuroflamingo.training.twin import tiny_stages, tiny_twin
from neuroflamingo.training.validation import Validation
from neuroflamingo_preprocessing.errors import ConfigError
from neuroflamingo_preprocessing.files import make_draft_folder, write_text_atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor
    from neuroflamingo.training.checkpoints import Checkpoint
    from neuroflamingo.training.loop import Loop

DONE = "training.json"
"""In a finished model's folder: how far its training went."""

LOG = logging.getLogger(__name__)


def train(
    config: str | Path | Recipe,
    overrides: list[str] | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool | str | Path = True,
    allow_download: bool = False,
    tiny: bool = False,
    quiet: bool = False,
) -> Path:
    """Train by a recipe; gives the folder of the finished model.

    Args:
        config: YAML file: a `Recipe`, or the stages of an embedded model (`TrainSettings`); or a `Recipe` itself.
        overrides: `section.key=value` items.
        folder: where everything goes; `runs/NAME` by default.
        resume: True: go on at the very step where the run in that folder stopped, if there is one; False: begin anew;
            a checkpoint's folder: go on from it, with the recipe as it is now.
        allow_download: language models, encoders and data may come from a hub.
        tiny: train the recipe's tiny twin, on toy data beside the folder; see `neuroflamingo.training.twin`.
        quiet: no progress on standard error.

    Raises:
        ConfigError: the recipe is faulty, or the folder belongs to another one.
        NeuroFlamingoError: data, weights or a loss that cannot be used; exit code 75 where the same command goes on.
    """
    if not isinstance(config, Recipe):
        if not is_recipe(read_yaml(config, overrides)):
            if tiny:
                overrides = [*(overrides or []), *tiny_stages(load_settings(config, overrides))]
            return train_stages(config, overrides, folder=folder, resume=bool(resume), quiet=quiet)
        config = load_recipe(config, overrides)
    folder = Path(folder or Path("runs") / (config.name + "-tiny" * tiny))
    if tiny:
        config = tiny_twin(config, folder.with_name(f"{folder.name}-twin"))
    return _train(config, folder, resume, allow_download, quiet)


def _train(recipe: Recipe, folder: Path, resume: bool | str | Path, allow_download: bool, quiet: bool) -> Path:
    accelerator = accelerate_for(recipe, folder)
    if accelerator.is_main_process:
        _own(folder, recipe, resume)
    accelerator.wait_for_everyone()
    if resume is True and (folder / "model" / DONE).exists():
        return folder / "model"
    loop = prepare_loop(recipe, folder, accelerator, allow_download=allow_download, quiet=quiet)
    start = _start(loop, resume)
    if start is not None:
        loop.restore(start)
    loop.run()
    return finish(loop)


def _start(loop: Loop, resume: bool | str | Path) -> Checkpoint | None:
    """The checkpoint to go on from.

    Raises:
        ConfigError: one was asked for, and the folder holds later ones, which would be lost.
        NeuroFlamingoError: see `newest` and `load`.
    """
    if isinstance(resume, bool):
        return checkpoints.newest(loop.root, loop.said)
    asked = checkpoints.load(Path(resume))
    name = checkpoints.folder_name(asked.progress)
    later = [path.name for path in checkpoints.numbered(loop.root) if path.name > name]
    if later:
        raise ConfigError(
            f"{loop.folder} holds later checkpoints than {name}",
            expected="a folder of its own for a run that goes back",
            seen=", ".join(later),
            hint=f"-o {loop.folder}-2",
        )
    return asked


def _own(folder: Path, recipe: Recipe, resume: bool | str | Path) -> None:
    """Save the resolved recipe with the run; refuse to mix two recipes in one folder.

    Raises:
        ConfigError: the folder holds a run of another recipe, or something that is no run.
    """
    path, said = folder / "recipe.json", recipe.model_dump(mode="json")
    if folder.exists() and not path.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} holds something that is no run",
            expected="a new folder, or that of a run (recipe.json lies in it)",
            seen=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]),
            hint="give another folder: -o FOLDER",
        )
    if resume is False and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if resume is True and path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} cannot be read", seen=str(error), hint="begin anew with --restart") from error
        check_same(said, before, str(folder))
    write_text_atomic(path, json.dumps(said, indent=1) + "\n", overwrite=True)


def prepare_loop(
    recipe: Recipe, folder: Path, accelerator: Accelerator, *, allow_download: bool = False, quiet: bool = False
) -> Loop:
    """Model, data and optimiser of a recipe, ready to run on this process's device."""
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
    """The loop over a model whose trained parts are open already; for scripts that build their own.

    Raises:
        ConfigError: a batch that the processes cannot share evenly.
        NeuroFlamingoError: data that cannot be used.
    """
    import torch

    if recipe.run.deterministic:
        torch.use_deterministic_algorithms(True)
    optim, world = recipe.optim, accelerator.num_processes
    if optim.batch % world:
        raise ConfigError(
            f"optim.batch: {world} processes cannot share it evenly",
            expected=f"a multiple of {world}: it is what all devices read together in a micro-step",
            seen=str(optim.batch),
            hint=f"--set optim.batch={world * max(1, round(optim.batch / world))}",
        )
    batches = TrainingBatches.open(recipe, model, processor, world=world, allow_download=allow_download)
    if batches.dropped:
        LOG.warning("samples left out: %s", ", ".join(f"{n} {why}" for why, n in batches.dropped.items()))
    runner = runner_of(model, recipe.run, accelerator)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
    )
    validation = Validation(recipe.validation, batches, accelerator) if batches.held_out else None
    return Loop(recipe, model, processor, runner, optimizer, accelerator, batches, validation, folder, quiet)


def finish(loop: Loop) -> Path:
    """The best weights (the last, if nothing was validated) as a plain model folder, LoRA merged, with its record."""
    best = loop.root / checkpoints.BEST
    if best.exists():
        put_back(dict(trained(loop.model)), checkpoints.load(best).weights)
    elif loop.average:
        loop.average.swap_in()
    folder = loop.folder / "model"
    gather(loop.model)
    if loop.accelerator.is_main_process:
        if loop.recipe.trained.lora is not None:
            merge_lora(loop.model)
        if getattr(loop.model.lang_encoder, "hf_quantizer", None) is not None:
            loop.model.lang_encoder.dequantize()  # a model folder holds plain weights
        progress = asdict(loop.progress)
        loop.model.config.training = {"recipe": loop.said, "progress": progress}
        draft = make_draft_folder(folder)
        loop.model.save_pretrained(draft)
        loop.processor.save_pretrained(draft)
        (draft / DONE).write_text(json.dumps(progress, indent=1) + "\n", encoding="utf-8")
        checkpoints.replace_folder(draft, folder)
    loop.accelerator.wait_for_everyone()
    return folder
