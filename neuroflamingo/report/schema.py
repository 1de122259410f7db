"""Writes the published schema of the JSON form: `python -m neuroflamingo.report.schema`."""

from __future__ import annotations

import json
from pathlib import Path

from neuroflamingo.report.model import json_schema
from neuroflamingo_preprocessing.atomic import write_text_atomic

PUBLISHED = Path(__file__).parent / "report.schema.json"

if __name__ == "__main__":
    write_text_atomic(PUBLISHED, json.dumps(json_schema(), indent=1) + "\n", overwrite=True)
