"""`neuroflamingo score`: table, JSON, files, and what stops it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from neuroflamingo.cli import main
from tests.neuroflamingo.evaluation.test_edited_reports import NORMAL, REPORTS

RAW = set("\x1b\x07\x9b\x7f\u202e")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"c{at}", "report": text} for at, (text, _) in enumerate(REPORTS)]
    Path("true.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Path("ours.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("id", "prediction"), *((f"c{at}", text) for at, (_, text) in enumerate(REPORTS))])
    Path("normal").mkdir()
    for at in range(len(REPORTS)):
        Path(f"normal/c{at}.txt").write_text(NORMAL)
    return tmp_path


def test_two_systems_with_all_outputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", "--references", "true.jsonl", "--predictions", "ours.csv", "--against", "normal"]
    assert main([*words, "--csv", "c.csv", "--html", "p.html", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert (
        err == "" and "| full_finding_f1 | 1.000 |" in out and "| mass | 1 | 1 |" in out and "bleu4 (words only)" in out
    )
    assert len(Path("c.csv").read_text().splitlines()) == 5 and "ours.csv" in Path("p.html").read_text()
    assert main([*words, "--csv", "c.csv", "--quiet"]) == 73
    assert "exists" in capsys.readouterr().err
    assert main([*words, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"]["finding_f1"] == 1.0 and found["against"]["findings"]["finding_f1"] == 0.0
    assert found["differences"]["finding_f1"]["value"] == 1.0 and found["differences"]["finding_f1"]["p"] < 0.01
    assert found["about"] == {"references": "true.jsonl", "reports": "ours.csv", "software": found["about"]["software"]}


def test_ids_that_do_not_join(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("normal/c0.txt").rename("normal/c9.txt")
    words = ["score", "--references", "true.jsonl", "--predictions", "normal", "--quiet"]
    assert main(words) == 65
    err = capsys.readouterr().err
    assert "1 id without a reference: c9" in err and "1 id of references without a report: c0" in err
    assert main([*words, "--allow-missing"]) == 0
    assert "1 of 4 reports are empty, 1 of them missing" in capsys.readouterr().out


def test_nothing_steers_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steers = "bad\x1b[31m\x07\x9b2J\x7f\u202eid"
    row = {"id": steers, "text": f"FINDINGS: Mass in the left frontal lobe. {steers}"}
    Path("t.jsonl").write_text(json.dumps(row) + "\n")
    Path("p.jsonl").write_text(json.dumps(row | {"id": steers + "2"}) + "\n")
    assert main(["score", "--references", "t.jsonl", "--predictions", "t.jsonl", "--html", "p.html"]) == 0
    assert main(["score", "--references", "t.jsonl", "--predictions", "p.jsonl"]) == 65
    out, err = capsys.readouterr()
    assert "bad" in err and not (set(out) | set(err)) & RAW
    assert not set(Path("p.html").read_text()) & RAW


def test_reports_are_not_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of reports without a reference only ids are kept: 60 MB of text cost a few."""
    import tracemalloc

    with Path("big.jsonl").open("w") as stream:
        for at in range(600):
            stream.write(json.dumps({"id": f"x{at}", "text": "No mass. " * 11_000}) + "\n")
    tracemalloc.start()
    assert main(["score", "--references", "true.jsonl", "--predictions", "big.jsonl", "--no-words", "--quiet"]) == 65
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 and "600 ids without a reference" in capsys.readouterr().err


def test_labels_of_a_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("labels.txt").write_text(
        "\ufeffCerebral infarction\n\nVentriculomegaly\nTumour = mass\nUnheard of\nLacunar infarct\n"
    )
    words = ["score", "--references", "true.jsonl", "--predictions", "ours.csv", "--labels", "labels.txt", "--quiet"]
    assert main([*words, "--html", "p.html"]) == 0
    out = capsys.readouterr().out
    assert "| Cerebral infarction | 2 | 2 | 1.000 |" in out and "| Lacunar infarct | 0 | 0 |" in out
    assert "not scored: Unheard of" in out and "| Tumour | 1 | 1 |" in out and "Tumour" in Path("p.html").read_text()
    assert main([*words, "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)["asked"]
    assert asked["labels"]["Ventriculomegaly"]["f1"] == 1.0 and asked["unknown"] == ["Unheard of"]
    assert asked["overall"]["micro_f1"] == 1.0
    Path("labels.txt").write_text("Glioma\nGlioma\nX = tumourlet\n")
    assert main(words) == 65
    err = capsys.readouterr().err
    assert "Glioma is there twice" in err and "no finding tumourlet" in err
    Path("labels.txt").write_text("\n")
    assert main(words) == 65
