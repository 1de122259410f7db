"""What is done to one scan of a run into a store, wherever that happens: in this process, a pool's, or a cluster's."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from neuroflamingo.encoder_input import Preparation, prepare_for_encoder
from neuroflamingo.encoding import EncoderChoice, tokens_of
from neuroflamingo.provenance import sha256_of_text
from neuroflamingo_preprocessing.bids_choice import is_run
from neuroflamingo_preprocessing.dicom_files import is_dicom_input
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError
from neuroflamingo_preprocessing.inputs import Input
from neuroflamingo_preprocessing.item_store import ItemStore, StoredItem, item_key, sha256_of
from neuroflamingo_preprocessing.scan_store import ScanStore
from neuroflamingo_preprocessing.sidecars import read_sidecar
from neuroflamingo_preprocessing.zarr_metadata import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from neuroflamingo_encoders import BrainEncoder, EncoderCard
    from neuroflamingo_preprocessing.spec import ScanSpec

Status = Literal["done", "present", "failed"]
_ENCODERS: dict[tuple[str, str], BrainEncoder] = {}
"""Of this process: the last one, by digest of its card and identity of its weights."""
_LOADING = Lock()


@dataclass(frozen=True)
class Made:
    """What became of one scan.

    Attributes:
        file: its name, without the folder.
        status: `done` now, `present` from an earlier run, or `failed`.
        key: its address in the store; None if it failed.
        seconds: spent on it.
        warnings: what was odd but usable.
        error: what was wrong, as the message says it.
        exit_code: of the error.
        cleaning: what was done to a run's frames, see `CleaningPlan.about`.
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
    card: EncoderCard
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
        return ScanStore(self.store)

    def key(self, input_sha256: str, changes: Mapping[str, Any]) -> str:
        return item_key(input_sha256, self.card.scan.digest, changes)

    def make(self, store: Any, key: str, task: Task, made_of: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        windows = list(prepare_for_encoder(task.path, self.card, self.hashed(task, made_of)))
        about = _common([one.about for one in windows], made_of)
        axes = [axis.name for axis in self.card.scan.axes]
        return store.put(key, [one.tensor for one in windows], axes, about), about


@dataclass(frozen=True)
class EncodeJob(Job):
    """Scans, or items of a scan store, to tokens.

    Attributes:
        choice: of the encoder.
        weights: identity of its weights and its table: a worker that finds others refuses.
        device, dtype: where it computes, and what it stores.
    """

    choice: EncoderChoice
    weights: str
    device: str
    dtype: str

    def opened(self) -> ItemStore[Any]:
        from neuroflamingo_encoders.token_store import TokenStore

        return TokenStore(self.store)

    def key(self, input_sha256: str, changes: Mapping[str, Any]) -> str:
        return item_key(input_sha256, self.card.digest, {**changes, "weights": self.weights, "dtype": self.dtype})

    def origin(self, task: Task) -> tuple[str, dict[str, Any]]:
        if task.item is None:
            return super().origin(task)
        return _made_of(ScanStore(task.path)[task.item], self.card)

    def encoder(self) -> BrainEncoder:
        """The encoder of this process, loaded once."""
        from neuroflamingo.loading import pick_device

        with _LOADING:
            module = _ENCODERS.get((self.card.digest, self.weights))
            if module is None:
                module, found, _ = load_with_identity(self.choice)
                if found != self.weights:
                    raise ModelError(
                        f"a worker has other weights for '{self.card.name}' than this run",
                        expected=f"weights {self.weights[:12]}",
                        seen=f"weights {found[:12]}",
                        hint="give --weights FILE on a file system that all workers share",
                        exit_code=65,
                    )
            return module.to(pick_device(self.device))

    def make(self, store: Any, key: str, task: Task, made_of: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        from neuroflamingo.loading import pick_device

        encoder, place = self.encoder(), pick_device(self.device)
        windows = [
            tokens_of(encoder, tensor, said, place, self.dtype) for tensor, said in self._prepared(task, made_of)
        ]
        about = _common([one.about for one in windows], made_of)
        return store.put(key, windows, about), about

    def _prepared(
        self, task: Task, made_of: Mapping[str, Any]
    ) -> Iterator[tuple[NDArray[np.float32], Mapping[str, Any]]]:
        """Tensors with what is to be said of them, one after the other."""
        if task.item is None:
            for one in prepare_for_encoder(task.path, self.card, self.hashed(task, made_of)):
                yield one.tensor, one.about
            return
        item = ScanStore(task.path)[task.item]
        windows = item.about.get("windows") or ()
        plain = {k: v for k, v in item.about.items() if k not in ("windows", "made_of")}
        for number in range(item.open().shape[0]):
            yield item.read(number), plain | ({"window": windows[number]} if number < len(windows) else {})


def load_with_identity(choice: EncoderChoice) -> tuple[BrainEncoder, str, dict[str, Any]]:
    """The encoder, a hash of its weights and its table, and where these came from."""
    module, origin = choice.load()
    identity = encoder_identity(module, (origin.get("table") or {}).get("sha256"))
    _ENCODERS.clear()
    _ENCODERS[module.card.digest, identity] = module
    return module, identity, origin


def encoder_identity(encoder: nn.Module, table_sha256: str | None = None) -> str:
    """A hash of an encoder's weights, and of the file of its table if it has one: by it a token store is recognised."""
    from neuroflamingo_encoders.contract import weights_digest

    digest = weights_digest(encoder)
    return sha256_of_text(digest + table_sha256) if table_sha256 else digest


def _made_of(item: StoredItem, card: EncoderCard) -> tuple[str, dict[str, Any]]:
    """Hash of the scan that a prepared item was made of, and how: its own address must come out of them."""
    try:
        digest, changes = str(item.about["made_of"]["input_sha256"]), dict(item.about["made_of"]["how"])
    except (KeyError, TypeError, ValueError):
        digest, changes = "", {}
    if item_key(digest, card.scan.digest, changes) != item.key:
        raise ModelError(
            f"the prepared scan {item.key[:12]} does not say what it was made of",
            expected="hash of the input and options from which its address follows",
            hint="run `neuroflamingo prepare` into a new folder",
            exit_code=65,
        )
    return digest, changes


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
    from neuroflamingo_preprocessing.dicom import open_dicom

    with open_dicom(path) as examination:
        return examination.digest("bold" if modality in ("volume4d", "parcels") else "T1w", series)


def work(job: Job, task: Task) -> Made:
    """Hash, make and store one scan, in whatever process; expected failures are told, not raised."""
    began = time.perf_counter()
    try:
        store = job.opened()
        digest, changes = job.origin(task)
        key = job.key(digest, changes)
        if key in store and store.fault(key) is None:
            return Made(task.name, "present", key, time.perf_counter() - began)
        new, about = job.make(store, key, task, {"input_sha256": digest, "how": changes})
        seconds, warnings = time.perf_counter() - began, tuple(about["warnings"])
        return Made(task.name, "done" if new else "present", key, seconds, warnings, cleaning=about.get("cleaning"))
    except NeuroFlamingoError as error:
        words = " ".join(str(error).split())
        return Made(task.name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=error.exit_code)
    except OSError as error:
        words = f"{task.name} cannot be read: {error.strerror or error}"
        return Made(task.name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=74)
