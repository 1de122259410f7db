"""Where caches and crash files go: one environment variable moves them all."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "NEUROFLAMINGO_HOME"


def home_folder() -> Path:
    """`$NEUROFLAMINGO_HOME`, else the user's cache folder. The folder is not created by asking."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "neuroflamingo"
