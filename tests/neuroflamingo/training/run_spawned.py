"""Runs a training with multiprocessing forced to spawn: `run_spawned.py function|command RECIPE FOLDER`.

`function`: as a script of one's own that calls `train`; `command`: as `python -m neuroflamingo train`. Workers of the
data import this file, or the command line, anew.
"""

from __future__ import annotations

import runpy
import sys

import torch


def main() -> None:
    torch.multiprocessing.set_start_method("spawn")
    how, recipe, folder = sys.argv[1:]
    if how == "function":
        from neuroflamingo.training import train

        train(recipe, folder=folder, quiet=True)
    else:
        sys.argv = ["neuroflamingo", "train", recipe, "-o", folder, "--quiet"]
        runpy.run_module("neuroflamingo", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
