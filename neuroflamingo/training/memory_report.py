"""What a recipe would do, in words: its keys, trainable parameters, steps and samples, memory and disk space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from neuroflamingo.data.validation_set import evenly
from neuroflamingo.model.summary import group_lines, parameter_rows
from neuroflamingo.recipe.schema import KINDS, Recipe
from neuroflamingo.training.memory import GIB, advice, combine, measure
from neuroflamingo.training.run_folder import nearest_folder
from neuroflamingo.training.trainable import describe_groups

if TYPE_CHECKING:
    from neuroflamingo.data.batches import TrainingBatches
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.settings import Section

COUNTED = 1000
"""Samples of each kind whose tokens are counted; of more, this many spread evenly over all."""


def recipe_in_words(recipe: Section) -> str:
    """All keys of a recipe with their values, as YAML."""
    said = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    return f"# recipe\n{said.rstrip()}\n"


def describe_run(
    recipe: Recipe,
    model: NeuroFlamingo,
    batches: TrainingBatches | None,
    folder: Path,
    precision: str | None,
    *,
    world: int = 1,
) -> str:
    """Describe a recipe: resolved keys, trainable parameters, number of steps, samples, disk space, memory.

    Args:
        recipe: the recipe.
        model: as `build` gives it with `meta=True`; its dtype is changed.
        batches: its samples; None: they cannot be read here.
        folder: folder of the run.
        precision: resolved precision; None: memory is not estimated.
        world: number of devices that share the batch.
    """
    parts = [recipe_in_words(recipe), "# parameters", *group_lines(parameter_rows(model))]
    parts += [describe_groups(model, recipe.optim), "", "# steps", *_steps(recipe, batches), ""]
    stored = stored_bytes(model, averaged=bool(recipe.optim.ema))
    parts += [*disk_lines(folder, *stored, kept=recipe.checkpoint.keep + 1), ""]
    return "\n".join([*parts, *(() if precision is None else _memory(recipe, model, precision, world))])


def _steps(recipe: Recipe, batches: TrainingBatches | None) -> Iterator[str]:
    optim = recipe.optim
    drawn = optim.steps * optim.accumulate * optim.batch
    yield f"{optim.steps:,} optimiser steps, the first {optim.warmup:,} of them warming up; schedule {optim.schedule}"
    yield f"of {optim.accumulate} micro-steps with {optim.batch} samples: {drawn:,} samples drawn"
    yield f"validation every {recipe.validation.every:,} steps, a checkpoint every {recipe.checkpoint.every:,}"
    if batches is None:
        yield "samples are not counted: not all of their files are here"
        return
    shares = {kind: getattr(recipe.data.mix, kind) for kind in KINDS if batches.by_kind[kind]}
    whole = sum(shares.values()) or 1.0
    for kind, share in shares.items():
        samples = batches.by_kind[kind]
        times = drawn * share / whole / len(samples)
        yield f"{kind}: {len(samples):,} samples, {share / whole:.0%} of the draws, each seen {times:.1f} times"
        counted = [batches.sequence(sample) for sample in evenly(samples, COUNTED)]
        tokens, learnt = sum(len(one.ids) for one in counted), sum(one.learnt for one in counted)
        yield f"  {tokens / len(counted):.0f} tokens each on average, {learnt / len(counted):.0f} of them learnt"
    for why, count in batches.dropped.items():
        yield f"left out: {count:,} {why}"
    yield f"validation: {len(batches.held_out):,} samples"


def stored_bytes(model: torch.nn.Module, *, averaged: bool = False) -> tuple[int, int]:
    """Bytes of a checkpoint (trained parameters, their two moments, perhaps an average), and of the whole model."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained * 4 * (4 if averaged else 3), sum(p.numel() * p.element_size() for p in model.parameters())


def disk_lines(folder: Path, checkpoint: int, model: int, *, kept: int) -> Iterator[str]:
    """Disk space of a run: so many checkpoints at once, the best weights, and the finished model; and what is free."""
    needed = checkpoint * kept + checkpoint // 3 + model
    free = shutil.disk_usage(nearest_folder(folder)).free
    yield "# disk, estimated"
    yield f"{'checkpoints':<14}{kept * checkpoint / GIB:>9.2f} GB  {kept} at once"
    yield f"{'model':<14}{model / GIB:>9.2f} GB"
    yield f"{'free':<14}{free / GIB:>9.2f} GB" + ("" if needed < free else "  It will not fit: free some space")


def _memory(recipe: Recipe, model: NeuroFlamingo, precision: str, world: int) -> Iterator[str]:
    sizes = measure(recipe, model, precision)
    found = combine(recipe, sizes, world=world)
    devices = "on one device" if world == 1 else f"on each of {world} devices ({recipe.run.parallel})"
    yield f"# memory, estimated, {devices}, {precision}"
    yield from found.lines()
    place, room = _room()
    yield f"{'here':<14}{room / GIB:>9.2f} GB  {place}"
    if found.total <= room:
        return
    yield "It will not fit here. Each of these takes less, by itself:"
    for setting, total in advice(recipe, sizes, world=world):
        yield f"  {setting:<60}{total / GIB:>9.2f} GB"


def _room() -> tuple[str, int]:
    """Return the memory of the device that `train` would use on this machine, in bytes."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return device.name, device.total_memory
    import psutil

    return "in this machine's memory (no GPU)", psutil.virtual_memory().total
