"""Examples and pairs of scans that cannot be meant: told by name, before the model is asked."""

from __future__ import annotations

import copy
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from neuroflamingo.inference.loaded_model import LoadedModel, open_model
from neuroflamingo.inference.pipeline import write_report
from neuroflamingo.inference.prompt import MOST_WORDS, ReportPrompt, example_words
from neuroflamingo.model.prompt_forms import TrainedPrompts
from neuroflamingo.report.model import Report
from neuroflamingo.report.report_words import report_words
from neuroflamingo_preprocessing import read_scan
from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.scan import Provenance

pytestmark = pytest.mark.usefixtures("aligned")
ALL = TrainedPrompts(max_examples=3, max_scans=2, forms=("one scan", "few-shot", "follow-up"))
GERMAN = "Unauffälliges Schädel-MRT. Kein Nachweis einer Raumforderung."


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> LoadedModel:
    """The tiny model, with the record of one that was trained for every form."""
    loaded = open_model(tiny_model, device="cpu")
    processor = copy.copy(loaded.processor)
    processor.prompts = ALL
    return replace(loaded, processor=processor)


@pytest.fixture(scope="module")
def report(opened: LoadedModel, head_file: Path) -> Report:
    return write_report(head_file, model=opened, pictures=False)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("TECHNIQUE: T1-weighted MRI.", "is no report: it states and denies no finding"),
        ("FINDINGS:\nIMPRESSION:", "is no report: it states and denies no finding"),
        (GERMAN, "is not understood"),
        ("Infarctus chronique du lobe temporal gauche, 24 mm. Pas de masse.", "is not understood"),
        ("没有占位性病变。", "is not understood"),
        ("The weather is nice today. We went to the beach.", "is not understood"),
    ],
)
def test_an_example_that_is_no_report_is_refused_with_its_words(opened: LoadedModel, words: str, what: str) -> None:
    with pytest.raises(ScanError, match=rf"the report of example 2 \(b.nii.gz\) {what}") as caught:
        write_report("never-read.nii", model=opened, examples=[("a.nii", "No mass."), ("far/b.nii.gz", words)])
    assert caught.value.exit_code == 65 and caught.value.seen == words.strip() and "--force" in str(caught.value)


def test_what_is_not_refused_is_warned_about(opened: LoadedModel, head_file: Path, tiny_model: Path) -> None:
    """Of a model that says nothing about its prompts, the language is not known either."""
    scan = read_scan(head_file)
    unknown = replace(opened, processor=copy.copy(opened.processor))
    unknown.processor.prompts = None
    half = f"No mass. {GERMAN}"
    for model, force in ((opened, True), (unknown, False)):
        given = [(scan, GERMAN), (scan, half)]
        how = {"preparation": Preparation(force=force), "pictures": False, "max_new_tokens": 5}
        warnings = write_report(head_file, model=model, examples=given, **how).warnings
        assert "the report of example 1 is not understood" in warnings
        assert "the report of example 2: 33% of its sentences are understood" in warnings


