"""Manifests: JSON lines, each a sample of one of four kinds. Importing this module loads no torch.

| kind | contents | `text` | `turns` | `scans` |
| --- | --- | --- | --- | --- |
| pairs | scans and their report | the report, without `<image>` | none | one or more |
| interleaved | a document | the document, with one `<image>` per scan | none | one or more |
| instructions | a conversation about scans | none | user and assistant in turn, one `<image>` per scan | one or more |
| text | a conversation without scans | none | user and assistant alternating | none |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from neuroflamingo.findings.vocabulary import Finding
from neuroflamingo.model.tokens import END_OF_CHUNK, IMAGE
from neuroflamingo.recipe.schema import Kind
from neuroflamingo.settings import faults_in_words
from neuroflamingo_preprocessing.errors import ScanError
from neuroflamingo_preprocessing.files import write_bytes_atomic
from neuroflamingo_preprocessing.records import json_lines

STORE = "store:"
"""Prefix of scan names that are keys of items in the recipe's store instead of files."""
SHOWN = 100
"""Number of faults that an error message lists; `neuroflamingo data check` lists all."""


WITH_TURNS = ("instructions", "text")


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Turn(_Row):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    text: str


class Sample(_Row):
    """One line of a manifest.

    Attributes:
        id: unique among all files that are read together; named in messages.
        subject: pseudonym of the person scanned, to detect leaks between splits; named in messages.
        scans: files, relative to the manifest (absolute once read), or `store:KEY`.
        text: the report (pairs) or the document (interleaved).
        turns: the conversation (instructions and text).
        findings: known findings on the scans, by which validation scores generated reports.
        weight: factor for the loss of this sample.
    """

    id: str = Field(min_length=1)
    kind: Kind
    subject: str | None = Field(default=None, min_length=1)
    scans: tuple[str, ...] = Field(default=(), strict=False)
    text: str | None = None
    turns: tuple[Turn, ...] = Field(default=(), strict=False)
    findings: tuple[Finding, ...] | None = Field(default=None, strict=False)
    weight: PositiveFloat = Field(default=1.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> Sample:
        faults = [*_scan_faults(self), *(_conversation_faults(self) if self.kind in WITH_TURNS else _text_faults(self))]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def answers(self) -> tuple[str, ...]:
        """Texts that are learnt: the report, the document from its first scan on, or the assistant's turns."""
        if self.kind in WITH_TURNS:
            return tuple(turn.text for turn in self.turns if turn.role == "assistant")
        text = self.text or ""
        return (text.partition(IMAGE)[2] if self.kind == "interleaved" else text,)


def _scan_faults(sample: Sample) -> Iterator[str]:
    if sample.kind == "text" and sample.scans:
        yield "a sample of the kind text has no scans; the kind instructions has"
    if sample.kind != "text" and not sample.scans:
        yield f"no scans, which the kind {sample.kind} needs"
    if any(not name.removeprefix(STORE).strip() for name in sample.scans):
        yield "a scan without a name"


def _text_faults(sample: Sample) -> Iterator[str]:
    """Errors in the text of pairs and interleaved samples."""
    text = sample.text or ""
    if sample.turns:
        yield f"turns, which the kind {sample.kind} does not have"
    if sample.kind == "pairs":
        if not text.strip():
            yield "the report is empty"
        if IMAGE in text or END_OF_CHUNK in text:
            yield f"the report has {IMAGE} or {END_OF_CHUNK} in it, which are put in later; or is the kind interleaved?"
        return
    yield from _count_faults(text, sample)
    if not text.partition(IMAGE)[2].replace(IMAGE, "").replace(END_OF_CHUNK, "").strip():
        yield f"no text after the first {IMAGE}"


def _conversation_faults(sample: Sample) -> Iterator[str]:
    """Errors in the turns of instructions and text."""
    roles = [turn.role for turn in sample.turns]
    if sample.text is not None:
        yield f"text, which the kind {sample.kind} does not have: it has turns"
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        yield "turns must be of user and assistant, one after the other, the user first and the assistant last"
    if any(not turn.text.strip() for turn in sample.turns):
        yield "a turn is empty"
    if any(IMAGE in turn.text for turn in sample.turns if turn.role == "assistant"):
        yield f"the assistant says {IMAGE}, which belongs into the user's turns"
    if any(END_OF_CHUNK in turn.text for turn in sample.turns):
        yield f"a turn has {END_OF_CHUNK} in it, which is put in later"
    if sample.kind == "instructions" or not sample.scans:
        yield from _count_faults(" ".join(turn.text for turn in sample.turns), sample)


def _count_faults(text: str, sample: Sample) -> Iterator[str]:
    marks = text.count(IMAGE)
    if marks != len(sample.scans):
        yield f"{'more' if marks > len(sample.scans) else 'fewer'} {IMAGE} ({marks}) than scans ({len(sample.scans)})"


@dataclass(frozen=True)
class Fault:
    """Error in a manifest line; `line` is 0 if it concerns the whole file."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.what}" if self.line else f"{self.file}: {self.what}"


def read_manifest(files: Sequence[str | Path], *, check_scans: bool = True) -> list[Sample]:
    """Read all samples of manifests in order, with absolute scan paths.

    Args:
        files: JSONL in UTF-8, at most 1 GiB each; empty lines are skipped.
        check_scans: check that scan files exist.

    Raises:
        NotFoundError: a manifest does not exist (exit 66).
        ScanError: all errors of all lines in one message (exit 65).
    """
    samples, faults = look_through(files, check_scans=check_scans)
    if faults:
        more = f"\n    and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ScanError(
            f"the data have {len(faults)} fault{'s' * (len(faults) > 1)}",
            expected="a sample a line, as docs/data.md and `neuroflamingo data schema` say",
            seen="\n    ".join(map(str, faults[:SHOWN])) + more,
            hint="correct or remove these lines; `neuroflamingo data check` lists all that is wrong",
        )
    return samples


def look_through(files: Sequence[str | Path], *, check_scans: bool = True) -> tuple[list[Sample], list[Fault]]:
    """Usable samples, and the errors of the other lines; see `read_manifest`.

    Raises:
        NotFoundError: a manifest does not exist.
    """
    samples: list[Sample] = []
    faults: list[Fault] = []
    places: dict[str, str] = {}
    for file in map(Path, files):
        found, folder = len(samples) + len(faults), os.path.abspath(file.parent)
        for number, row in json_lines(file, strict=True):
            if isinstance(row, str):
                faults.append(Fault(file.name, number, row))
                continue
            gone = _resolve(row, folder, check=check_scans)
            sample, wrong = sample_of(row)
            wrong += _repeated(row.get("id"), f"line {number} of {file.name}", places) + gone
            if sample and not wrong:
                samples.append(sample)
            faults += [Fault(file.name, number, what) for what in wrong]
        if len(samples) + len(faults) == found:
            faults.append(Fault(file.name, 0, "no samples in it"))
    return samples, faults


def sample_of(row: dict[str, Any]) -> tuple[Sample | None, list[str]]:
    """Validate a row; returns the sample, or its errors in words that reveal nothing of its text."""
    try:
        return Sample.model_validate(row), []
    except ValidationError as error:
        return None, faults_in_words(Sample, error, private=True)


def _repeated(name: Any, here: str, places: dict[str, str]) -> list[str]:
    if not isinstance(name, str):
        return []
    if name in places:
        return [f"the id {name!r} is that of {places[name]} too"]
    places[name] = here
    return []


def write_manifest(samples: Sequence[Sample], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write samples as JSONL, with scan paths relative to the manifest, so that both can be moved together.

    Raises:
        OutputError: the file exists already, or cannot be written.
    """
    folder = os.path.abspath(Path(path).parent)
    lines = []
    for sample in samples:
        row = sample.model_dump(mode="json", exclude_defaults=True)
        if sample.scans:
            row["scans"] = [_relative(name, folder) for name in sample.scans]
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return write_bytes_atomic(path, "".join(lines).encode(), overwrite=overwrite)


def _relative(name: str, folder: str) -> str:
    if name.startswith(STORE):
        return name
    try:
        return Path(os.path.relpath(name, folder)).as_posix()
    except ValueError:  # on another drive
        return Path(name).as_posix()


def manifest_schema() -> dict[str, Any]:
    """JSON schema of a manifest line (draft 2020-12). It cannot count `<image>` tokens or check that files exist."""
    schema = Sample.model_json_schema()
    none, some = {"maxItems": 0}, {"minItems": 1}
    said = {"type": "string", "pattern": r"\S"}
    rules = {
        "pairs": ({"scans": some, "text": said, "turns": none}, ["scans", "text"]),
        "interleaved": (
            {"scans": some, "text": {"type": "string", "pattern": IMAGE}, "turns": none},
            ["scans", "text"],
        ),
        "instructions": ({"scans": some, "text": {"type": "null"}, "turns": {"minItems": 2}}, ["scans", "turns"]),
        "text": ({"scans": none, "text": {"type": "null"}, "turns": {"minItems": 2}}, ["turns"]),
    }
    schema["allOf"] = [
        {"if": {"properties": {"kind": {"const": kind}}}, "then": {"properties": properties, "required": required}}
        for kind, (properties, required) in rules.items()
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "A line of a manifest"}


def _resolve(row: dict[str, Any], folder: str, *, check: bool) -> list[str]:
    """Make file names absolute and report missing ones. Links are not resolved: their names give the format."""
    names = row.get("scans")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    files = {n: os.path.abspath(os.path.join(folder, n)) for n in names if n.strip() and not n.startswith(STORE)}
    row["scans"] = [files.get(name, name) for name in names]
    gone = [_gone(name, path) for name, path in files.items()] if check else []
    return [words for words in gone if words]


def _gone(name: str, path: str) -> str | None:
    """Reason why a scan cannot be read, without its folders, which are often named after the patient."""
    shown = Path(name).name if Path(name).suffix else "one of its scans"
    try:
        if os.path.isdir(path) or os.path.getsize(path):
            return None
    except (OSError, ValueError):
        if os.path.islink(path):
            return f"{shown} is a link to nothing (of git-annex: get it first)"
        return f"there is no file {shown}" + ("; write / between folders" if "\\" in name and os.sep == "/" else "")
    return f"{shown} is empty"
