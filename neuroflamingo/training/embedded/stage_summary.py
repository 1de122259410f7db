"""What a recipe of stages would do, in words, and what it would stop at before its first step; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neuroflamingo.model.summary import group_lines, parameter_rows
from neuroflamingo.painting.real_heads import find_heads
from neuroflamingo.training.embedded.fusion_stage import assemble
from neuroflamingo.training.embedded.language_model_stage import read_tokenizer, tokenizer_of, untrained
from neuroflamingo.training.embedded.stage import STAGES, check_starts, plan_of, plan_of_run
from neuroflamingo.training.memory_report import disk_lines, recipe_in_words, stored_bytes
from neuroflamingo.training.parallel import check_trackers
from neuroflamingo.training.precision import resolved_precision
from neuroflamingo.training.run_folder import is_done, refuse_folder
from neuroflamingo_encoders.build import build_encoder
from neuroflamingo_encoders.families.tiny_t1w.cards import CARD

if TYPE_CHECKING:
    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, StageSettings
    from neuroflamingo.training.lacking import Lacking


def describe_stages(recipe: EmbeddedRecipe, folder: Path, *, resume: bool, lacking: Lacking, world: int = 1) -> str:
    """Describe the stages: resolved keys, parameters of the finished model, steps, painted cases, disk space.

    Args:
        recipe: the recipe.
        folder: folder of the run; its tokenizer is used if it has one, otherwise one is trained, in memory.
        resume: as in `train_stages`.
        lacking: notes what the training would stop at.
        world: number of processes that share a batch.
    """
    with lacking.noted():
        check_trackers(recipe.log.trackers)
    with lacking.noted():
        resolved_precision(recipe)
    with lacking.noted():
        refuse_folder(folder, plan_of_run(recipe, folder), resume)
    with lacking.noted():
        check_starts(recipe)
    for named in (recipe.paint.heads, recipe.paint.validation_heads):
        with lacking.noted():
            if named is not None and Path(named).exists():  # else `check_starts` has said so
                find_heads(named)
    for stage in STAGES:
        with lacking.noted():
            plan_of(recipe, stage).share(world)
    model: Any = _outlined(recipe, folder)
    checkpoint, single = stored_bytes(model)
    lines = [recipe_in_words(recipe), "# parameters of the finished model", *group_lines(parameter_rows(model)), ""]
    lines += ["# steps", *_steps(recipe), ""]
    lines += disk_lines(folder, checkpoint, single // 2, kept=recipe.checkpoint.keep + 1)
    if resume and is_done(folder):
        lines.append(f"note: the run in {folder} is finished: the command would only name its model")
    return "\n".join(lines)


def _steps(recipe: EmbeddedRecipe) -> Iterator[str]:
    for purpose, (first, count) in recipe.paint.ranges().items():
        if purpose != "test":
            yield f"{count:,} painted cases for {purpose}, from seed {first:,}"
    for stage in STAGES:
        settings: StageSettings = getattr(recipe, stage)
        optim = settings.optim
        drawn = optim.steps * optim.accumulate * optim.batch
        begun = f", from the weights of {settings.start}" if settings.start else ""
        yield (
            f"{stage.replace('_', ' ')}: {optim.steps:,} optimiser steps, {drawn:,} samples drawn; validation every "
            f"{settings.validation.every:,} steps{begun}"
        )


def _outlined(recipe: EmbeddedRecipe, folder: Path) -> Any:
    """The model of the last stage without memory; everything in it is trained in one of the stages."""
    place, settings = folder / "language_model" / "tokenizer", recipe.language_model
    tokenizer = read_tokenizer(place) if place.exists() else tokenizer_of(recipe)
    with torch.device("meta"):
        model, _ = assemble(build_encoder(CARD.name), untrained(settings, tokenizer), tokenizer, recipe.fusion)
    return model.requires_grad_(True)
