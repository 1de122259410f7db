"""The whole road in one call: what is written, where it came from, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

import neuroflamingo
from neuroflamingo.inference.loaded_model import LoadedModel, open_model
from neuroflamingo.inference.pipeline import write_report
from neuroflamingo.report.model import Report
from neuroflamingo_preprocessing import read_scan
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from neuroflamingo_preprocessing.files import sha256_of

pytestmark = pytest.mark.usefixtures("aligned")


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> LoadedModel:
    return open_model(tiny_model, device="cpu")


@pytest.fixture
def report(opened: LoadedModel, head_file: Path) -> Report:
    return write_report(head_file, model=opened)


def test_a_scan_becomes_a_report(report: Report, written_report: str) -> None:
    assert report.text == written_report
    assert report.title == "sub-01_T1w"
    assert [(finding.kind, finding.side, finding.size_mm) for finding in report.findings] == [
        ("chronic infarct", "left", 24.0)
    ]
    assert report.parse.coverage == 1.0 and not report.parse.contradictions
    shown = [statement for statement in report.statements if statement.evidence]
    assert len(shown) == 1 and report.text[shown[0].start : shown[0].end] == shown[0].text
    assert {picture.kind for picture in report.pictures} == {"seen", "look", "alignment"}
    assert report.to_html().count("<img ") == len(report.pictures) == 18 + 3 + 3


def test_provenance_is_complete_and_true(report: Report, head_file: Path, tiny_model: Path) -> None:
    provenance = report.provenance
    (scan,) = provenance.inputs
    assert scan.sha256 == sha256_of(head_file) and scan.name == "sub-01_T1w.nii.gz"
    assert scan.header["orientation"] == "LPS" and scan.spacing_mm == (2.0, 2.0, 2.0)
    assert provenance.model.files["model.safetensors"] == sha256_of(tiny_model / "model.safetensors")
    assert provenance.model.encoder == "tiny-t1w-cnn"
    assert provenance.generation.strategy == "greedy" and provenance.generation.stopped == "end of report"
    assert [step.name for step in report.geometry] == [
        "reorientation",
        "brain extraction",
        "affine alignment",
        "resampling",
    ]
    assert {"read and prepare", "encode and generate", "trace and draw"} <= set(provenance.timing)
    assert str(head_file.parent) not in report.to_json()
    assert {flag.name.split(":")[0] for flag in provenance.qc} >= {"alignment", "findings and impression agree"}
    jsonschema.validate(
        json.loads(report.to_json()), json.loads((files("neuroflamingo.report") / "report.schema.json").read_text())
    )


def test_the_same_call_gives_the_same_report(report: Report, opened: LoadedModel, head_file: Path) -> None:
    again = write_report(head_file, model=opened)
    vary = {"provenance", "methods"}
    assert again.model_dump(exclude=vary) == report.model_dump(exclude=vary)
    assert [picture.data for picture in again.pictures] == [picture.data for picture in report.pictures]


def test_several_scans_and_examples_in_one_prompt(opened: LoadedModel, head_file: Path, written_report: str) -> None:
    scan = read_scan(head_file)
    report = write_report(
        [scan, scan], model=opened, prompt="<image><image>", examples=[(scan, written_report)], pictures=False
    )
    roles = [record.role for record in report.provenance.inputs]
    assert roles == ["scan", "scan", "example scan", "example report"]
    assert report.provenance.generation.examples == 1
    assert {step.scan for step in report.geometry} == {0, 1, 2}
    assert all(statement.evidence is None or statement.evidence.scan < 2 for statement in report.statements)


@pytest.mark.parametrize(
    ("scans", "examples", "asked"), [(2, 0, "2 scans and no example"), (1, 1, "1 scan after 1 example")]
)
def test_a_prompt_that_the_model_was_not_trained_for_is_refused_or_forced(
    opened: LoadedModel, head_file: Path, written_report: str, scans: int, examples: int, asked: str
) -> None:
    from neuroflamingo.model.prompt_forms import TrainedPrompts
    from neuroflamingo_preprocessing.preparation_options import Preparation

    trained = copy.copy(opened.processor)
    trained.prompts = TrainedPrompts()
    known = replace(opened, processor=trained)
    scan = read_scan(head_file)
    prompt = "<image>" * scans
    shown = [(scan, written_report)] * examples
    with pytest.raises(ModelError, match="not trained for a prompt like this") as caught:
        write_report(["never-read.nii.gz"] * scans, model=known, prompt=prompt, examples=shown)
    assert caught.value.exit_code == 65 and caught.value.seen == asked
    how = {"prompt": prompt, "examples": shown, "pictures": False}
    report = write_report([scan] * scans, model=known, preparation=Preparation(force=True), **how)
    words = f"Forced: the prompt shows the model {asked}, and it was trained for 1 scan and no example only."
    for form in (report.banner, report.to_text().splitlines()[0], report.to_html(), report.to_json()):
        assert words in form
    assert "Forced" not in write_report([scan] * scans, model=opened, **how).banner, "without a record nothing is known"


@pytest.mark.parametrize(
    ("prompt", "scans"), [("no scan here", 1), ("<image><image>", 1), ("<image>", 2), ("", 1), ("<image>", 0)]
)
def test_wrong_number_of_image_tokens_is_refused_before_any_work(prompt: str, scans: int) -> None:
    with pytest.raises(UsageError, match="<image>") as caught:
        write_report(["never-read.nii.gz"] * scans, model="never-loaded", prompt=prompt)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "  ", "a <image> b", "a<|endofchunk|>"])
def test_examples_that_would_break_the_prompt_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="example"):
        write_report("never-read.nii.gz", model="never-loaded", examples=[("x.nii.gz", text)])


def test_a_cut_text_is_said_to_be_cut(opened: LoadedModel, head_file: Path) -> None:
    report = write_report(head_file, model=opened, max_new_tokens=5, pictures=False)
    assert report.provenance.generation.stopped == "token limit"
    assert report.provenance.generation.new_tokens == 5
    assert any("token limit" in warning for warning in report.warnings)


@pytest.mark.slow
def test_a_report_without_a_word_says_so(opened: LoadedModel, head_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every_token = list(range(opened.model.config.text_config.vocab_size))
    monkeypatch.setattr(opened.model.generation_config, "eos_token_id", every_token)
    report = write_report(head_file, model=opened, pictures=False)
    assert report.text == "" and any("wrote no text" in words for words in report.provenance.warnings)


def test_sampling_follows_the_seed_and_leaves_the_global_state_alone(opened: LoadedModel, head_file: Path) -> None:
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    texts = [
        write_report(head_file, model=opened, temperature=5.0, seed=seed, max_new_tokens=20, pictures=False).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_stages_are_told(opened: LoadedModel, head_file: Path) -> None:
    stages: list[str] = []
    write_report(head_file, model=opened, progress=stages.append, pictures=False)
    assert stages == ["reading and aligning", "writing", "tracing and drawing"]


def test_public_names() -> None:
    assert neuroflamingo.write_report is write_report and neuroflamingo.Report is Report


def test_a_side_that_does_not_swap_in_the_mirrored_head_is_said_to_be_uncertain(report: Report) -> None:
    """The tiny model says "left" whatever it sees."""
    assert report.mirrored_text == report.text
    (assessment,) = report.assessments
    assert assessment.mirror == "stays" and assessment.finding == report.findings[0]
    words = "side uncertain: it does not swap in the mirrored head"
    marked = [statement for statement in report.statements if words in statement.doubts]
    assert [statement.id for statement in marked] == [assessment.statement] and marked[0].section == "findings"
    assert words in report.to_text() and "SIDE UNCERTAIN" in report.to_text() and words in report.to_html()
    assert json.loads(report.to_json())["assessments"][0]["mirror"] == "stays"
    flags = {flag.name: flag.passed for flag in report.provenance.qc}
    assert flags["sides that swap in the mirrored head"] is False


def test_sampled_texts_and_examples_stay_as_they_are(opened: LoadedModel, head_file: Path, written_report: str) -> None:
    sampled = write_report(head_file, model=opened, temperature=0.7, max_new_tokens=20, pictures=False)
    assert sampled.mirrored_text is None and all(one.mirror is None for one in sampled.assessments)
    scan = read_scan(head_file)
    shown = write_report(scan, model=opened, examples=[(scan, written_report)], pictures=False)
    assert shown.text and shown.mirrored_text == shown.text  # it does not look


def test_which_encoders_heads_can_be_mirrored() -> None:
    from neuroflamingo.inference.decode import mirror_axis
    from neuroflamingo_encoders import encoder_card

    spec = encoder_card("tiny-t1w-cnn").scan
    assert mirror_axis(spec) == 1
    assert mirror_axis(spec.model_copy(update={"origin_mm": (-80.0, -112.5, -76.5)})) is None
    assert mirror_axis(spec.model_copy(update={"template": None})) is None
    turned = spec.model_copy(update={"axes": (spec.axes[0], *spec.axes[:0:-1])})
    assert mirror_axis(turned) == 3
    assert mirror_axis(encoder_card("brainlm-13m").scan) is None


@pytest.mark.slow
def test_the_embedded_model_writes_the_same_of_a_head_alone_and_beside_its_mirror_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from neuroflamingo.findings.vocabulary import Finding
    from neuroflamingo.inference import decode
    from neuroflamingo.painting.case import paint_into_head

    opened = open_model("tiny-t1w", device="cpu")
    wanted = Finding(kind="subacute hematoma", side="left", region="frontal lobe", size_mm=34)  # type: ignore[arg-type]
    scan = paint_into_head([wanted])[1]
    both = write_report(scan, model=opened, pictures=False)
    monkeypatch.setattr(decode, "mirror_axis", lambda spec: None)
    alone = write_report(scan, model=opened, pictures=False)
    assert both.text == alone.text and both.findings and alone.mirrored_text is None
    assert [one.mirror for one in both.assessments] == ["swaps"]
    assert both.statements[0].evidence == alone.statements[0].evidence


def test_the_report_says_what_the_model_is(report: Report) -> None:
    card = report.model_card
    assert card is not None and card.trained_on == "not recorded." and len(card.kinds) == 6
    assert card.measured_on is None and any("not measured" in line for line in card.limits)
    embedded = open_model("tiny-t1w", device="cpu").about
    assert "painted" in embedded.trained_on and embedded.measured_on and "painted scans" in embedded.measured_on
    assert all(row.false is not None and row.missed is not None and row.cases for row in embedded.kinds)
    shown = report.model_copy(update={"model_card": embedded})
    for form in (shown.to_html(), shown.to_text(), shown.to_json()):
        assert "painted" in form and "chronic infarct" in form and "docs/limits.md" in form
    infarct = embedded.kinds[0]
    assert f"{100 * (infarct.missed or 0):.0f} %" in shown.to_html()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("{}", "not measured"),
        ("[1, 2]", "not measured"),
        ('{"a": {"by_class": {"mass": {"precision": "x", "recall": 7, "true": null}}}}', "painted findings"),
        (
            '{"a": {"by_class": {"mass": {"precision": 0.5}}}, "real": {"as_it_came": {"scans": 9, "persons": 4,'
            ' "figures": {"known findings found": {"count": 3, "of": 5}}}}}',
            "known findings found: 3 of 5",
        ),
    ],
)
def test_whatever_stands_in_evaluation_json(tmp_path: Path, stored: str, expected: str) -> None:
    from neuroflamingo.inference.model_card import model_card

    (tmp_path / "evaluation.json").write_text(stored)
    card = model_card(tmp_path, {"recipe": {"paint": {"heads": "x", "real_share": 0.5}}})
    assert expected in "\n".join((*card.limits, *card.real)) and "50 %" in card.trained_on


def judged(opened: LoadedModel, head_file: Path, **thresholds: float) -> Report:
    """The tiny model's report, whose one finding has a calibrated probability near 1."""
    from dataclasses import replace

    from neuroflamingo.evaluation.calibration import Calibration, ClassCalibration
    from neuroflamingo.findings.vocabulary import FindingClass
    from neuroflamingo.inference.second_look import SecondLook

    one = ClassCalibration.model_validate({"temperature": 1.0, "shift": -1000.0} | thresholds)
    look = SecondLook(Calibration(classes={FindingClass.INFARCT: one}))
    return write_report(head_file, model=replace(opened, second_look=look), pictures=False)