def test_a_report_of_ten_thousand_words_is_refused() -> None:
    with pytest.raises(ScanError, match="the report of example 1 is too long") as caught:
        ReportPrompt.of(None, ["a.nii"], [(None, "No mass. " * 5000)])
    assert caught.value.expected == f"at most {MOST_WORDS:,} words" and caught.value.seen == "10,000 words"
    assert caught.value.exit_code == 65
    assert len(example_words("No mass. " * (MOST_WORDS // 2), "x").split()) == MOST_WORDS


def test_a_prompt_longer_than_the_language_model_reads(opened: LoadedModel, head_file: Path) -> None:
    config = copy.deepcopy(opened.model.config)
    config.get_text_config().max_position_embeddings = 30
    short = copy.copy(opened.model)
    object.__setattr__(short, "config", config)
    given = [(read_scan(head_file), "No mass. " * 20)]
    with pytest.raises(ModelError, match="too long for the language model") as caught:
        write_report(head_file, model=replace(opened, model=short), examples=given, pictures=False)
    assert caught.value.exit_code == 65 and caught.value.expected == "fewer than 30 tokens"


@pytest.mark.parametrize("form", ["to_text", "to_json"])
def test_of_a_report_of_ours_the_words_are_taken(report: Report, written_report: str, form: str) -> None:
    whole = getattr(report, form)()
    assert "<image>" in whole, "the prompt stands in it"
    assert report_words(whole) == written_report and example_words(whole, "x") == written_report
    stated = report.model_copy(update={"stated_text": "FINDINGS: No mass.", "banner": f"{report.banner} Forced: odd."})
    assert report_words(getattr(stated, form)()) == "FINDINGS: No mass."
    assert ReportPrompt.of(None, ["a"], [("b", whole)]).text == f"<image>{written_report}<|endofchunk|><image>"


def test_a_page_is_no_text(report: Report) -> None:
    with pytest.raises(ScanError, match=r"the report of x is a page, not a text"):
        example_words(report.to_html(), "x")


@pytest.mark.parametrize("text", ["{no json", '{"text": "No mass."}', "No mass.", "[1]", "Research use only. No mass."])
def test_any_other_text_is_taken_as_it_is(text: str) -> None:
    assert report_words(f"\n{text} ") == text


def test_the_prompt_tokens_are_refused_by_the_examples_name() -> None:
    with pytest.raises(UsageError, match=r"example 1 \(a.nii\) cannot be used"):
        ReportPrompt.of(None, ["a"], [("/home/QUARX/a.nii", "No mass. <image>")])


def test_an_examples_scan_that_is_refused_is_named(opened: LoadedModel, head_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    with pytest.raises(ScanError, match=r"the scan of example 1 \(bad.nii\) cannot be used: bad.nii ") as caught:
        write_report(head_file, model=opened, examples=[(tmp_path / "bad.nii", "No mass.")])
    assert caught.value.exit_code == 65


def test_an_examples_scan_of_another_contrast_is_named(opened: LoadedModel, head_file: Path) -> None:
    scan = read_scan(head_file)
    inside = scan.voxels > scan.voxels.max() * 0.15
    dark = replace(scan, voxels=(inside * (scan.voxels.max() - scan.voxels)).astype("float32"))
    with pytest.raises(ScanError, match=r"the scan of example 2 cannot be used: .*does not look T1-weighted"):
        write_report(head_file, model=opened, examples=[(scan, "No mass."), (dark, "No mass.")])


def test_the_same_scan_twice_is_warned_about(opened: LoadedModel, head_file: Path, tmp_path: Path) -> None:
    plain = tmp_path / "again.nii"
    plain.write_bytes(gzip.decompress(head_file.read_bytes()))
    how = {"model": opened, "pictures": False, "max_new_tokens": 5}
    same = "scans 1 and 2 are the same scan: between them nothing can have changed"
    for second in (head_file, plain):
        assert same in write_report([head_file, second], prompt="<image><image>", **how).warnings
    shown = write_report(head_file, examples=[(plain, "No mass.")], **how)
    assert "example 1 is the scan of the report: the model may repeat its report" in shown.warnings
    scan = read_scan(head_file)
    other = replace(scan, voxels=scan.voxels.copy(), provenance=Provenance())
    other.voxels[30:40, 30:40, 30:40] *= 0.5
    warnings = write_report([scan, other], prompt="<image><image>", **how).warnings
    assert not any("same scan" in words for words in warnings)


def test_more_scans_or_examples_than_the_model_was_trained_for(opened: LoadedModel) -> None:
    with pytest.raises(ModelError, match="not trained") as caught:
        write_report(["a", "b", "c"], model=opened, prompt="<image>" * 3)
    assert caught.value.seen == "3 scans and no example" and caught.value.exit_code == 65
    with pytest.raises(ModelError, match="not trained"):
        write_report("a", model=opened, examples=[("b", "No mass.")] * 4)


def test_a_follow_up_before_its_baseline_is_warned_about_without_its_date(
    opened: LoadedModel, head_file: Path, tmp_path: Path
) -> None:
    scans = [tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"]
    for scan, date in zip(scans, ("2003-12-11T13:47:59", "2001-02-03T08:00:00"), strict=True):
        scan.write_bytes(head_file.read_bytes())
        scan.with_name(scan.name.replace("nii.gz", "json")).write_text(json.dumps({"AcquisitionDateTime": date}))
    how = {"model": opened, "prompt": "<image><image>", "pictures": False, "max_new_tokens": 5}
    late = write_report(scans, **how)
    assert "by the dates of acquisition, scan 2 is older than scan 1: give the baseline first" in late.warnings
    for form in (late.to_text(), late.to_json(), late.to_html()):
        assert "2003-12" not in form and "2001-02" not in form
    assert not any("older" in words for words in write_report(scans[::-1], **how).warnings)
