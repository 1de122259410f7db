"""`prepare_into_store`, `encode_into_store`: every scan of an input to a store; run again, they do what is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.bids.selection import is_run
from neuroflamingo_preprocessing.bids.sidecars import sidecar_files
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.files import printable, sha256_of_text, write_text_atomic
from neuroflamingo_preprocessing.formats.dicom.archive import folder_state, is_dicom_input
from neuroflamingo_preprocessing.inputs import Input, find_inputs
from neuroflamingo_preprocessing.stores.item_index import INDEX, write_index
from neuroflamingo_preprocessing.stores.jobs import Job, JobResult, PrepareJob, Task, work
from neuroflamingo_preprocessing.stores.pool import _work_in_pool
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import InputCard
    from neuroflamingo_preprocessing.stores.items import ItemStore


LOG, SEEN = "log.jsonl", "seen.jsonl"
Filters = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class StoreOptions:
    """Which scans of an input a run takes, and where they are worked on.

    Attributes:
        filters, filter_file: see `find_inputs`.
        part: (number from 1, how many): this share of the scans only, for job arrays.
        processes: workers; a worker that dies costs the scans that it alone cannot do.
        scheduler: None: a pool on this machine; `local`, or the address of a Dask scheduler.
        verify: read every item that is there, and make those with other bytes again.
        progress: called with (part, done, all).
    """

    filters: Filters | None = None
    filter_file: str | Path | None = None
    part: tuple[int, int] | None = None
    processes: int = 1
    scheduler: str | None = None
    verify: bool = False
    progress: Callable[[str, int, int], None] | None = None

    def find(self, source: str | Path, card: InputCard, notes: list[str]) -> list[Input]:
        """The scans of an input that are wanted, in all parts; see `find_inputs`."""
        return find_inputs(source, card.scan, self.filters, filter_file=self.filter_file, notes=notes)

    def share(self, scans: list[Any]) -> list[Any]:
        """Every n-th scan from the k-th on.

        Raises:
            UsageError: no such part.
        """
        if self.part is None:
            return scans
        number, count = self.part
        if not 1 <= number <= count:
            raise UsageError(
                f"there is no part {number} of {count}",
                expected=f"--part-id from 1 to {max(count, 1)}",
                seen=str(number),
            )
        return scans[number - 1 :: count]


@dataclass
class Summary:
    """What a run did, as `summary.json` keeps it."""

    encoder: str
    scans: int
    done: int = 0
    present: int = 0
    failed: int = 0
    dropped: int = 0
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, made: JobResult) -> None:
        """Count one scan."""
        setattr(self, made.status, getattr(self, made.status) + 1)
        if made.status == "failed":
            self.failures.append({"file": made.file, "error": made.error, "exit_code": made.exit_code})


def prepare_into_store(
    source: str | Path, output: str | Path, card: InputCard, how: Preparation, **options: Any
) -> Summary:
    """Prepare all scans of an input as an encoder's card says, each into one item of a `ScanStore`.

    Args:
        source: a scan, a folder, a BIDS dataset or a manifest; see `find_inputs`.
        output: the store's folder; an existing store for the same input of the encoder is gone on with.
        card: of the encoder.
        how: see `Preparation`.
        options: see `StoreOptions`: which of the scans, and where.

    Raises:
        NeuroFlamingoError: no scans, a bad manifest, a folder that cannot be written, a scheduler that is not there.
    """
    spread, began = _checked(options), time.perf_counter()
    notes: list[str] = []
    inputs = spread.share(spread.find(source, card, notes))
    how.check_tables([one.confounds for one in inputs], card.scan)
    store = ScanStore.create(output, encoder=card.name, card_digest=card.digest, spec_digest=card.scan.digest)
    job = PrepareJob(store.path.absolute(), card, how)
    return _run(store, job, _of_files(inputs, job), Summary(card.name, len(inputs), notes=notes), spread, began)


def _checked(options: Mapping[str, Any]) -> StoreOptions:
    from neuroflamingo_preprocessing.stores.dask_cluster import check_scheduler

    spread = StoreOptions(**options)
    check_scheduler(spread.scheduler)
    return spread


def _run(
    store: ItemStore[Any],
    job: Job,
    scans: Iterable[Task | JobResult],
    summary: Summary,
    spread: StoreOptions,
    began: float,
) -> Summary:
    """Do what is missing, keep the log, and end with the summary and the index."""
    store.sweep()
    known, tasks = seen_before(store), []
    scans = list(scans)
    keys = {known.get(one.seen) for one in scans if isinstance(one, Task)} if spread.part else set(store)
    summary.dropped = len(drop_damaged(store, sorted(filter(None, keys)), thorough=spread.verify))
    for one in scans:
        if isinstance(one, JobResult):
            _note(summary, one, store, spread)
        elif (key := known.get(one.seen)) is not None and key in store:
            _note(summary, JobResult(one.name, "present", key), store, spread)
        else:
            tasks.append(one)
    for task, made in work_all(job, tasks, spread.processes, spread.scheduler):
        if made.key is not None:
            _append(store, SEEN, {"seen": task.seen, "key": made.key})
        _note(summary, made, store, spread)
    store.sweep()  # what workers left that died on the way
    if summary.done or summary.dropped or not (store.path / INDEX).is_file():
        write_index(store)
    summary.seconds = round(time.perf_counter() - began, 3)
    name = "summary.json" if spread.part is None else f"summary.{spread.part[0]}-of-{spread.part[1]}.json"
    write_text_atomic(store.path / name, json.dumps(asdict(summary), indent=1) + "\n", overwrite=True)
    return summary


def drop_damaged(store: ItemStore[Any], keys: Iterable[str], *, thorough: bool) -> list[str]:
    """Take those out that are damaged, each with a line in the log; gives their keys."""
    faults = [(key, fault) for key in keys if key in store and (fault := store.fault(key, thorough=thorough))]
    for key, fault in faults:
        _append(store, LOG, {"status": "dropped", "key": key, "error": fault})
        store.drop(key)
    return [key for key, _ in faults]


def _of_files(inputs: list[Input], job: Job) -> Iterator[Task | JobResult]:
    listed: dict[Path, list[str]] = {}
    for one in inputs:
        name = printable(one.name)
        try:
            table = one.confounds and one.confounds.absolute()
            task = Task(replace(one, path=one.path.absolute(), confounds=table), name, "")
            yield replace(task, seen=seen(task, job, listed))
        except NeuroFlamingoError as error:  # no confounds beside it, or two sidecars at one level, say
            yield JobResult(name, "failed", error=" ".join(str(error).split()), exit_code=error.exit_code)
        except OSError as error:  # a link of git-annex whose file was not fetched, say
            words = (
                f"{name} is not here ({error.strerror}); if it is a link of git-annex or DataLad, get its file first"
            )
            yield JobResult(name, "failed", error=words, exit_code=66)


def seen(task: Task, job: Job, listed: dict[Path, list[str]]) -> str:
    """Hash of a file's place, size and time, of its sidecars' times, and of what would be done to it."""
    path, how = task.path, job.for_scan(task)
    stat = path.stat()
    words: list[Any] = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    words += [folder_state(path)] if path.is_dir() else []
    words += [how.series] if how.series is not None else []
    if is_run(job.card.scan) and not is_dicom_input(path):
        words += [[file.name, file.stat().st_mtime_ns] for file in sidecar_files(path, listed)]
    return sha256_of_text(json.dumps([words, job.key("", how.changes(path))]))


def seen_before(store: ItemStore[Any]) -> dict[str, str]:
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


def _append(store: ItemStore[Any], name: str, row: Mapping[str, Any]) -> None:
    """A line to a log.

    Raises:
        OutputError: it cannot be written (exit 74).
    """
    try:
        with (store.path / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise store.not_written(error) from error


def _note(summary: Summary, made: JobResult, store: ItemStore[Any], spread: StoreOptions) -> None:
    summary.add(made)
    if made.status != "present":
        _append(store, LOG, {key: value for key, value in asdict(made).items() if value not in (None, ())})
    if spread.progress:
        spread.progress("scans", summary.done + summary.present + summary.failed, summary.scans)


def work_all(
    job: Job, tasks: Sequence[Task], processes: int = 1, scheduler: str | None = None
) -> Iterator[tuple[Task, JobResult]]:
    """Results as they come; the same tasks give the same items wherever they are worked on.

    A worker that dies costs its own scans only: those that were under way are tried again, each alone.

    Args:
        job: what all tasks have in common.
        tasks: the scans.
        processes: of the pool, or of the local cluster; 1 without a scheduler works in this process.
        scheduler: None, `local`, or the address of a Dask scheduler.
    """
    if not tasks:
        return iter(())
    if scheduler is not None:
        from neuroflamingo_preprocessing.stores.dask_cluster import work_on_cluster

        return work_on_cluster(job, tasks, scheduler, processes)
    if processes <= 1:
        return ((task, work(job, task)) for task in tasks)
    return _work_in_pool(job, tasks, processes)
