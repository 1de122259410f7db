"""Report texts from files of other people: usual columns, and every fault told in one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuroflamingo.evaluation.report_texts import Columns, Faults, NamedText, read_references, stream_texts
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, NotFoundError, ScanError, UsageError

ROWS = [{"id": "a", "report": "No mass."}, {"id": 2, "report": "Infarct in the left thalamus."}]


NAMELESS = Columns()


def lines(path: Path, rows: list[object], encoding: str = "utf-8") -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
    return path


def predictions(path: Path, columns: Columns = NAMELESS) -> dict[str, NamedText]:
    faults = Faults(path.name)
    found = {one.id: one for one in stream_texts(path, "predictions", columns, faults)}
    faults.check("", "")
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_in_usual_encodings(tmp_path: Path, encoding: str) -> None:
    rows = [*ROWS, {"id": "ü", "report": "Größe 3 mm"}]
    found = read_references(lines(tmp_path / "r.jsonl", rows, encoding))
    assert list(found) == ["a", "2", "ü"] and found["2"].text == "Infarct in the left thalamus."
    assert found["ü"].text == "Größe 3 mm"


def test_latin_1_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'{"id": "a", "text": "No mass."}\n{"id": "b", "text": "Gr\xf6\xdfe"}\n')
    with pytest.raises(ScanError, match=r"(?s)1 fault.*line 2: not UTF-8 text .*save the file as UTF-8"):
        read_references(file)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "b.txt").write_bytes(b"Gr\xf6\xdfe")
    with pytest.raises(ScanError, match=r"b\.txt: not UTF-8 text"):
        read_references(tmp_path / "t")
    (tmp_path / "r.csv").write_bytes(b"id,text\nb,Gr\xf6\xdfe\n")
    with pytest.raises(ScanError, match="UTF-8"):
        read_references(tmp_path / "r.csv")


def test_one_table_may_hold_both(tmp_path: Path) -> None:
    file = tmp_path / "both.csv"
    file.write_text('case,reference,prediction\nx,No mass.,A mass.\n"y","Two\nlines, here",\n')
    assert [one.text for one in read_references(file).values()] == ["No mass.", "Two\nlines, here"]
    assert [one.text for one in predictions(file).values()] == ["A mass.", ""]


def test_findings_and_impression_in_columns_of_their_own(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "r.jsonl", [{"study_uid": "s", "patient_uid": 7, "findings": "Mass.", "impression": "Mass."}]
    )
    one = read_references(file)["s"]
    assert one.text == "FINDINGS: Mass.\nIMPRESSION: Mass." and one.person == "7"


def test_known_findings_are_taken_as_they_are(tmp_path: Path) -> None:
    row = {"id": "a", "findings": [{"kind": "mass", "side": "left"}]}
    one = read_references(lines(tmp_path / "r.jsonl", [row, row | {"id": "b", "findings": []}]))
    assert [str(f.kind) for f in one["a"].findings] == ["mass"] and one["b"].findings == () and one["b"].was_read
    with pytest.raises(ScanError, match=r"(?s)line 1.*known findings.*kind"):
        read_references(lines(tmp_path / "w.jsonl", [row | {"findings": [{"kind": "glioblastoma"}]}]))


def test_a_folder_of_texts_and_our_own_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("a.txt", "\ufeffNo mass."), ("b.report.txt", "A mass."), ("c.TXT", "None."), ("d.json", "{}")):
        (tmp_path / name).write_text(text)
    found = predictions(tmp_path)
    assert {name: one.text for name, one in found.items()} == {"a": "No mass.", "b": "A mass.", "c": "None."}


def test_which_column_is_asked_where_it_is_open(tmp_path: Path) -> None:
    file = lines(tmp_path / "r.jsonl", [{"id": "a", "text": "x", "report": "No mass.", "accession": "k"}])
    with pytest.raises(UsageError, match=r"(?s)several columns.*text, report.*--reference-text text"):
        read_references(file)
    assert read_references(file, Columns("accession", "report"))["k"].text == "No mass."
    with pytest.raises(UsageError, match=r"(?s)no column that holds the texts.*wrong.*seen: id, text, report"):
        predictions(file, Columns(text="wrong"))
    with pytest.raises(UsageError, match=r"(?s)no column that holds the ids.*--prediction-id"):
        predictions(lines(tmp_path / "n.jsonl", [{"key": "a", "text": "x"}]))
    with pytest.raises(UsageError, match=r"(?s)no column that holds the texts.*seen: id, answers"):
        predictions(lines(tmp_path / "n.jsonl", [{"id": "a", "answers": "x"}]))


def test_all_faults_of_a_file_in_one_message(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "r.jsonl", [{"id": "a", "text": "Mass."}, {"id": "a", "text": "Mass."}, {"id": "e", "text": " "}]
    )
    with file.open("a") as stream:
        stream.write('not json\n{"id": true, "text": "x"}\n{"id": "t", "text": 7}\n[]\n')
        stream.write("".join(f'{{"id": "e{at}", "text": ""}}\n' for at in range(30)))
    with pytest.raises(ScanError) as raised:
        read_references(file)
    words = str(raised.value)
    for part in (
        "r.jsonl has 36 faults",
        "the id a is there twice",
        "line 4: not JSON",
        "line 5: no id",
        "text is no text",
    ):
        assert part in words
    assert "line 7: no JSON object" in words and "the report of e is empty" in words and "and 16 more" in words


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("gone.jsonl", None, NotFoundError),
        ("empty.jsonl", "", ScanError),
        ("blank.csv", "id,text\n", ScanError),
        ("scan.nii", "x", ScanError),
        ("long.jsonl", '{"id": "a", "text": "' + "x" * 2**20 + '"}\n', ScanError),
        ("long.csv", "id,text\na," + "x" * 2**20 + "\n", ScanError),
    ],
)
def test_what_is_no_file_of_reports(
    tmp_path: Path, name: str, content: str | None, error: type[NeuroFlamingoError]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error):
        read_references(tmp_path / name)


def test_a_folder_without_texts(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no \.txt file"):
        read_references(tmp_path)


def test_an_id_written_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    assert list(read_references(lines(tmp_path / "r.jsonl", [{"id": " u\u0308 ", "text": "x"}]))) == ["\u00fc"]
