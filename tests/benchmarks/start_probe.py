"""One command of a checkout, run to its end or, with `--first-voxel`, until the voxels of its scan have been read.

    PYTHONPATH=TREE:TREE/encoders:TREE/preprocessing python start_probe.py TREE [--first-voxel] VERB ...

The product knows nothing of it, so commits from before this file can be measured too.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

READERS = ("neuroflamingo_preprocessing.read", "neuroflamingo_preprocessing.reading")  # now, and until fb98b0a
NOT_READ = 99


def stop_after_reading() -> None:
    """End this process when `read_scan` has given its first scan."""
    reader: Any = import_module(next(name for name in READERS if find_spec(name)))
    read = reader.read_scan

    def read_and_stop(*arguments: Any, **how: Any) -> None:
        assert read(*arguments, **how).voxels.size
        os._exit(0)

    reader.read_scan = read_and_stop


def run(tree: Path, words: list[str]) -> int:
    import neuroflamingo

    assert Path(str(neuroflamingo.__file__)).is_relative_to(tree), neuroflamingo.__file__
    stopping = words[0] == "--first-voxel"
    if stopping:
        stop_after_reading()
    sys.argv[1:] = words[stopping:]
    from neuroflamingo.cli import main

    code = main()
    return NOT_READ if stopping else code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
