"""Base class of the stages of an embedded model, and `train_stage`, which trains one with the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file

from neuroflamingo.training.checkpoints import CHECKPOINTS, WEIGHTS, newest
from neuroflamingo.training.loop import Loop
from neuroflamingo.training.parallel import put_back, trained
from neuroflamingo.training.task import Plan, Task
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe, StageSettings

STAGES = ("encoder", "language_model", "fusion")
_START = "a checkpoint of the same stage of another run, or its safetensors file"
FREE = ("run.", "log.", "checkpoint.", "paint.processes", *(f"{stage}.validation." for stage in STAGES))
"""Keys of a recipe that may change when a run is resumed."""
OTHERS = {"language_model": ("paint.", "encoder.", "fusion."), "encoder": ("language_model.", "fusion."), "fusion": ()}
"""Keys that a stage does not depend on: they may change while it is resumed."""


def plan_of(recipe: EmbeddedRecipe, stage: Literal["language_model", "encoder", "fusion"]) -> Plan:
    """Make the plan of a stage."""
    settings: StageSettings = getattr(recipe, stage)
    return Plan(
        name=stage.replace("_", " "),
        seed=recipe.seed,
        optim=settings.optim,
        every=settings.validation.every,
        patience=settings.validation.patience,
        checkpoint=recipe.checkpoint,
        log=recipe.log,
        recipe=recipe.model_dump(mode="json"),
        section=f"{stage}.",
        free=FREE + OTHERS[stage],
    )


def plan_of_run(recipe: EmbeddedRecipe, folder: Path) -> Plan:
    """Make the plan by which a run's folder is checked: keys of stages that have not begun may change."""
    ahead = tuple(f"{stage}." for stage in STAGES if not (folder / stage / CHECKPOINTS).exists())
    return replace(plan_of(recipe, "fusion"), free=FREE + ahead)


class StageTask(Task):
    """Task of a stage; its best weights have the highest `choose_by`, the later ones in a tie."""

    choose_by: ClassVar[str]

    def __init__(self, model: nn.Module, plan: Plan, accelerator: Accelerator) -> None:
        self.model, self.plan, self.accelerator = model, plan, accelerator
        self.batch = plan.share(accelerator.num_processes)

    @property
    def rows(self) -> slice:
        """This process's samples of a micro-batch."""
        first = self.accelerator.process_index * self.batch
        return slice(first, first + self.batch)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters: matrices with weight decay, all others without."""
        parameters = [p for _, p in trained(self.model)]
        decayed, plain = ([p for p in parameters if (p.ndim > 1) is matrix] for matrix in (True, False))
        groups = [
            {"params": decayed, "weight_decay": self.plan.optim.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def better(self, figures: dict[str, float], best: dict[str, float]) -> bool:
        """Tell whether `choose_by` is at least as high as before."""
        return self.choose_by not in best or figures[self.choose_by] >= best[self.choose_by]

    def begin(self) -> None:
        """Prepare new weights for the first step."""

    def own_share(self, cases: int) -> range:
        """Select this process's validation cases; the shares of all processes are consecutive."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return range(cases * rank // world, cases * (rank + 1) // world)

    def gathered(self, items: list[Any]) -> list[Any]:
        """Concatenate the lists of all processes."""
        return gather_object(items) if self.accelerator.num_processes > 1 else items


def train_stage(task: StageTask, folder: Path, start: str | None, quiet: bool) -> dict[str, float]:
    """Train or resume a stage to its end, load the best weights into the model, and return their figures.

    Raises:
        NeuroFlamingoError: see `Loop.run`, `newest` and `start_from`.
    """
    saved = newest(folder / CHECKPOINTS, task.plan.recipe, task.plan.free)
    if saved is None and start is None:
        task.begin()
    elif saved is None:
        start_from(task, Path(start or ""))
    loop = Loop(task, task.plan, folder, quiet)
    if saved is not None:
        loop.restore(saved)
    if not loop.ended:
        loop.run()
    loop.take_best()
    return loop.progress.best


def start_from(task: StageTask, path: Path) -> None:
    """Load the weights of another run, strictly.

    Raises:
        NotFoundError: no such file or checkpoint.
        ModelError: tensors that do not fit (exit 65).
    """
    file = _weights_file(path, task.plan.section)
    places = dict(trained(task.model)) | task.buffers()
    try:
        values = load_file(file)
    except SafetensorError as error:
        raise _unfit(path, str(error)) from error
    shapes = {name: list(place.shape) for name, place in places.items()}
    found = {name: list(value.shape) for name, value in values.items() if name in places}
    left_over = sorted(values.keys() - task.model.state_dict().keys())
    if found != shapes or left_over:
        wrong = [name for name in shapes if found.get(name) != shapes[name]]
        raise _unfit(path, ", ".join([*wrong, *left_over])[:300])
    put_back(places, {name: values[name] for name in places})


def check_starts(recipe: EmbeddedRecipe) -> None:
    """Check that the weights which stages start from, heads and outlines are there, before anything is painted.

    Raises:
        NotFoundError: no such file, folder or checkpoint.
    """
    for key in ("heads", "validation_heads", "outlines"):
        path = getattr(recipe.paint, key)
        if path is not None and not Path(path).exists():
            raise NotFoundError(
                f"there is no {path}, which the recipe names as paint.{key}",
                expected="a folder of healthy T1w heads" if "heads" in key else "a folder or tar archive of masks",
                hint=f"give your own with --set paint.{key}=PATH, or --set paint.{key}=null to do without",
            )
    for stage in STAGES:
        if (start := getattr(recipe, stage).start) is not None:
            _weights_file(Path(start), f"{stage}.")


def _weights_file(path: Path, section: str) -> Path:
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(
            f"there are no weights to start from at {path}",
            expected=_START,
            hint=f"correct {section}start in the recipe, or leave it out",
        )
    return file


def _unfit(path: Path, seen: str) -> ModelError:
    return ModelError(
        f"the weights to start from at {path} do not fit this stage", expected=_START, seen=seen, exit_code=65
    )
