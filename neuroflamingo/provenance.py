"""Provenance of a report: hashes, versions, settings and timings, in one record that accompanies every report."""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from neuroflamingo_preprocessing.files import printable
from neuroflamingo_preprocessing.formats.dicom.archive import holds_dicom
from neuroflamingo_preprocessing.software import Record, SoftwareRecord, utc_now

SCHEMA_VERSION = "1.0"
INTENDED_USE = "research use only, not for diagnosis; machine-generated, not reviewed"


DICOM, FOLDER = "<DICOM>", "<FOLDER>"
"""Replacements for the names of DICOM inputs, and of folders."""


class InputRecord(Record):
    """One input file: its name without folders, its hashes, and the header values that were used."""

    name: str
    role: Literal["scan", "example scan", "example report"]
    size_bytes: int | None = None
    sha256: str | None = None
    header_sha256: str | None = None
    spacing_mm: tuple[float, ...] = ()
    header: dict[str, str] = Field(default={})


class GeometryEntry(Record):
    """One change of a scan's geometry. Affines are 4 x 4, voxel indices to RAS+ mm."""

    scan: int
    name: str
    reason: str
    interpolation: str | None = None
    before: tuple[tuple[float, ...], ...] | None = None
    after: tuple[tuple[float, ...], ...] | None = None
    shape_before: tuple[int, ...] = ()
    shape_after: tuple[int, ...] = ()


class ModelRecord(Record):
    """The model that wrote the text: every file that was loaded, by SHA-256, and one digest over all of them.

    The digest is that of `sha256sum FILES | sha256sum`, the files in alphabetical order.
    """

    name: str
    files: dict[str, str] = Field(default={})
    digest: str | None = None
    encoder: str | None = None
    encoder_version: str | None = None
    encoder_distribution: str | None = None
    language_model: str | None = None
    parameters: int | None = None


class GenerationRecord(Record):
    """Generation settings. Temperature 0 is greedy decoding, in which the seed has no effect."""

    strategy: Literal["greedy", "sampling"]
    seed: int
    temperature: float
    max_new_tokens: int
    new_tokens: int
    stopped: Literal["end of report", "token limit"]
    prompt: str
    prompt_sha256: str
    examples: int = 0


class DeviceRecord(Record):
    """The device that the model ran on."""

    name: str
    dtype: str
    threads: int | None = None
    deterministic: bool = False


class QualityFlag(Record):
    """One check with its threshold; a failed check asks for the reader's attention but does not stop the report."""

    name: str
    value: float
    threshold: str
    passed: bool


class OutputRecord(Record):
    """One written file."""

    name: str
    sha256: str


class Provenance(Record):
    """Complete record for tracing a report back to its inputs and reproducing it."""

    schema_version: str = SCHEMA_VERSION
    run_uuid: str
    started: str
    finished: str
    command: tuple[str, ...]
    software: SoftwareRecord
    inputs: tuple[InputRecord, ...]
    geometry: tuple[GeometryEntry, ...]
    model: ModelRecord
    generation: GenerationRecord
    device: DeviceRecord
    timing: dict[str, float]
    peak_memory_mb: dict[str, float]
    outputs: tuple[OutputRecord, ...] = ()
    qc: tuple[QualityFlag, ...] = ()
    warnings: tuple[str, ...] = ()
    intended_use: str = INTENDED_USE


class Stopwatch:
    """Time and peak memory of the named stages of a run.

    Peak memory is the process's high-water mark at the end of each stage, so it never falls from stage to stage.
    """

    def __init__(self) -> None:
        self.run_uuid = str(uuid.uuid4())
        self.started = utc_now()
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside, under the name of a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - begin, 4)
            self.peak_mb[name] = peak_memory_mb()


def peak_memory_mb() -> float:
    """Peak resident memory of the process so far, in MB (0 if unknown)."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such counter in the standard library
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024), 1)


def redact(argument: str) -> str:
    """Remove folder names from an argument, since they often contain user names, sites and subject identifiers.

    `SCAN=REPORT` pairs are redacted on both sides; options, prompts and plain names stay unchanged, except for the
    names of DICOM folders, archives and files, which are often named after the patient. Of a folder no name is kept,
    only of a zarr scan.
    """
    argument = printable(argument)
    if "<image>" in argument or "\n" in argument:
        return argument
    return "=".join(_last_part(part) for part in argument.split("="))


def _last_part(text: str) -> str:
    path = Path(text)
    if holds_dicom(path):
        return DICOM
    if not set(text) & {"/", "\\"} and not text.startswith("~"):
        return text
    name = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return FOLDER if _is_folder(text) else f"{FOLDER}/{name}"


def _is_folder(text: str) -> bool:
    """Whether an argument names a folder that is no scan."""
    try:
        return text.endswith(("/", "\\")) or (Path(text).is_dir() and Path(text).suffix != ".zarr")
    except (OSError, ValueError):  # a name that no file can have
        return False


def command_line(arguments: Sequence[str] | None = None) -> tuple[str, ...]:
    """Redacted argument vector that starts with the program's plain name."""
    vector = list(sys.argv if arguments is None else arguments)
    verb, rest = vector[1:2], vector[2:]
    words = (FOLDER if _is_folder(word) and not holds_dicom(Path(word)) else redact(word) for word in rest)
    return (Path(vector[0]).name if vector else "python", *map(redact, verb), *words)
