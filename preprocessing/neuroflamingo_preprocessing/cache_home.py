"""Folder of caches and crash reports; one environment variable moves it."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "NEUROFLAMINGO_HOME"


def home_folder() -> Path:
    """Path of `$NEUROFLAMINGO_HOME`, else of a folder in the user's cache; it is not created."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "neuroflamingo"
