"""Converters on small files in the shapes that others publish; rows that cannot be used are counted by why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neuroflamingo.data.bids_reports import from_bids
from neuroflamingo.data.importers import from_dolly_alpaca, from_llava, from_medpix_qa
from neuroflamingo.data.manifest import read_manifest
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo_preprocessing.errors import NotFoundError, ScanError
from neuroflamingo_preprocessing.records import records

PAIR = [{"from": "human", "value": f"{IMAGE}\nWhat is it?"}, {"from": "gpt", "value": "A head."}]
CLIN_QA = """image_id,case_id,question,answer,ans_len,mode,split
MPX1_synpic1.png,MPX1, What is seen?,"A mass, with
a line break",4,pre_training,Train
MPX1_synpic2,MPX1,What is seen?,"A mass, with
a line break",4,pre_training,Train
MPX1_synpic2.png,MPX1,How large?,2 cm.,2,alignment,Train
MPX2_synpic3.png,MPX2,What is seen?,No finding.,2,alignment,Test
MPX3_gone.png,MPX3,What is seen?,No finding.,2,alignment,Train
MPX1_synpic1.png,MPX1,,No finding.,2,alignment,Train
MPX1_synpic1.png,MPX1,Why?
,MPX1,Where?,Left.,2,alignment,Train
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("1.jpg", "2.jpg", "MPX1_synpic1.png", "MPX1_synpic2.png", "MPX2_synpic3.png", "a, b.png"):
        (folder / name).write_bytes(b"x")
    return folder


def save(place: Path, rows: Any) -> Path:
    place.write_text(
        "\n".join(map(json.dumps, rows)) if place.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8"
    )
    return place


def names(scans: Sequence[str]) -> list[str]:
    return [Path(name).name for name in scans]


def left_out(found: Any) -> dict[str, int]:
    return {why: len(rows) for why, rows in found.left_out.items()}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_llava(tmp_path: Path, images: Path, ending: str) -> None:
    rows = [
        {"id": "a", "image": "1.jpg", "conversations": [*PAIR, {"from": "human", "value": "Sure?"}, PAIR[1]]},
        {"id": "a", "image": "1.jpg", "conversations": PAIR},  # ids come again in published files
        {
            "id": 7,
            "image": ["1.jpg", "2.jpg"],
            "conversations": [PAIR[0] | {"value": f"A {IMAGE} B {IMAGE}?"}, PAIR[1]],
        },
        {"id": "t", "conversations": [{"from": "human", "value": "Hi"}, PAIR[1]], "model": ""},
        {"id": "med", "image": "2.jpg", "conversatons": PAIR},
        {"id": "comma", "image": "a, b.png", "conversations": PAIR},
        {"id": "gone", "image": "3.jpg", "conversations": PAIR},
        {"id": "none", "image": "1.jpg", "conversations": [PAIR[0] | {"value": "What?"}, PAIR[1]]},
        {"id": "open", "image": "1.jpg", "conversations": PAIR[:1]},
        {"id": "system", "conversations": [{"from": "system", "value": "x"}]},
        {"id": "video", "video": "1.mp4", "conversations": PAIR},
        {"id": "number", "image": 3, "conversations": PAIR},
        {"id": "empty", "conversations": None},
    ]
    found = from_llava(save(tmp_path / f"llava.{ending}", rows), images)
    assert [sample.id for sample in found.samples] == ["a", "a-2", "7", "t", "med", "comma"]
    first, _, two, text, _, comma = found.samples
    assert [turn.role for turn in first.turns] == ["user", "assistant"] * 2 and names(first.scans) == ["1.jpg"]
    assert first.turns[0].text == f"{IMAGE}\nWhat is it?" and first.kind == "instructions" and first.subject is None
    assert names(two.scans) == ["1.jpg", "2.jpg"] and two.turns[0].text == f"A {IMAGE} B {IMAGE}?"
    assert text.kind == "text" and not text.scans and names(comma.scans) == ["a, b.png"]
    assert left_out(found) == {
        "an image is not there": 2,
        f"fewer {IMAGE} (0) than scans (1)": 1,
        "turns must be of user and assistant, one after the other, the user first and the assistant last": 1,
        "conversations that are not of human and gpt": 2,
        f"more {IMAGE} (1) than scans (0)": 1,
    }
    path = found.write(tmp_path / "out.jsonl")
    assert read_manifest([path]) == found.samples
    assert json.loads(path.read_text().splitlines()[0])["scans"] == ["images/1.jpg"]


