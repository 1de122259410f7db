"""What is done to one scan of a run into a store, wherever that happens: in this process, a pool's, or a cluster's."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuroflamingo_preprocessing.bids.selection import is_run
from neuroflamingo_preprocessing.bids.sidecars import read_sidecar
from neuroflamingo_preprocessing.errors import NeuroFlamingoError
from neuroflamingo_preprocessing.files import sha256_of
from neuroflamingo_preprocessing.formats.dicom.archive import is_dicom_input
from neuroflamingo_preprocessing.formats.dicom.read_dicom import open_dicom
from neuroflamingo_preprocessing.formats.zarr.metadata import fingerprint
from neuroflamingo_preprocessing.preparation import prepare_for_encoder
from neuroflamingo_preprocessing.stores.items import ItemStore, item_key
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.inputs import Input
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import InputCard, ScanSpec

Status = Literal["done", "present", "failed"]


@dataclass(frozen=True)
class JobResult:
    """What became of one scan.

    Attributes:
        file: its name, without the folder.
        status: `done` now, `present` from an earlier run, or `failed`.
        key: its address in the store; None if it failed.
        seconds: spent on it.
        warnings: what was odd but usable.
        error: what was wrong, as the message says it.
        exit_code: of the error.
        cleaning: what was done to a run's frames, see `DenoisingPlan.about`.
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
    """One scan.

    Attributes:
        scan: its file, absolute; for an item of a scan store, the store.
        name: what messages call it.
        seen: hash of all by which it was recognised before its bytes were read.
        item: its key, if it is an item of a scan store.
    """

    scan: Input
    name: str
    seen: str
    item: str | None = None

    @property
    def path(self) -> Path:
        """Of the file, or the store."""
        return self.scan.path


@dataclass(frozen=True)
class Job(ABC):
    """What all scans of a run have in common; sent to each worker once.

    Attributes:
        store: the folder that items go into, absolute.
        card: of the encoder.
        how: see `Preparation`.
    """

    store: Path
    card: InputCard
    how: Preparation

    def for_scan(self, task: Task) -> Preparation:
        """The preparation of one scan."""
        return self.how.at(task.scan.repetition_time, task.scan.series, task.scan.confounds)

    def hashed(self, task: Task, made_of: Mapping[str, Any]) -> Preparation:
        """The same, with what was hashed for the key: a DICOM series of thousands of files is hashed once."""
        return replace(self.for_scan(task), series_sha256=made_of["input_sha256"])

    @abstractmethod
    def opened(self) -> ItemStore[Any]:
        """The store."""

    @abstractmethod
    def key(self, input_sha256: str, changes: Mapping[str, Any]) -> str:
        """The address of the item of an input that is prepared with these changes."""

    def origin(self, task: Task) -> tuple[str, dict[str, Any]]:
        """Hash of the input, and all of its preparation that changes the tensors."""
        how = self.for_scan(task)
        changes = how.changes(task.path) | said_beside(task.path, self.card.scan, how)
        return digest_of(task.path, self.card.scan.modality, how.series), changes

    @abstractmethod
    def make(self, store: Any, key: str, task: Task, made_of: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Make and write the item, which keeps `made_of`; whether it was new, and what it says of itself."""


@dataclass(frozen=True)
class PrepareJob(Job):
    """Scans to prepared tensors."""

    def opened(self) -> ScanStore:
        """Open the scan store."""
        return ScanStore(self.store)

    def key(self, input_sha256: str, changes: Mapping[str, Any]) -> str:
        """The item's key: input, what the encoder asks for, and the user's changes to the preparation."""
        return item_key(input_sha256, self.card.scan.digest, changes)

    def make(self, store: Any, key: str, task: Task, made_of: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Prepare one input and store its tensors."""
        windows = list(prepare_for_encoder(task.path, self.card.scan, self.hashed(task, made_of)))
        about = _common([one.about for one in windows], made_of)
        axes = [axis.name for axis in self.card.scan.axes]
        return store.put(key, [one.tensor for one in windows], axes, about), about


def _common(said: list[Mapping[str, Any]], made_of: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of all windows of a scan, and of each of them."""
    about = {k: v for k, v in said[0].items() if k != "window"}
    about["windows"] = [one["window"] for one in said if "window" in one]
    return about | {"made_of": dict(made_of)}


def said_beside(path: Path, spec: ScanSpec, how: Preparation) -> dict[str, Any]:
    """What a run's sidecars say that changes its tensors: the repetition time, if the user gave none.

    Raises:
        ScanError: sidecars that cannot be read, or two that apply at one level.
    """
    if how.repetition_time is not None or not is_run(spec) or is_dicom_input(path):
        return {}
    said = read_sidecar(path).values.get("RepetitionTime")
    return {} if said is None else {"sidecar_repetition_time": said}


def digest_of(path: Path, modality: str, series: int | None = None) -> str:
    """The hash of the input's bytes: of a DICOM input those of the series that is meant, of zarr those of all files."""
    if not is_dicom_input(path):
        return fingerprint(path)[0] if path.is_dir() else sha256_of(path)

    with open_dicom(path) as examination:
        return examination.digest("bold" if modality in ("volume4d", "parcels") else "T1w", series)


def work(job: Job, task: Task) -> JobResult:
    """Hash, make and store one scan, in whatever process; expected failures are told, not raised."""
    began = time.perf_counter()
    try:
        store = job.opened()
        digest, changes = job.origin(task)
        key = job.key(digest, changes)
        if key in store and store.fault(key) is None:
            return JobResult(task.name, "present", key, time.perf_counter() - began)
        new, about = job.make(store, key, task, {"input_sha256": digest, "how": changes})
        seconds, warnings = time.perf_counter() - began, tuple(about["warnings"])
        return JobResult(
            task.name, "done" if new else "present", key, seconds, warnings, cleaning=about.get("cleaning")
        )
    except NeuroFlamingoError as error:
        words = " ".join(str(error).split())
        return JobResult(
            task.name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=error.exit_code
        )
    except OSError as error:
        words = f"{task.name} cannot be read: {error.strerror or error}"
        return JobResult(task.name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=74)


LOST = "its worker died, alone with it too: most likely it needs more memory than there is"


TRY_AGAIN = 75


def lost(task: Task) -> JobResult:
    """What is said of a scan that kills its worker."""
    return JobResult(task.name, "failed", error=f"{task.name}: {LOST}", exit_code=TRY_AGAIN)


def one_thread() -> None:
    """Workers stand beside each other: one thread each, in libraries that are loaded later too.

    torch is not loaded for this: preparing does without it, and it takes longer than a head.
    """
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"
    threadpool_limits(1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
