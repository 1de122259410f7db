"""`prepare_into_store`: every scan of an input to a store of prepared tensors; run again, it does what is missing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuroflamingo.encoder_input import Preparation, prepare_for_encoder
from neuroflamingo.provenance import printable
from neuroflamingo_preprocessing.atomic import write_text_atomic
from neuroflamingo_preprocessing.dicom_files import folder_state, is_dicom_input
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.inputs import Input, find_inputs
from neuroflamingo_preprocessing.scan_store import ScanStore, item_key

if TYPE_CHECKING:
    from neuroflamingo_encoders import EncoderCard

LOG, SEEN = "log.jsonl", "seen.jsonl"
Status = Literal["done", "present", "failed"]


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
    """

    file: str
    status: Status
    key: str | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0


@dataclass
class Summary:
    """What `prepare_into_store` did, as `summary.json` keeps it."""

    encoder: str
    scans: int
    done: int = 0
    present: int = 0
    failed: int = 0
    dropped: int = 0
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, made: Made) -> None:
        """Count one scan."""
        setattr(self, made.status, getattr(self, made.status) + 1)
        if made.status == "failed":
            self.failures.append({"file": made.file, "error": made.error, "exit_code": made.exit_code})


@dataclass(frozen=True)
class _Job:
    """What all scans have in common; sent to each worker once."""

    store: Path
    card: EncoderCard
    how: Preparation

    def for_scan(self, one: Input) -> Preparation:
        return self.how.at(one.repetition_time, one.series)


@dataclass(frozen=True)
class _Task:
    scan: Input
    seen: str

    @property
    def path(self) -> Path:
        return self.scan.path