def test_medpix_questions_of_a_case_are_one_sample_with_several_images(tmp_path: Path, images: Path) -> None:
    (tmp_path / "qa.csv").write_text(CLIN_QA)
    found = from_medpix_qa(tmp_path / "qa.csv", images)
    assert [(s.id, s.subject, names(s.scans)) for s in found.samples] == [
        ("MPX1", "MPX1", ["MPX1_synpic1.png", "MPX1_synpic2.png"]),
        ("MPX1-2", "MPX1", ["MPX1_synpic2.png"]),
        ("MPX2", "MPX2", ["MPX2_synpic3.png"]),
    ]
    assert found.samples[0].turns[0].text == f"{IMAGE}{IMAGE}What is seen?"
    assert found.samples[0].turns[1].text == "A mass, with\na line break"
    assert left_out(found) == {
        "an image is not there": 1,
        "no question or no answer": 1,
        "more or fewer cells than columns": 1,
        "no image is named": 1,
    }
    assert read_manifest([found.write(tmp_path / "out.jsonl")]) == found.samples
    train = from_medpix_qa(tmp_path / "qa.csv", images, split="train", join=False)
    assert [len(s.scans) for s in train.samples] == [1, 1, 1] and {s.subject for s in train.samples} == {"MPX1"}
    assert train.notes == ["1 rows belong to other splits than train"]


@pytest.mark.parametrize("cell", [["1.jpg", "2"], "['1.jpg', '2.jpg']", '["1", "2"]', "1.jpg;2.jpg", "1, 2"])
def test_several_images_in_a_row(tmp_path: Path, images: Path, cell: Any) -> None:
    row = {"image_id": cell, "question": "What?", "answer": "A head."}
    (sample,) = from_medpix_qa(save(tmp_path / "qa.json", [row]), images).samples
    assert names(sample.scans) == ["1.jpg", "2.jpg"] and sample.subject is None and sample.id == "qa-1"


def test_questions_of_no_case_are_not_joined(tmp_path: Path, images: Path) -> None:
    rows = [{"image_id": name, "question": "What?", "answer": "A head."} for name in ("1", "2")]
    found = from_medpix_qa(save(tmp_path / "qa.json", rows), images)
    assert [names(sample.scans) for sample in found.samples] == [["1.jpg"], ["2.jpg"]]


def test_parquet_of_the_datasets_library(tmp_path: Path, images: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png, row = b"\x89PNG\r\n\x1a\n...", {"case_id": "MPX1", "question": "What?", "answer": "A head."}
    cells = [(b"x", "1.jpg"), (png, None), (png, "folder/../../../etc/doe.png"), (b"MZ", "evil.exe"), (None, None)]
    rows = [row | {"image_id": {"bytes": data, "path": path}} for data, path in cells]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "qa.parquet")
    found = from_medpix_qa(tmp_path / "qa.parquet", images)
    assert [names(sample.scans) for sample in found.samples] == [["1.jpg"]]
    why = "an image is in the table only, or is not PNG or JPEG; --extract saves PNG and JPEG"
    assert left_out(found) == {why: 3, "an image is not there": 1}
    before = set(images.iterdir())
    found = from_medpix_qa(tmp_path / "qa.parquet", images, extract=True, join=False)
    (saved,) = set(images.iterdir()) - before
    assert saved.read_bytes() == png and saved.suffix == ".png" and "doe" not in saved.name
    assert [names(sample.scans) for sample in found.samples] == [["1.jpg"], [saved.name], [saved.name]]
    assert left_out(found) == {why: 1, "an image is not there": 1}
    assert from_medpix_qa(tmp_path / "qa.parquet", images, extract=True, join=False).samples == found.samples


