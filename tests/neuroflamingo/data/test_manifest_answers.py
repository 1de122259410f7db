"""Answers to a manifest: in batches as alone, resumed, with what could not be read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroflamingo.cli import main
from neuroflamingo.data.manifest import Sample, Turn
from neuroflamingo.data.manifest_answers import Answers, AnswerSettings, can_mirror, write_answers
from neuroflamingo.inference import loaded_model as opened_module
from neuroflamingo.inference.loaded_model import LoadedModel
from neuroflamingo.inference.pipeline import write_report
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, OutputError

pytestmark = pytest.mark.slow
HERE = AnswerSettings(processes=1, batch=3, max_new_tokens=40)


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> LoadedModel:
    return opened_module.open_model(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def samples(opened: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Four reports on prepared arrays, a question about one, and one on a file that is no array."""
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    sizes = [axis.size or 1 for axis in opened.scan_spec.axes]
    for at in range(4):
        np.save(folder / f"{at}.npy", rng.normal(size=sizes).astype(np.float32))
    (folder / "broken.npy").write_bytes(b"no array")
    made = [
        Sample(id=f"r{at}", kind="pairs", subject=f"p{at}", scans=(str(folder / f"{at}.npy"),), text="No mass.")
        for at in range(4)
    ]
    turns = (Turn(role="user", text="<image>What is seen in this scan?"), Turn(role="assistant", text="A mass."))
    made.append(Sample(id="q", kind="instructions", scans=(str(folder / "0.npy"),), turns=turns))
    made.append(Sample(id="broken", kind="pairs", scans=(str(folder / "broken.npy"),), text="No mass."))
    return made


def own(opened: LoadedModel, samples: list[Sample], path: Path, settings: AnswerSettings, **more: object) -> Answers:
    return write_answers(opened, samples, {"own": path}, settings, **more)["own"]  # type: ignore[arg-type]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_in_the_order_of_the_manifest(opened: LoadedModel, samples: list[Sample], tmp_path: Path) -> None:
    found = own(opened, samples, tmp_path / "o.jsonl", HERE)
    assert [row["id"] for row in rows(tmp_path / "o.jsonl")] == [one.id for one in samples]
    assert list(found.failed) == ["broken"] and "broken" in found.failed["broken"]
    alone = write_report(samples[1].scans[0], model=opened, pictures=False, max_new_tokens=40)
    assert found.texts["r1"] == alone.text
    one_by_one = own(opened, samples, tmp_path / "p.jsonl", replace(HERE, batch=1))
    assert one_by_one.texts == found.texts


def test_a_run_that_was_ended_goes_on(opened: LoadedModel, samples: list[Sample], tmp_path: Path) -> None:
    path, counted = tmp_path / "o.jsonl", []
    whole = own(opened, samples[:5], path, HERE)
    lines = path.read_text().splitlines(keepends=True)
    marked = json.loads(lines[0]) | {"prediction": "kept"}
    path.write_text(json.dumps(marked) + "\n" + lines[1] + lines[2][:30])
    found = own(opened, samples[:5], path, HERE, progress=lambda _, done, total: counted.append(done))
    assert counted == [5] and found.texts == whole.texts | {"r0": "kept"}
    other = own(opened, samples[:5], path, replace(HERE, max_new_tokens=3))
    assert other.texts["r0"] != "kept" and len(other.texts["r1"]) < len(whole.texts["r1"])
    path.write_text('{"id": "r0", "text": "somebody else\'s"}\n')
    with pytest.raises(OutputError, match="holds something else"):
        own(opened, samples[:5], path, HERE)
    assert own(opened, samples[:5], path, HERE, overwrite=True).texts == whole.texts


