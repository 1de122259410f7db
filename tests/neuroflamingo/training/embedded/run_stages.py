"""Trains stages in a process of its own, or as one of several: `run_stages.py RECIPE.json FOLDER`.

NEUROFLAMINGO_TEST_KILL=STAGE:N,...: the run is killed (SIGKILL) at the N-th micro-step of a stage since its beginning,
and begun anew in a forked child.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from neuroflamingo.recipe.embedded_recipe import EmbeddedRecipe
from neuroflamingo.training import train
from neuroflamingo.training.loop import Loop


def die_at(where: str) -> None:
    """Make this process end by SIGKILL at a place in its work."""
    stage, number = where.split(":")
    steps, real = [0], Loop._micro_step

    def step_or_die(self: Loop, *arguments) -> None:
        if self.plan.section == f"{stage}.":
            steps[0] += 1
            if steps[0] == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
        real(self, *arguments)

    Loop._micro_step = step_or_die


def main() -> None:
    torch.set_num_threads(1)
    recipe = EmbeddedRecipe.model_validate_json(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    for where in filter(None, os.environ.get("NEUROFLAMINGO_TEST_KILL", "").split(",")):
        child = os.fork()
        if child == 0:
            die_at(where)
            train(recipe, folder=folder, quiet=True)
            os._exit(0)
        print("ended by signal", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    train(recipe, folder=folder, quiet=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