def test_dolly_and_alpaca(tmp_path: Path) -> None:
    dolly = [
        {"instruction": "Sum up.", "context": "Long text.", "response": "Short.", "category": "summarization"},
        {"instruction": "Why?", "context": "", "response": "So."},
        {"instruction": "Why?", "context": None, "response": " "},
        {"instruction": f"What is {IMAGE}?", "response": "A tag."},
    ]
    found = from_dolly_alpaca(save(tmp_path / "dolly.jsonl", dolly))
    assert [[turn.text for turn in s.turns] for s in found.samples] == [
        ["Sum up.\n\nLong text.", "Short."],
        ["Why?", "So."],
    ]
    assert [sample.id for sample in found.samples] == ["dolly-1", "dolly-2"], "other than those of another file"
    assert left_out(found) == {"no instruction or no response": 1, f"more {IMAGE} (1) than scans (0)": 1}
    alpaca = [
        {"instruction": "Add.", "input": "1, 2", "output": 3},
        {"instruction": "Stop.", "input": "", "output": "Ok"},
    ]
    found = from_dolly_alpaca(save(tmp_path / "alpaca.json", alpaca))
    assert [[turn.text for turn in s.turns] for s in found.samples] == [["Add.\n\n1, 2", "3"], ["Stop.", "Ok"]]
    assert {s.kind for s in found.samples} == {"text"} and found.as_dict()["samples"] == 2
    lines = "\n".join(map(json.dumps, alpaca))
    (tmp_path / "lines.json").write_text(lines)
    assert len(from_dolly_alpaca(tmp_path / "lines.json").samples) == 2, "JSON lines that are called .json"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Subject 1 with one session and two kinds of image, subject 2 with two sessions, subject 3 without a report."""
    root = tmp_path / "ds"
    for name in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-2_T1w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "dataset_description.json").write_text("{}")
    table = [
        "participant_id\tage\treport",
        "sub-01\t50\tNo finding.",
        "sub-02\t60\tWhich session?",
        "sub-03\t70\tn/a",
        "sub-04\t70\tNobody's.",
        "sub-01\t50\tAnother.",
    ]
    (root / "participants.tsv").write_text("\n".join(table))
    return root


def test_bids_with_its_participants(dataset: Path, tmp_path: Path) -> None:
    found = from_bids(dataset)
    (sample,) = found.samples
    assert (sample.id, sample.subject, sample.text, names(sample.scans)) == (
        "sub-01",
        "sub-01",
        "No finding.",
        ["sub-01_T1w.nii.gz"],
    )
    assert left_out(found) == {
        "no report": 1,
        "a second report of the same session": 1,
        "a report of a subject with several sessions, without session_id": 1,
        "a report without scans": 1,
    }
    assert "3 sessions have scans and no report that can be used" in found.notes
    assert "1 sessions have several T1w images; all are taken" in found.notes
    assert read_manifest([found.write(tmp_path / "pairs.jsonl")]) == found.samples


def test_bids_with_a_table_by_session_findings_and_two_kinds_of_image(dataset: Path, tmp_path: Path) -> None:
    finding = '[{"kind": "mass", "side": "left", "region": "insula", "size_mm": 12}]'
    rows = [
        {"participant_id": "02", "session_id": "ses-a", "impression": "A mass.", "findings": finding},
        {"participant_id": "sub-02", "session_id": "b", "impression": "None.", "findings": "[]"},
        {"participant_id": "sub-01", "session_id": None, "impression": "None.", "findings": None},
        {"participant_id": "sub-03", "session_id": None, "impression": "None.", "findings": "left mass"},
    ]
    table = save(tmp_path / "reports.jsonl", rows)
    found = from_bids(dataset, reports=table, column="impression", suffixes=("FLAIR", "T1w"))
    assert [(s.id, s.subject, names(s.scans)) for s in found.samples] == [
        ("sub-02_ses-a", "sub-02", ["sub-02_ses-a_T1w.nii.gz"]),
        ("sub-02_ses-b", "sub-02", ["sub-02_ses-b_run-1_T1w.nii.gz", "sub-02_ses-b_run-2_T1w.nii.gz"]),
        ("sub-01", "sub-01", ["sub-01_FLAIR.nii.gz", "sub-01_T1w.nii.gz"]),
    ]
    findings = [sample.findings for sample in found.samples]
    assert findings[0] and findings[0][0].size_mm == 12 and findings[1:] == [(), None]
    assert left_out(found) == {"findings that are not JSON": 1}
    only = from_bids(dataset, reports=table, column="impression", filters={"sub": ("02",), "run": ("1",)})
    assert [names(s.scans) for s in only.samples] == [["sub-02_ses-b_run-1_T1w.nii.gz"]]


def test_what_cannot_be_converted_says_what_to_try(dataset: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="--column report") as caught:
        from_bids(dataset, column="reports")
    assert caught.value.exit_code == 65
    with pytest.raises(ScanError, match="images is not a BIDS dataset"):
        from_bids(images)
    with pytest.raises(NotFoundError, match=r"reports\.tsv"):
        from_bids(dataset, reports=tmp_path / "reports.tsv")
    with pytest.raises(NotFoundError, match="there is no image folder nowhere"):
        from_llava(save(tmp_path / "a.json", []), tmp_path / "nowhere")
    with pytest.raises(ScanError, match="no sample is left") as caught:
        from_llava(save(tmp_path / "a.json", [{"id": "a"}]), images).write(tmp_path / "out.jsonl")
    assert "1 left out: conversations that are not of human and gpt (first: row 1)" in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'{"data": [1]}', "a single dict"),
        ("a.json", b'[{"id": 1}', "not JSON"),
        ("a.json", b"\xfa\xfe[\0", "not UTF-8"),
        ("a.csv", b"\xfa\xfea\n", "comma-separated UTF-8 text"),
        ("a.tsv", b'a\tb\n"x\ty\n', "tab-separated UTF-8 text"),
        ("a.parquet", b"PAR1", "a parquet table"),
        ("a.xlsx", b"PK", "is not a supported table"),
    ],
)
def test_files_that_cannot_be_read_as_a_whole(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=words) as caught:
        list(records(tmp_path / name))
    assert caught.value.exit_code == 65 and str(tmp_path) not in str(caught.value)
