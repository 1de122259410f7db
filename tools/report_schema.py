"""Writes the published schema of the JSON form: `python tools/report_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path

from neuroflamingo.report.model import json_schema
from neuroflamingo_preprocessing.files import write_text_atomic

PUBLISHED = Path(__file__).resolve().parents[1] / "neuroflamingo" / "report" / "report.schema.json"

if __name__ == "__main__":
    write_text_atomic(PUBLISHED, json.dumps(json_schema(), indent=1) + "\n", overwrite=True)
