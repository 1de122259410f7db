"""`train --dry-run`: what a recipe would do, before anything is loaded, downloaded or written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from neuroflamingo.data.manifest import read_manifest
from neuroflamingo.model.summary import group_lines, parameter_rows
from neuroflamingo.recipe.schema import KINDS, Recipe
from neuroflamingo.recipe.sources import DATASETS
from neuroflamingo.training.assembly import build
from neuroflamingo.training.memory import GIB, advice, combine, measure
from neuroflamingo.training.precision import resolved_precision
from neuroflamingo.training.trainable import describe_groups


def describe_run(recipe: Recipe, *, world: int | None = None, allow_download: bool = False) -> str:
    """Describe a recipe: resolved keys, trainable parameters, number of steps, memory.

    Args:
        recipe: the recipe. Shapes come from its source if that is available, otherwise from its architecture.
        world: number of devices that share the batch; None: from the launcher of this process.
        allow_download: whether config and tokenizer may be downloaded from a hub.

    Raises:
        ConfigError: parts that do not fit together; existing manifests are checked too, without their scans.
    """
    world = world or int(os.environ.get("WORLD_SIZE", "1"))
    model, _ = build(recipe, meta=True, allow_download=allow_download)
    said = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    parts = ["# recipe", said.rstrip(), "", "# parameters", *group_lines(parameter_rows(model))]
    parts += [describe_groups(model, recipe.optim), "", "# steps", *_steps(recipe)]
    return "\n".join([*parts, "", *_memory(recipe, model, world)])


def _steps(recipe: Recipe) -> Iterator[str]:
    optim = recipe.optim
    drawn = optim.steps * optim.accumulate * optim.batch
    yield f"{optim.steps:,} optimiser steps, the first {optim.warmup:,} of them warming up; schedule {optim.schedule}"
    yield f"of {optim.accumulate} micro-steps with {optim.batch} samples: {drawn:,} samples drawn"
    yield f"validation every {recipe.validation.every:,} steps, a checkpoint every {recipe.checkpoint.every:,}"
    root = Path(recipe.data.source).expanduser()
    files = [root / name for name in recipe.data.train]
    absent = [] if recipe.data.source.startswith(DATASETS) else [str(file) for file in files if not file.is_file()]
    if recipe.data.source.startswith(DATASETS) or absent:
        yield f"samples are not counted: {', '.join(absent[:3]) or recipe.data.source} is not here"
        return

    counts = Counter(sample.kind for sample in read_manifest(files, check_scans=False))
    shares = {kind: getattr(recipe.data.mix, kind) for kind in KINDS if counts[kind]}
    whole = sum(shares.values()) or 1.0
    for kind, share in shares.items():
        times = drawn * share / whole / counts[kind]
        yield f"{kind}: {counts[kind]:,} samples, {share / whole:.0%} of the draws, each seen {times:.1f} times"


def _memory(recipe: Recipe, model: object, world: int) -> Iterator[str]:
    precision = resolved_precision(recipe)
    sizes = measure(recipe, model, precision)  # pyright: ignore[reportArgumentType]
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
