"""Writes the published schemas, of a report's JSON form and of truth files: `python tools/report_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path

from neuroflamingo.evaluation import truth_file
from neuroflamingo.report import model
from neuroflamingo_preprocessing.files import write_text_atomic

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = {
    ROOT / "neuroflamingo" / "report" / "report.schema.json": model.json_schema,
    ROOT / "docs" / "truth.schema.json": truth_file.json_schema,
}

if __name__ == "__main__":
    for path, schema in PUBLISHED.items():
        write_text_atomic(path, json.dumps(schema(), indent=1) + "\n", overwrite=True)
