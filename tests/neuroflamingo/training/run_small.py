"""Runs a small training in a process of its own, or as one of several: `run_small.py RECIPE.json FOLDER [FAMILY]`.

NEUROFLAMINGO_TEST_KILL=a,b,...: the run is killed (SIGKILL) and begun anew in a forked child, at these micro-steps
counted from each beginning; a number with `s` is killed in the midst of saving instead.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from neuroflamingo.recipe.schema import Recipe
from neuroflamingo.training import checkpoints
from neuroflamingo.training.loop import Loop
from tests.neuroflamingo.training.small_runs import small_loop


def run(recipe: Recipe, folder: Path, family: str) -> Loop:
    loop = small_loop(recipe, folder, family)
    start = checkpoints.newest(loop.root, recipe.model_dump(mode="json"))
    if start is not None:
        loop.restore(start)
    loop.run()
    return loop


def die_at(where: str) -> None:
    """Make this process end by SIGKILL at a place in its work."""

    def die(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGKILL)

    if where.endswith("s"):
        saves = [0]

        def save_or_die(folder: Path, _real=checkpoints.fsync_tree) -> None:
            saves[0] += 1
            (die if saves[0] > int(where[:-1]) else _real)(folder)

        checkpoints.fsync_tree = save_or_die
        return
    steps, real = [0], Loop._micro_step

    def step_or_die(self: Loop, *arguments) -> None:
        steps[0] += 1
        if steps[0] > int(where):
            die()
        real(self, *arguments)

    Loop._micro_step = step_or_die


def main() -> None:
    torch.set_num_threads(1)
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    folder, family = Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "llama"
    for where in filter(None, os.environ.get("NEUROFLAMINGO_TEST_KILL", "").split(",")):
        child = os.fork()
        if child == 0:
            die_at(where)
            run(recipe, folder, family)
            os._exit(0)
        print("ended by signal", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    loop = run(recipe, folder, family)
    loop.accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