def test_controls_change_what_is_shown(opened: LoadedModel, samples: list[Sample], tmp_path: Path) -> None:
    seen = []
    generate = opened.model.generate

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(opened.model, name)

        def generate(self, **inputs: object) -> object:
            seen.append(inputs["scans"])
            return generate(**inputs)  # type: ignore[arg-type]

    spied = replace(opened, model=Spy())  # type: ignore[arg-type]
    outputs = {control: tmp_path / f"{control}.jsonl" for control in ("own", "blank", "mirrored")}
    write_answers(spied, samples[:2], outputs, HERE)  # type: ignore[arg-type]
    plain, blank, mirrored = seen
    assert can_mirror(opened, HERE) and plain.any() and not blank.any() and (mirrored != plain).any()
    assert any((mirrored == plain.flip(axis)).all() for axis in range(2, plain.ndim))
    outputs["blank"].unlink()
    write_answers(spied, samples[:2], outputs, HERE)  # type: ignore[arg-type]
    assert len(seen) == 4 and not seen[3].any(), "only what is missing is written again"


def test_several_processes_write_the_same(opened: LoadedModel, samples: list[Sample], tmp_path: Path) -> None:
    more = samples + [one.model_copy(update={"id": f"{one.id}+"}) for one in samples]
    one = own(opened, more, tmp_path / "a.jsonl", HERE)
    two = own(opened, more, tmp_path / "b.jsonl", replace(HERE, processes=2))
    assert two.texts == one.texts and two.failed == one.failed


def test_a_prompt_that_the_model_was_not_trained_for(
    opened: LoadedModel, samples: list[Sample], tmp_path: Path
) -> None:
    both = samples[0].model_copy(update={"scans": samples[0].scans * 2})
    if opened.prompts is None:
        assert own(opened, [both], tmp_path / "o.jsonl", HERE).texts
        return
    with pytest.raises(ModelError, match="not trained"):
        own(opened, [both], tmp_path / "o.jsonl", HERE)


def test_an_unknown_template(opened: LoadedModel, samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(NeuroFlamingoError, match="template"):
        own(opened, samples, tmp_path / "o.jsonl", replace(HERE, template="none"))


def test_the_verb(tiny_model: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [one.model_dump_json(exclude_defaults=True) + "\n" for one in samples]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    words = ["generate", "--data", str(tmp_path / "in.jsonl"), "--model", str(tiny_model), "--max-new-tokens", "20"]
    assert main([*words, "-o", str(tmp_path / "out.jsonl"), "--processes", "1", "-d", "cpu", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "out.jsonl") and "no answer to broken" in err
    assert [row["id"] for row in rows(tmp_path / "out.jsonl") if "prediction" in row] == ["r0", "r1", "r2", "r3", "q"]


def test_a_manifest_is_scored_and_a_blind_model_found(
    tiny_model: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model writes one report whatever it sees: it is right where the truth is that report, and blind."""
    truth = "FINDINGS: Chronic infarct in the left temporal lobe of 24 mm. No mass."
    changed = [one.model_copy(update={"text": truth}) if one.id == "r0" else one for one in samples[:5]]
    lines = [one.model_dump_json(exclude_defaults=True) + "\n" for one in changed]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    words = ["evaluate", "--data", str(tmp_path / "in.jsonl"), "--model", str(tiny_model)]
    words += ["--log", str(tmp_path / "log"), "--max-new-tokens", "60", "-d", "cpu", "--quiet", "--batch", "4"]
    assert main([*words, "--json", "--csv", str(tmp_path / "c.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"]["finding_recall"] == 0.5 and found["findings"]["hallucination_on_normals"] == 1.0
    assert {"blind", "sides do not follow"} <= set(found["reliance"]["verdicts"])
    assert found["reliance"]["blank"]["same_text"] == found["reliance"]["mirrored"]["same_text"] == 1.0
    assert found["questions"]["exact_match"] == 0.0 and found["questions"]["questions"] == 1.0
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"own.jsonl", "blank.jsonl", "mirrored.jsonl"}
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 6
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "blind: " in out and "| finding_f1 |" in out and "exact match: 0.000" in out


@pytest.mark.parametrize("words", [["--cases", "3"], ["--scans", "t.json"], ["--versions"], ["--keep", "x"]])
def test_options_of_other_evaluations(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data", "in.jsonl", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_token_f1() -> None:
    from neuroflamingo.data.manifest_scores import _token_f1, _tokens

    assert _tokens("The MASS, (left).") == ["the", "mass", "left"]
    assert _token_f1(["a", "b"], ["b", "c"]) == 0.5 and _token_f1([], []) == 1.0 and _token_f1(["a"], []) == 0.0