def test_a_calibrated_probability_is_shown(opened: LoadedModel, head_file: Path, report: Report) -> None:
    shown = judged(opened, head_file)
    assert shown.assessments[0].probability == 1.0 and shown.stated_text is None and shown.findings == report.findings
    assert "probability 100 %" in shown.to_text() and "Probability" in shown.to_html()
    for form in (report.to_text(), report.to_html()):
        assert report.assessments[0].probability is None and "robability" not in form


def test_an_unlikely_finding_is_called_possible(opened: LoadedModel, head_file: Path, written_report: str) -> None:
    shown = judged(opened, head_file, possible_below=1.01)
    assert [one.certainty for one in (*shown.findings, *shown.impression_findings)] == ["possible", "possible"]
    assert shown.text == written_report and shown.stated_text is not None
    words = "Possible: Chronic infarct in the left temporal lobe"
    assert shown.stated_text.count(words) == 2
    assert words in shown.to_text() and words in shown.to_html() and "(possible)" in shown.to_text()


def test_a_finding_that_is_too_unlikely_is_not_stated(
    opened: LoadedModel, head_file: Path, written_report: str
) -> None:
    shown = judged(opened, head_file, withhold_below=1.01, possible_below=1.01)
    assert shown.findings == shown.impression_findings == () and shown.text == written_report
    assert shown.assessments[0].verdict == "withheld" and shown.assessments[0].finding.kind == "chronic infarct"
    assert shown.stated_text is not None and "infarct" not in shown.stated_text
    assert "No mass." in shown.stated_text and "(Not stated: too unlikely.)" in shown.stated_text
    for form in (shown.to_text(), shown.to_html()):
        assert "Chronic infarct in the left temporal lobe" not in form and "oo unlikely" in form.replace(
            "TOO UNLIKELY", "too unlikely"
        )
        assert "chronic infarct, left temporal lobe, 24 mm (probability 100 %)" in form
    names = {flag.name for flag in shown.provenance.qc}
    assert "sides that swap in the mirrored head" not in names, "what is not stated is not checked"


