"""What a report was made from and by: hashes, versions, settings, timings. One record travels with every report."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from neuroflamingo_preprocessing.dicom_files import holds_dicom

SCHEMA_VERSION = "1.0"
INTENDED_USE = "research use only, not for diagnosis; machine-generated, not reviewed"
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "nibabel", "nilearn", "SimpleITK")


DICOM = "<DICOM>"
"""What stands for the name of a DICOM input."""


class Record(BaseModel):
    """Base of all records: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputRecord(Record):
    """One input file: its name without folders, its hashes, and the header's facts that were used."""

    name: str
    role: Literal["scan", "example scan", "example report"]
    size_bytes: int | None = None
    sha256: str | None = None
    header_sha256: str | None = None
    spacing_mm: tuple[float, ...] = ()
    header: dict[str, str] = {}


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
    """The model that wrote the text: every file by SHA-256."""

    name: str
    files: dict[str, str] = {}
    encoder: str | None = None
    encoder_version: str | None = None
    encoder_distribution: str | None = None
    language_model: str | None = None
    parameters: int | None = None


class GenerationRecord(Record):
    """How the text was chosen. Temperature 0 is greedy, and then the seed has no effect."""

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
    name: str
    dtype: str
    threads: int | None = None
    deterministic: bool = False


class SoftwareRecord(Record):
    name: str = "neuroflamingo"
    version: str
    git_commit: str | None = None
    python: str
    platform: str
    cuda: str | None = None
    libraries: dict[str, str] = {}


class QualityFlag(Record):
    """One check with its threshold; `passed` False asks the reader to look, it does not stop the report."""

    name: str
    value: float
    threshold: str
    passed: bool


class OutputRecord(Record):
    name: str
    sha256: str


class Provenance(Record):
    """Everything needed to trace a report back to its inputs, and to make it again."""

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
    """Seconds and peak memory of the named stages of one run.

    Peak memory is the process's high-water mark at the end of each stage, so it never falls from stage to stage.
    """

    def __init__(self) -> None:
        self.run_uuid = str(uuid.uuid4())
        self.started = utc_now()
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - begin, 4)
            self.peak_mb[name] = peak_memory_mb()


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory_mb() -> float:
    """The process's largest resident size so far, in MB (Linux counts in KiB, macOS in bytes; 0 where unknown)."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such counter in the standard library
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024), 1)


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def printable(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are no text become question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def redact(argument: str) -> str:
    """An argument without folder names: they often hold user names, sites and subject identifiers.

    `SCAN=REPORT` pairs are redacted on both sides; options, prompts and plain names stay as they are, but for the names
    of DICOM folders, archives and files, which are often called after the patient.
    """
    argument = printable(argument)
    if "<image>" in argument or "\n" in argument:
        return argument
    return "=".join(_last_part(part) for part in argument.split("="))


def _last_part(text: str) -> str:
    path = Path(text)
    if holds_dicom(path):
        return DICOM
    if text.startswith("~") or path.is_absolute() or ".." in path.parts:
        return f"<FOLDER>/{path.name}"
    return text


def command_line(arguments: Sequence[str] | None = None) -> tuple[str, ...]:
    """The argument vector with absolute folders replaced by a token, beginning with the program's plain name."""
    vector = list(sys.argv if arguments is None else arguments)
    return (Path(vector[0]).name if vector else "python", *(redact(argument) for argument in vector[1:]))


def software() -> SoftwareRecord:
    """Versions of this package, Python and the libraries that touch numbers."""
    found = {name: installed for name in LIBRARIES if (installed := installed_version(name))}
    torch = sys.modules.get("torch")
    return SoftwareRecord(
        version=installed_version("neuroflamingo") or "not installed",
        git_commit=git_commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        cuda=torch.version.cuda if torch is not None else None,
        libraries=found,
    )


def installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, read without starting git; None for an installed wheel."""
    root = Path(__file__).resolve().parents[1]
    try:
        head = (root / ".git" / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = root / ".git" / head.removeprefix("ref: ")
        if reference.is_file():
            return reference.read_text().strip()
        packed = (root / ".git" / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(head.removeprefix("ref: "))), None)
    except OSError:
        return None
