"""Manifests: what each kind of sample must have, all faults at once, and nothing of a report's text in a message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from neuroflamingo.data.manifest import Sample, Turn, look_through, manifest_schema, read_manifest, write_manifest
from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.model.tokens import IMAGE
from neuroflamingo.recipe.schema import KINDS
from neuroflamingo_preprocessing.errors import NotFoundError, OutputError, ScanError

SECRET = "Mrs Example, born 1950"
DOCUMENT = f"See {IMAGE} x {IMAGE}"
HELLO = [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Hi."}]
TALK = [{"role": "user", "text": f"{IMAGE} What is it?"}, {"role": "assistant", "text": "A mass."}]
GOOD: dict[str, dict[str, Any]] = {
    "pairs": {"id": "p", "kind": "pairs", "subject": "sub-01", "scans": ["a.nii.gz"], "text": "No finding."},
    "interleaved": {
        "id": "i",
        "kind": "interleaved",
        "scans": ["a.nii.gz", "store:b"],
        "text": f"See {IMAGE} x {IMAGE}",
    },
    "instructions": {"id": "q", "kind": "instructions", "scans": ["a.nii.gz"], "turns": TALK},
    "text": {
        "id": "t",
        "kind": "text",
        "turns": [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Hi."}],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    return tmp_path


def save(folder: Path, *rows: Any, name: str = "train.jsonl") -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name


def faults(folder: Path, *rows: Any) -> list[str]:
    return [str(fault) for fault in look_through([save(folder, *rows)])[1]]


def changed(base: str, /, **values: Any) -> dict[str, Any]:
    row = GOOD[base] | values
    return {key: value for key, value in row.items() if value != "gone"}


def test_each_kind_is_read(folder: Path) -> None:
    assert set(GOOD) == set(KINDS)
    samples = read_manifest([save(folder, *GOOD.values())])
    assert [sample.kind for sample in samples] == list(GOOD)
    assert samples[0].scans == (str(folder / "a.nii.gz"),)
    assert samples[1].scans == (str(folder / "a.nii.gz"), "store:b")
    assert samples[2].turns == (Turn(role="user", text=f"{IMAGE} What is it?"), Turn(role="assistant", text="A mass."))
    assert [sample.answers for sample in samples] == [("No finding.",), (f" x {IMAGE}",), ("A mass.",), ("Hi.",)]
    assert samples[0].weight == 1.0


def test_paths_are_relative_to_their_own_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lists").mkdir()
    save(folder, changed("pairs", scans=["../a.nii.gz"]), name="lists/m.jsonl")
    monkeypatch.chdir(folder / "lists")
    (sample,) = read_manifest([Path("m.jsonl")])
    assert os.path.samefile(sample.scans[0], folder / "a.nii.gz") and ".." not in sample.scans[0]


def test_a_byte_order_mark_empty_lines_and_windows_line_ends_are_fine(folder: Path) -> None:
    (folder / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD["text"]).encode() + b"\r\n\r\n")
    assert len(read_manifest([folder / "m.jsonl"])) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (changed("pairs", scans=["b/Doe^Jane/c.nii.gz"]), "there is no file c.nii.gz"),
        (changed("pairs", scans=[str(Path("/Doe^Jane/c.nii.gz").absolute())]), "there is no file c.nii.gz"),
        (changed("pairs", scans=["a.nii.gz", " "]), "a scan without a name"),
        (changed("pairs", scans=["Doe Jane"]), "there is no file one of its scans"),
        (changed("pairs", scans=["empty.nii"]), "empty.nii is empty"),
        (changed("pairs", scans=["link.nii"]), "link.nii is a link to nothing"),
        (changed("pairs", scans=["a\0.nii"]), "there is no file"),
        (changed("pairs", scans=["store:"]), "a scan without a name"),
        (changed("pairs", scans=[]), "no scans, which the kind pairs needs"),
        (changed("pairs", scans="a.nii.gz"), "scans: Input should be a list (seen: str)"),
        (changed("pairs", scans=[3]), "scans.0: Input should be a valid string (seen: 3)"),
        (changed("pairs", text=" \n"), "the report is empty"),
        (changed("pairs", text="gone"), "the report is empty"),
        (changed("pairs", text=f"{IMAGE} {SECRET}"), f"the report has {IMAGE}"),
        (changed("pairs", turns=TALK), "turns, which the kind pairs does not have"),
        (changed("pairs", text=5), "text: Input should be a valid string (seen: 5)"),
        (changed("pairs", weight="1"), "weight: Input should be a valid number (seen: str)"),
        (changed("pairs", weight=-1), "weight: Input should be greater than 0 (seen: -1)"),
        (changed("pairs", id="gone"), "id: not there"),
        (changed("pairs", kind="pair"), "kind: Input should be 'pairs'"),
        (changed("pairs", txet="x"), "txet: unknown key; did you mean text?"),
        (
            changed("pairs", findings=[{"kind": "mass", "sid": "left"}]),
            "findings.0.sid: unknown key; did you mean side",
        ),
        (changed("pairs", findings=[{"kind": "tumor"}]), "findings.0.kind: Input should be 'chronic infarct'"),
        (changed("pairs", findings=[{"kind": "lobar atrophy", "size_mm": 9}]), "lobar atrophy has no size_mm"),
        (changed("interleaved", text=f"{IMAGE} x"), f"fewer {IMAGE} (1) than scans (2)"),
        (changed("interleaved", text=f"{IMAGE}{IMAGE}{IMAGE} x"), f"more {IMAGE} (3) than scans (2)"),
        (changed("interleaved", text=f"x {IMAGE} {IMAGE}"), f"no text after the first {IMAGE}"),
        (changed("instructions", turns=[{"role": "user", "text": "x"}, TALK[1]]), f"fewer {IMAGE} (0) than scans (1)"),
        (changed("instructions", turns=TALK[:1]), "the user first and the assistant last"),
        (changed("instructions", turns="gone"), "the user first and the assistant last"),
        (changed("instructions", turns=[TALK[0], TALK[1] | {"text": " "}]), "a turn is empty"),
        (
            changed("instructions", turns=[HELLO[0], TALK[0] | {"role": "assistant"}]),
            "the assistant says",
        ),
        (
            changed("instructions", turns=[TALK[0], TALK[1] | {"role": "gpt"}]),
            "turns.1.role: Input should be 'user'",
        ),
        (
            changed("instructions", turns=[TALK[0], TALK[1] | {"txt": "x"}]),
            "turns.1.txt: unknown key; did you mean text",
        ),
        (changed("instructions", text="x"), "text, which the kind instructions does not have"),
        (changed("text", id="u", scans=["a.nii.gz"]), "a sample of the kind text has no scans"),
        (changed("text", id="u", turns=TALK), f"more {IMAGE} (1) than scans (0)"),
        (b"\xff\xfe{", "not UTF-8 text (byte 1)"),
        (b'{"id": ', "not JSON (Expecting value, column 7)"),
        (b'{"id": "a", "id": "b"}', "duplicate key 'id'"),
        (b'{"weight": NaN}', "NaN is not a JSON number"),
        (b"[1]", "no JSON object"),
        (b'"a text"', "no JSON object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'"' + b"a" * 2**20 + b'"', "longer than 1,048,576 bytes"),
    ],
)
def test_bad_lines(folder: Path, row: Any, words: str) -> None:
    (folder / "empty.nii").touch()
    (folder / "link.nii").symlink_to(folder / "nowhere.nii")
    found = faults(folder, GOOD["text"], row)
    assert len(found) == 1 and found[0].startswith("train.jsonl, line 2: ") and words in found[0]
    assert SECRET not in found[0] and "Doe" not in found[0]


def test_all_faults_of_all_lines_and_files_in_one_message(folder: Path) -> None:
    first = save(
        folder, GOOD["pairs"], changed("text", id="p"), b"{", changed("pairs", id="x", scans=["b.nii"], text="")
    )
    second = save(folder, GOOD["pairs"], name="more.jsonl")
    (folder / "nothing.jsonl").touch()
    with pytest.raises(ScanError) as caught:
        read_manifest([first, second, folder / "nothing.jsonl", first])
    assert caught.value.exit_code == 65
    assert str(caught.value).count("\n    ") == 11, caught.value
    for words in (
        "the data have 12 faults",
        "train.jsonl, line 2: the id 'p' is that of line 1 of train.jsonl too",
        "train.jsonl, line 3: not JSON",
        "train.jsonl, line 4: the report is empty",
        "train.jsonl, line 4: there is no file b.nii",
        "more.jsonl, line 1: the id 'p' is that of line 1 of train.jsonl too",
        "nothing.jsonl: no samples in it",
        "train.jsonl, line 1: the id 'p' is that of line 1 of train.jsonl too",  # the same file again
    ):
        assert words in str(caught.value)


def test_very_many_faults_are_counted(folder: Path) -> None:
    with pytest.raises(ScanError, match="1000 faults") as caught:
        read_manifest([save(folder, *[b"{"] * 1000)])
    assert "and 900 more" in str(caught.value) and str(caught.value).count("line ") == 100


def test_scans_need_not_be_there_if_they_are_not_looked_for(folder: Path) -> None:
    (sample,) = read_manifest([save(folder, changed("pairs", scans=["b.nii"]))], check_scans=False)
    assert sample.scans == (str(folder / "b.nii"),)


def test_a_manifest_that_is_not_there(folder: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        read_manifest([folder / "no.jsonl"])
    assert caught.value.exit_code == 66 and str(folder) not in str(caught.value)


def test_written_and_read_again(folder: Path) -> None:
    finding = Finding.model_validate({"kind": "mass", "side": "left", "region": "insula", "size_mm": 12})
    row = changed("pairs", id="ä", findings=[finding.model_dump(mode="json")], weight=2.5)
    samples = read_manifest([save(folder, row, *list(GOOD.values())[1:])])
    (folder / "else").mkdir()
    path = write_manifest(samples, folder / "else" / "out.jsonl")
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["scans"] == ["../a.nii.gz"]
    assert read_manifest([path]) == samples
    assert samples[0].findings == (finding,)
    with pytest.raises(OutputError):
        write_manifest(samples, path)
    moved = folder.with_name(folder.name + "-moved")
    folder.rename(moved)
    assert read_manifest([moved / "else" / "out.jsonl"])[0].scans == (str(moved / "a.nii.gz"),)


VALUES = {
    "scans": st.sampled_from([[], ["a"], "a", None, 1]),
    "text": st.sampled_from([None, "", " ", "x", f"{IMAGE} x", f"x {IMAGE}", 1]),
    "turns": st.sampled_from([[], TALK, TALK[:1], [{"role": "gpt", "text": "x"}]]),
    "weight": st.sampled_from([1, 0.5, "1", 0]),
    "findings": st.sampled_from([None, [], [{"kind": "mass"}], [{"kind": "x"}]]),
    "subject": st.sampled_from([None, "s", ""]),
}


SCHEMA = manifest_schema()


@pytest.mark.slow
@given(st.fixed_dictionaries({"id": st.sampled_from(["a", ""]), "kind": st.sampled_from(KINDS)}, optional=VALUES))
def test_the_schema_takes_whatever_the_reader_takes(row: dict[str, Any]) -> None:
    """The other way round it cannot count `<image>` nor see that turns alternate."""
    try:
        Sample.model_validate(row)
    except ValidationError:
        return
    jsonschema.validate(row, SCHEMA)


@pytest.mark.parametrize(
    "row",
    [
        changed("pairs", text="gone"),
        changed("pairs", text=" "),
        changed("pairs", scans=[]),
        changed("pairs", turns=TALK),
        changed("interleaved", text="x"),
        changed("instructions", scans="gone"),
        changed("instructions", turns=[]),
        changed("text", scans=["a"]),
        changed("text", txt="x"),
        changed("text", weight=0),
    ],
)
def test_the_schema_refuses(row: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for good in GOOD.values():
        jsonschema.validate(good, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(row, SCHEMA)
