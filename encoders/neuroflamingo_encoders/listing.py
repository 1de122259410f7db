"""What `encoders list` says of the package's own encoders, kept as JSON: reading 26 cards takes half a second.

Written by `python -m neuroflamingo_encoders.catalogue`; a test keeps it in step with the cards.
"""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

STORED = Path(__file__).with_name("listing.json")
ENTRY_POINT_GROUP = "neuroflamingo.encoders"


def stored_rows() -> list[dict[str, Any]] | None:
    """The rows, sorted by name; None if a plug-in is installed, whose card has to be asked for."""
    return None if entry_points(group=ENTRY_POINT_GROUP) else json.loads(STORED.read_text(encoding="utf-8"))
