"""`Job`: process one scan of a run into a store, in this process, in a pool or on a cluster."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuroflamingo_preprocessing.bids.sidecars import read_sidecar
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.files import sha256_of, sha256_of_text
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input
from neuroflamingo_preprocessing.formats.dicom.read_dicom import open_dicom
from neuroflamingo_preprocessing.formats.zarr.metadata import fingerprint
from neuroflamingo_preprocessing.inputs import Input
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.read import channel_files
from neuroflamingo_preprocessing.stores.items import ItemStore, item_key
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.inputs import Input
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import InputCard, ScanSpec

Status = Literal["done", "present", "failed"]


@dataclass(frozen=True)
class JobResult:
    """Result of one scan.

    Attributes:
        file: name of the scan, without its folder.
        status: `done` now, `present` from an earlier run, or `failed`.
        key: key of the item in the store; None if it failed.
        seconds: time spent on it.
        warnings: oddities that do not make the scan unusable.
        error: message of the error.
        exit_code: exit code of the error.
        cleaning: denoising of a run, see `DenoisingPlan.record`.
    """

    file: str
    status: Status
    key: str | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0
    cleaning: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """One scan to process.

    Attributes:
        scan: file of the scan, absolute; for an item of a scan store, the store.
        name: name in messages.
        fingerprint: hash by which an unchanged input is recognised without reading its bytes.
        item: key of the item, for an item of a scan store.
    """

    scan: Input
    name: str
    fingerprint: str
    item: str | None = None

    @property
    def path(self) -> Path:
        """Path of the file or the store."""
        return self.scan.path


@dataclass(frozen=True)
class Job(ABC):
    """Settings common to all scans of a run; sent to each worker once.

    Attributes:
        store: folder of the store, absolute.
        card: card of the encoder.
        preparation: see `Preparation`.
    """

    store: Path
    card: InputCard
    preparation: Preparation

    def for_scan(self, task: Task) -> Preparation:
        """Preparation of one scan."""
        return self.preparation.at(task.scan.repetition_time, task.scan.series, task.scan.confounds)

    def with_series_hash(self, task: Task, made_of: Mapping[str, Any]) -> Preparation:
        """Preparation with the hash already taken for the key: a DICOM series of thousands of files is hashed once."""
        return replace(self.for_scan(task), series_sha256=made_of["input_sha256"])

    @abstractmethod
    def open_store(self) -> ItemStore[Any]:
        """Open the store."""

    @abstractmethod
    def key(self, input_sha256: str, changes: Mapping[str, Any]) -> str:
        """Key of the item for an input and the options that change its tensors."""

    def origin(self, task: Task) -> tuple[str, dict[str, Any]]:
        """Hash of the input, and the options of its preparation that change the tensors."""
        preparation = self.for_scan(task)
        changes = preparation.changes(task.path) | sidecar_changes(task.path, self.card.scan, preparation)
        return input_digest(task.path, self.card.scan, preparation.series), changes

    @abstractmethod
    def make(self, store: Any, key: str, task: Task, made_of: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Make and write the item, with `made_of` in its metadata; gives whether it was new, and the metadata."""


@dataclass(frozen=True)
class PrepareJob(Job):
    """Preparation of scans into a scan store."""

    def open_store(self) -> ScanStore:
        """Open the scan store."""
        return ScanStore(self.store)

    def key(self, input_sha256: str, changes: Mapping[str, Any]) -> str:
        """The item's key: input, what the encoder asks for, and the user's changes to the preparation."""
        return item_key(input_sha256, self.card.scan.digest, changes)

    def make(self, store: Any, key: str, task: Task, made_of: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Prepare one input and store its tensors."""
        windows = prepare(task.path, self.card.scan, self.with_series_hash(task, made_of)).windows
        metadata = joint_record([one.metadata for one in windows], made_of)
        axes = [axis.name for axis in self.card.scan.axes]
        return store.put(key, [one.tensor for one in windows], axes, metadata), metadata


def joint_record(records: list[Mapping[str, Any]], made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of an item: those that all windows of a scan share, and the position of each window."""
    metadata = {k: v for k, v in records[0].items() if k != "window"}
    metadata["windows"] = [record["window"] for record in records if "window" in record]
    return metadata | {"made_of": dict(made_of)}


def sidecar_changes(path: Path, spec: ScanSpec, preparation: Preparation) -> dict[str, Any]:
    """Part of a run's sidecars that changes its tensors: the repetition time, if the user gave none.

    Raises:
        ScanError: sidecars that cannot be read, or two that apply at one level.
    """
    if preparation.repetition_time is not None or not spec.takes_runs or is_dicom_input(path):
        return {}
    seconds = read_sidecar(path).values.get("RepetitionTime")
    return {} if seconds is None else {"sidecar_repetition_time": seconds}


def input_digest(path: Path, spec: ScanSpec, series: int | None = None) -> str:
    """SHA-256 of an input: of the file, of the chosen series for DICOM, of all files for zarr and several channels."""
    if not is_dicom_input(path):
        digest = _file_digest(path)
        further = [_file_digest(other) for other in channel_files(path, spec) if other.exists()]
        return sha256_of_text(" ".join([digest, *further])) if further else digest

    with open_dicom(path) as examination:
        return examination.digest("bold" if spec.takes_runs else "T1w", series)


def _file_digest(path: Path) -> str:
    return fingerprint(path)[0] if path.is_dir() else sha256_of(path)


def work(job: Job, task: Task) -> JobResult:
    """Process one scan in any process: hash, prepare, store. Expected errors give a failed result, not an exception."""
    began = time.perf_counter()
    try:
        store = job.open_store()
        digest, changes = job.origin(task)
        key = job.key(digest, changes)
        if key in store and store.fault(key) is None:
            return JobResult(task.name, "present", key, time.perf_counter() - began)
        new, metadata = job.make(store, key, task, {"input_sha256": digest, "how": changes})
        seconds, warnings = time.perf_counter() - began, tuple(metadata["warnings"])
        return JobResult(
            task.name, "done" if new else "present", key, seconds, warnings, cleaning=metadata.get("cleaning")
        )
    except NeuroFlamingoError as error:
        words = " ".join(str(error).split())
        return JobResult(
            task.name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=error.exit_code
        )
    except OSError as error:
        words = f"{task.name} cannot be read: {error.strerror or error}"
        return JobResult(task.name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=74)


LOST = "its worker died, also when it was tried alone: most likely it needs more memory than there is"


TRY_AGAIN = 75


def lost_result(task: Task) -> JobResult:
    """Failed result of a scan that kills its worker."""
    return JobResult(task.name, "failed", error=f"{task.name}: {LOST}", exit_code=TRY_AGAIN)


def use_one_thread() -> None:
    """Limit this worker to one thread, also in libraries that are loaded later: workers share the cores.

    torch is limited only if it is loaded already: importing it takes longer than preparing a scan.
    """
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"
    threadpool_limits(1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
