"""`rehearse`: what `train` would do, and every check that it makes before its first step; nothing is written."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuroflamingo.data.batches import TrainingBatches
from neuroflamingo.data.splits import read_splits
from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.recipe.read import load_any_recipe
from neuroflamingo.recipe.schema import Recipe
from neuroflamingo.recipe.sources import DATASETS, planned_folder
from neuroflamingo.training.assembly import build
from neuroflamingo.training.checkpoints import verify
from neuroflamingo.training.embedded.stage_summary import describe_stages
from neuroflamingo.training.fused_task import plan_of
from neuroflamingo.training.lacking import Lacking
from neuroflamingo.training.memory_report import describe_run
from neuroflamingo.training.parallel import check_trackers
from neuroflamingo.training.precision import resolved_precision
from neuroflamingo.training.run import run_folder, start_of, whole_run_only
from neuroflamingo.training.run_folder import is_done, refuse_folder
from neuroflamingo.training.twin import tiny_stages, tiny_twin
from neuroflamingo_preprocessing.errors import NeuroFlamingoError

if TYPE_CHECKING:
    from neuroflamingo.model.neuroflamingo import NeuroFlamingo
    from neuroflamingo.model.processor import NeuroFlamingoProcessor


@dataclass(frozen=True)
class Rehearsal:
    """What a training would do.

    Attributes:
        text: the recipe, parameters, steps, disk space and memory; empty if the model cannot be described.
        faults: errors that the training would raise before its first step, in its order.
    """

    text: str
    faults: tuple[NeuroFlamingoError, ...] = ()


def rehearse(
    config: str | Path | Recipe | EmbeddedRecipe,
    overrides: list[str] | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool | str | Path = True,
    allow_download: bool = False,
    tiny: bool = False,
    world: int | None = None,
) -> Rehearsal:
    """Check what `train` would check, without stopping at the first fault, and describe the training.

    Nothing is written or downloaded. An encoder is read as a training reads it; of other weights the names and shapes
    are compared. A language model that is not here is replaced by its architecture, if the recipe has one.

    Args:
        config, overrides, folder, resume, allow_download, tiny: as for `train`.
        world: number of devices that share the batch; None: from the launcher of this process.

    Raises:
        NeuroFlamingoError: the recipe itself is invalid.
    """
    world = world or int(os.environ.get("WORLD_SIZE", "1"))
    if not isinstance(config, Recipe | EmbeddedRecipe):
        config = load_any_recipe(config, overrides)
    said = [override.partition("=")[0] for override in overrides or []]
    place = run_folder(config, folder, tiny)
    if isinstance(config, EmbeddedRecipe):
        whole_run_only(config, resume)
        recipe = tiny_stages(config, said) if tiny else config
        lacking = Lacking()
        text = describe_stages(recipe, place, resume=bool(resume), lacking=lacking, world=world)
        return Rehearsal(text, tuple(lacking.faults))
    if not tiny:
        return _rehearse(config, place, resume, allow_download, world)
    twin = place.with_name(f"{place.name}-twin")
    if twin.exists():
        return _rehearse(tiny_twin(config, twin, said), place, resume, allow_download, world)
    with tempfile.TemporaryDirectory() as scratch:
        return _rehearse(tiny_twin(config, Path(scratch) / "twin", said), place, resume, allow_download, world)


def _rehearse(recipe: Recipe, folder: Path, resume: bool | str | Path, allow_download: bool, world: int) -> Rehearsal:
    lacking, plan = Lacking(), plan_of(recipe)
    with lacking.noted():
        check_trackers(recipe.log.trackers)
    precision = None
    with lacking.noted():
        precision = resolved_precision(recipe)
    with lacking.noted():
        refuse_folder(folder, plan, resume)
    try:
        model, processor = build(recipe, meta=True, allow_download=allow_download, lacking=lacking)
    except NeuroFlamingoError as error:
        return Rehearsal("", (*lacking.faults, error))
    with lacking.noted():
        plan.share(world)
    batches = None
    with lacking.noted():
        batches = _batches(recipe, model, processor, world, allow_download, lacking)
    found = None
    with lacking.noted():
        found = None if resume is False else start_of(folder, plan, resume, verify)
    text = describe_run(recipe, model, batches, folder, precision, world=world)
    remarks = [f"{source} would be downloaded" for source in dict.fromkeys(lacking.downloads)]
    if resume is True and is_done(folder):
        remarks.append(f"the run in {folder} is finished: the command would only name its model")
    elif found is not None:
        remarks.append(f"the run would resume at step {found.progress.step:,}")
    if not lacking.tokenizer:
        remarks.append("the tokenizer is not here: one of the same size without <image> stands in for it")
    return Rehearsal("\n".join([text, *(f"note: {remark}" for remark in remarks)]), tuple(lacking.faults))


def _batches(
    recipe: Recipe,
    model: NeuroFlamingo,
    processor: NeuroFlamingoProcessor,
    world: int,
    allow_download: bool,
    lacking: Lacking,
) -> TrainingBatches | None:
    """The samples, and the first scan read; None if they are not here, or there is nothing to tokenise them with."""
    data = recipe.data
    if data.source.startswith(DATASETS) and planned_folder(data.source, None, allow_download, kind="dataset") is None:
        lacking.downloads.append(data.source)
        return None
    absent = model.encoder is not None and any(p.is_meta for p in model.encoder.parameters())
    if not lacking.tokenizer or (absent and data.tokens):
        read_splits(data)
        return None
    batches = TrainingBatches.open(recipe, model, processor, world=world)
    draws = [batches.mixture.draw(number) for number in range(recipe.optim.batch)]
    scans = (scan for kind, index in draws for scan in batches.by_kind[kind][index].scans)
    if (first := next(scans, None)) is not None:
        batches.source.read(first, 0)
    return batches
