"""`neuroflamingo data`: exit codes, what is printed, and the examples of docs/data.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from neuroflamingo.cli import main
from neuroflamingo.data.manifest import look_through, manifest_schema, read_manifest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scans and a manifest of them, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii.gz", "b.nii.gz"):
        Path(name).write_bytes(b"x")
    save("train.jsonl", row("a"), row("b"), row("b", id="again"), row("b", id="short", text="None."))
    save("validation.jsonl", row("b", id="c", subject="sub-c", scans=["store:c"], findings=[]))
    return tmp_path


def row(name: str, **values: Any) -> dict[str, Any]:
    pair = {"id": name, "kind": "pairs", "subject": f"sub-{name}", "scans": [f"{name}.nii.gz"], "text": "No finding."}
    return pair | values


def save(name: str, *rows: dict[str, Any]) -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)))


def test_check_says_what_there_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "check", "train.jsonl", "--validation", "validation.jsonl", "--min-answer-words", "2"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "training: 4 samples (4 pairs), 2 scans of 2 subjects, 0 with findings",
        "validation: 1 samples (1 pairs), 1 scans of 1 subjects, 1 with findings",
        "the filters drop 1: short answers",
        "the filters drop 1: duplicates",
        "these data can be used",
    ]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["usable"] and told["splits"]["validation"]["subjects"] == 1
    assert told["dropped"] == {"short answers": 1, "duplicates": 1}


def test_check_lists_faults_and_leaks_and_leaves_with_65(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save("bad.jsonl", row("gone"), row("b", id="x", text=""))
    save("shared.jsonl", row("a", id="y"), row("b", id="z", subject=None))
    assert main(["data", "check", "train.jsonl", "bad.jsonl", "--validation", "shared.jsonl"]) == 65
    told = capsys.readouterr().out
    for words in (
        "in both splits: subject sub-a",
        "in both splits: a scan of the sample z",
        "1 samples have scans and no subject",
        "fault: bad.jsonl, line 1: there is no file gone.nii.gz",
        "fault: bad.jsonl, line 2: the report is empty",
        "these data cannot be used as they are",
    ):
        assert words in told
    assert main(["data", "check", "train.jsonl", "bad.jsonl", "--no-scans", "--json"]) == 65
    assert [fault["line"] for fault in json.loads(capsys.readouterr().out)["faults"]] == [2]
    assert main(["data", "check", "no.jsonl"]) == 66


def test_schema_is_that_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == manifest_schema()


def test_converters_write_manifests_and_say_what_they_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("llava.json").write_text(json.dumps([{"id": "1", "image": "a.nii.gz", "conversations": TALK}, {"id": "2"}]))
    Path("qa.csv").write_text("image_id,case_id,question,answer,split\na,M1,Why?,So.,Train\nb,M1,Why?,So.,Train\n")
    Path("dolly.json").write_text(json.dumps([{"instruction": "Why?", "response": "So."}]))
    bids = Path("ds/sub-01/anat/sub-01_T1w.nii.gz")
    bids.parent.mkdir(parents=True)
    bids.write_bytes(b"x")
    Path("ds/dataset_description.json").write_text("{}")
    Path("ds/participants.tsv").write_text("participant_id\treport\nsub-01\tNo finding.\n")
    for words, kind in (
        (["from-llava", "llava.json", "--images", "."], "instructions"),
        (["from-medpix-qa", "qa.csv", "--images", ".", "--split", "Train"], "instructions"),
        (["from-dolly-alpaca", "dolly.json"], "text"),
        (["from-bids", "ds", "--participant-label", "01"], "pairs"),
    ):
        output = f"{words[0]}.jsonl"
        assert main(["data", *words, "-o", output]) == 0
        assert capsys.readouterr().out.splitlines()[:1] == [output]
        assert [sample.kind for sample in read_manifest([output])] == [kind]
        assert main(["data", *words, "-o", output]) == 73, "an output that exists is not replaced"
        assert main(["data", *words, "-o", output, "--overwrite", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["samples"] == 1 and told["kinds"] == {kind: 1}
    assert main(["data", "from-llava", "llava.json", "--images", ".", "-o", "from-llava.jsonl", "--overwrite"]) == 0
    assert "1 left out: conversations that are not of human and gpt (first: row 2)" in capsys.readouterr().out
    assert main(["data", "from-dolly-alpaca", "no.json", "-o", "x.jsonl"]) == 66
    assert main(["data", "from-dolly-alpaca", "no.json", "-o", output]) == 73, "refused before any work"
    assert main(["data", "from-dolly-alpaca", "llava.json", "-o", "x.jsonl"]) == 65
    assert "no instruction or no response" in capsys.readouterr().err and not Path("x.jsonl").exists()


TALK = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A head."}]


def test_reading_manifests_loads_no_torch() -> None:
    code = "import sys, neuroflamingo.data.importers, neuroflamingo.data.check_manifest; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_rows_of_the_page_are_samples(tmp_path: Path) -> None:
    lines = [line for block in blocks("json") for line in block.splitlines()]
    (tmp_path / "page.jsonl").write_text("\n".join(lines), encoding="utf-8")
    samples, faults = look_through([tmp_path / "page.jsonl"], check_scans=False)
    assert not faults and {sample.kind for sample in samples} == {"pairs", "interleaved", "instructions", "text"}
    for line in lines:
        jsonschema.validate(json.loads(line), manifest_schema())


def test_the_code_of_the_page_runs(place: Path) -> None:
    for block in blocks("python"):
        exec(compile(block, "docs/data.md", "exec"), {})
    assert len(read_manifest(["made.jsonl"])) == 2