def prepare_into_store(
    source: str | Path,
    output: str | Path,
    card: EncoderCard,
    how: Preparation,
    *,
    filters: Mapping[str, tuple[str, ...]] | None = None,
    processes: int = 1,
    part: tuple[int, int] | None = None,
    verify: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Summary:
    """Prepare all scans of an input as an encoder's card says, each into one item of a store.

    Args:
        source: a scan, a folder, a BIDS dataset or a manifest; see `find_inputs`.
        output: the store's folder; an existing store for the same input of the encoder is gone on with.
        card: of the encoder.
        how: see `Preparation`.
        filters: see `find_inputs`.
        processes: workers; a worker that dies costs the scans that it alone cannot do.
        part: (number from 1, how many): this share of the scans only, for job arrays.
        verify: read every item that is there, and make those with other bytes again.
        progress: called with (part, done, all).

    Raises:
        NeuroFlamingoError: no scans, a bad manifest, a folder that cannot be written.
    """
    began = time.perf_counter()
    inputs = share_of(find_inputs(source, card.scan, filters), part)
    store = ScanStore.create(output, encoder=card.name, card_digest=card.digest, spec_digest=card.scan.digest)
    store.sweep()
    dropped = drop_damaged(store, thorough=verify)
    summary = Summary(card.name, len(inputs), dropped=len(dropped))
    job = _Job(store.path, card, how)
    known, tasks = _seen_before(store), []
    for one in inputs:
        try:
            task = _task(one, job)
        except OSError as error:  # a link of git-annex whose file was not fetched, say
            name = printable(one.name)
            words = (
                f"{name} is not here ({error.strerror}); if it is a link of git-annex or DataLad, get its file first"
            )
            _note(summary, Made(name, "failed", error=words, exit_code=66), store, progress)
            continue
        key = known.get(task.seen)
        if key is not None and key in store:
            _note(summary, Made(printable(one.name), "present", key), store, progress)
        else:
            tasks.append(task)
    for task, made in _work_all(job, tasks, processes):
        if made.key is not None:
            _append(store.path / SEEN, {"seen": task.seen, "key": made.key})
        _note(summary, made, store, progress)
    summary.seconds = round(time.perf_counter() - began, 3)
    name = "summary.json" if part is None else f"summary.{part[0]}-of-{part[1]}.json"
    write_text_atomic(store.path / name, json.dumps(asdict(summary), indent=1) + "\n", overwrite=True)
    return summary


def share_of(inputs: list[Input], part: tuple[int, int] | None) -> list[Input]:
    """Every n-th scan from the k-th on.

    Raises:
        UsageError: no such part.
    """
    if part is None:
        return inputs
    number, count = part
    if not 1 <= number <= count:
        raise UsageError(
            f"there is no part {number} of {count}", expected=f"--part-id from 1 to {max(count, 1)}", seen=str(number)
        )
    return inputs[number - 1 :: count]


def drop_damaged(store: ScanStore, *, thorough: bool) -> list[str]:
    """Take damaged items out, each with a line in the log; gives their keys."""
    faults = [(key, fault) for key in store if (fault := store.fault(key, thorough=thorough))]
    for key, fault in faults:
        _append(store.path / LOG, {"status": "dropped", "key": key, "error": fault})
        store.drop(key)
    return [key for key, _ in faults]


def _task(one: Input, job: _Job) -> _Task:
    how, stat = job.for_scan(one), one.path.stat()
    words = [str(one.path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino, how.changes(), job.card.scan.digest]
    words += [folder_state(one.path)] if one.path.is_dir() else []
    words += [how.series] if how.series is not None else []
    sidecar = one.path.with_name(one.path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if sidecar.is_file():
        words.append(sidecar.stat().st_mtime_ns)
    seen = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    return _Task(one, seen)


def _seen_before(store: ScanStore) -> dict[str, str]:
    """Files that were hashed before, by path, size and time: no name of a folder is kept, only the hash of it all."""
    known = {}
    path = store.path / SEEN
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            known[row["seen"]] = str(row["key"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed process left half written: that file is hashed again
    return known


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _note(summary: Summary, made: Made, store: ScanStore, progress: Callable[[str, int, int], None] | None) -> None:
    summary.add(made)
    if made.status != "present":
        _append(store.path / LOG, {key: value for key, value in asdict(made).items() if value not in (None, ())})
    if progress:
        progress("scans", summary.done + summary.present + summary.failed, summary.scans)


def _work_all(job: _Job, tasks: Sequence[_Task], processes: int) -> Iterator[tuple[_Task, Made]]:
    """Results as they come. Tasks that were under way when a worker died are tried again, each alone."""
    if processes <= 1:
        for task in tasks:
            yield task, _work(job, task)
        return
    suspects: list[_Task] = []
    rest = list(tasks)
    while rest:
        with _pool(job, processes) as pool:
            under_way: dict[Future[Made], _Task] = {}
            try:
                while rest or under_way:
                    while rest and len(under_way) < 2 * processes:
                        under_way[pool.submit(_work_there, rest[0])] = rest[0]
                        del rest[0]
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        made = future.result()
                        yield under_way.pop(future), made
            except BrokenProcessPool:
                suspects += under_way.values()
    for task in suspects:
        with _pool(job, 1) as pool:
            try:
                yield task, pool.submit(_work_there, task).result()
            except BrokenProcessPool:
                yield task, Made(printable(task.scan.name), "failed", error=LOST, exit_code=75)


LOST = "its worker died, alone with it too: most likely it needs more memory than there is"


_JOB: _Job | None = None
"""Of a worker process."""


def _pool(job: _Job, processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (job,))


def _begin(job: _Job) -> None:
    global _JOB
    _JOB = job
    import torch

    torch.set_num_threads(1)


def _work_there(task: _Task) -> Made:
    assert _JOB is not None
    return _work(_JOB, task)


def _digest(path: Path, modality: str, series: int | None) -> str:
    """The hash of the input's bytes; of a DICOM input those of the series that is meant."""
    if is_dicom_input(path):
        from neuroflamingo_preprocessing.dicom import open_dicom

        with open_dicom(path) as examination:
            return examination.digest("bold" if modality in ("volume4d", "parcels") else "T1w", series)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _work(job: _Job, task: _Task) -> Made:
    """Hash, prepare and store one file, in a worker."""
    began, name, path = time.perf_counter(), printable(task.scan.name), task.path
    try:
        store, how = ScanStore(job.store), job.for_scan(task.scan)
        digest = _digest(path, job.card.scan.modality, how.series)
        key = item_key(digest, job.card.scan.digest, how.changes())
        if key in store:
            return Made(name, "present", key, time.perf_counter() - began)
        windows = list(prepare_for_encoder(path, job.card, how))
        about = {k: v for k, v in windows[0].about.items() if k != "window"}
        about["windows"] = [one.about["window"] for one in windows if "window" in one.about]
        axes = [axis.name for axis in job.card.scan.axes]
        store.put(key, [one.tensor for one in windows], axes, about)
        return Made(name, "done", key, time.perf_counter() - began, tuple(about["warnings"]))
    except NeuroFlamingoError as error:
        words = " ".join(str(error).split())
        return Made(name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=error.exit_code)
    except OSError as error:
        words = f"{name} cannot be read: {error.strerror or error}"
        return Made(name, "failed", seconds=time.perf_counter() - began, error=words, exit_code=74)
