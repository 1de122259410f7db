"""Every causal language model of transformers: what the page says of it is so."""

from __future__ import annotations

import pytest
import transformers

from language_model_table import PAGE, cells, stated
from tests.neuroflamingo.model.family_survey import survey
from tests.neuroflamingo.model.small_configs import FAMILIES

STATED = stated(PAGE.read_text(encoding="utf-8"))


def test_the_page_has_a_row_for_every_family():
    assert len(FAMILIES) > 180
    assert sorted(STATED) == FAMILIES, "run tools/language_model_table.py"
    fused = [row for row in STATED.values() if len(row) > 1]
    assert len(fused) >= 160 and all(row[1] == row[3] == "yes" for row in fused), (
        "a fused family reads scans and trains"
    )
    assert sum(set(row[1:]) == {"yes"} for row in fused) >= 150


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_does_what_the_page_says(family):
    transformers.logging.set_verbosity_error()
    row = survey(family)
    if row.not_built or row.refused:
        found = ["not tried" if row.not_built else "refused"]
    else:
        found = ["as a keyword" if row.way == "keyword" else "by the scope", *cells(row)]
    assert found == STATED[family], row