def test_a_head_unlike_those_that_the_model_knows_is_said_to_be_so(opened: LoadedModel, head_file: Path) -> None:
    from dataclasses import replace

    import numpy as np

    from neuroflamingo.evaluation.likeness import Likeness
    from neuroflamingo.inference.second_look import SecondLook

    words = "unlike those that the model was trained on: its findings are unreliable"
    for threshold, unlike in ((1e9, False), (1e-9, True)):
        likeness = Likeness(np.zeros(384), np.eye(384), threshold)
        shown = write_report(head_file, model=replace(opened, second_look=SecondLook(None, likeness)), pictures=False)
        assert shown.likeness is not None and shown.likeness.unlike is unlike and shown.likeness.score > 0
        flags = {flag.name: flag.passed for flag in shown.provenance.qc}
        assert flags["distance from the heads that the model knows"] is not unlike
        for form in (shown.to_html(), shown.to_text().splitlines()[0], json.loads(shown.to_json())["banner"]):
            assert (words in form) is unlike


@pytest.mark.slow
def test_the_records_are_read_from_the_models_folder(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    import numpy as np

    from neuroflamingo.evaluation.likeness import Likeness

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    Likeness(np.zeros(384), np.eye(384), 2.0).save(folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"mass": {"temperature": 2.0, "withhold_below": 0.3}}
    (folder / "config.json").write_text(json.dumps(config | {"training": {"calibration": {"classes": classes}}}))
    look = (opened := open_model(folder, device="cpu")).second_look
    assert look.likeness is not None and look.likeness.threshold == 2.0
    assert look.calibration is not None and look.calibration.classes["mass"].withhold_below == 0.3  # type: ignore[index]
    assert "likeness.safetensors" in opened.record.files
