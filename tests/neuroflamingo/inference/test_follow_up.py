"""A report on a baseline and a follow-up: everything is real but the text, which a trained model would write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo.findings.changes import Comparison, change_between
from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.findings.wording import render_report
from neuroflamingo.inference import pipeline
from neuroflamingo.inference.loaded_model import LoadedModel, open_model
from neuroflamingo.report.model import Report
from neuroflamingo_preprocessing import read_scan
from neuroflamingo_preprocessing.scan import Provenance

pytestmark = pytest.mark.usefixtures("aligned")
BEFORE = Finding(kind="mass", side="left", region="frontal lobe", size_mm=24, signal="low")  # type: ignore[arg-type]
AFTER = BEFORE.model_copy(update={"size_mm": 40.0})


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> LoadedModel:
    return open_model(tiny_model, device="cpu")


@pytest.fixture
def report_with(opened: LoadedModel, head_file: Path, monkeypatch: pytest.MonkeyPatch):
    """A report on two scans whose text is replaced by one's own."""

    def write(text: str, scans: int = 2) -> Report:
        real = pipeline.write_text

        def other(*arguments, **options):
            written = real(*arguments, **options)
            last = len(written.boundaries) - 1
            ends = tuple(round(at * len(text) / last) for at in range(last + 1))
            return replace(written, text=text, boundaries=ends, mirrored=None)

        monkeypatch.setattr(pipeline, "write_text", other)
        scan = read_scan(head_file)
        moved = replace(scan, voxels=np.roll(scan.voxels, 1, axis=0), provenance=Provenance(file="later.nii"))
        return pipeline.write_report([scan, moved][:scans], model=opened, prompt="<image>" * scans)

    return write


def text_of(comparison: Comparison | None) -> str:
    return render_report([AFTER], 3, comparison=comparison).text


def test_changes_are_read_from_the_text(report_with) -> None:
    comparison = Comparison(same_head=True, changes=(change_between(BEFORE, AFTER),))
    report = report_with(text_of(comparison))
    assert report.title == "sub-01_T1w, then later"
    assert report.comparison is not None and report.comparison.same_head
    (change,) = report.comparison.changes
    assert (change.kind, change.size_change_mm) == ("larger", 16.0)
    assert [finding.size_mm for finding in report.findings] == [40.0], "those of the follow-up"
    assert report.sections.comparison and "24" not in report.sections.findings
    page = report.to_html()
    assert page.count('class="slot"') == 18 and "larger by 16 mm" in page


def test_different_heads_and_texts_that_do_not_compare(report_with) -> None:
    different = report_with(text_of(Comparison(same_head=False)))
    assert different.comparison == Comparison(same_head=False)
    assert "different heads; no comparison is made" in different.to_text()
    plain = report_with(text_of(None))
    assert plain.comparison is None and "<b>scan 1</b>" in plain.to_html()


def test_a_comparison_that_disagrees_with_itself_is_told(report_with) -> None:
    text = text_of(Comparison(same_head=True, changes=(change_between(BEFORE, None),)))
    report = report_with(text.replace("COMPARISON:", "COMPARISON: Xyzzy plugh."))
    assert any(words.startswith("the text disagrees with itself: ") for words in report.warnings), (
        "gone, and in FINDINGS"
    )
    assert "not understood in COMPARISON: Xyzzy plugh." in report.warnings


def test_a_report_on_one_scan_compares_nothing(report_with) -> None:
    """Whatever the model writes: it has seen one scan."""
    comparison = Comparison(same_head=True, changes=(change_between(BEFORE, AFTER),))
    report = report_with(text_of(comparison), scans=1)
    assert report.comparison is None and report.title == "sub-01_T1w"


def test_a_follow_ups_findings_are_judged_on_the_follow_up(opened: LoadedModel, report_with, monkeypatch) -> None:
    from neuroflamingo.inference.second_look import SecondLook

    seen = []
    monkeypatch.setattr(SecondLook, "judge", lambda self, encoder, tokens, findings: seen.append(tokens) or ())
    report_with(text_of(Comparison(same_head=True, changes=(change_between(BEFORE, AFTER),))))
    report_with(text_of(None))
    assert len(seen[0]) == 1 and len(seen[1]) == 2 and np.array_equal(seen[0][0], seen[1][1])
