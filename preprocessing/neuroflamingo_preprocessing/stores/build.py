"""`prepare_into_store`: prepare all scans of an input into a store; running it again resumes where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo_preprocessing.bids.sidecars import sidecar_files
from neuroflamingo_preprocessing.errors import NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.files import printable, sha256_of_text, write_text_atomic
from neuroflamingo_preprocessing.formats.dicom.archive import folder_state, is_dicom_input
from neuroflamingo_preprocessing.inputs import Input, find_inputs
from neuroflamingo_preprocessing.read import channel_files
from neuroflamingo_preprocessing.stores.item_index import INDEX, write_index
from neuroflamingo_preprocessing.stores.jobs import Job, JobResult, PrepareJob, Task, work
from neuroflamingo_preprocessing.stores.pool import work_in_pool
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.preparation_options import Preparation
    from neuroflamingo_preprocessing.spec import InputCard
    from neuroflamingo_preprocessing.stores.items import ItemStore


LOG, SEEN = "log.jsonl", "seen.jsonl"
Filters = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class StoreOptions:
    """Options of a run into a store: which scans, and where they are processed.

    Attributes:
        filters, filter_file: see `find_inputs`.
        part: (number from 1, count): process this share of the scans only, for job arrays.
        processes: number of workers; a worker that dies costs only the scan that kills it.
        scheduler: None for a pool on this machine; `local`, or the address of a Dask scheduler.
        verify: read every item in the store, and make damaged ones again.
        progress: called with (stage, done, total).
    """

    filters: Filters | None = None
    filter_file: str | Path | None = None
    part: tuple[int, int] | None = None
    processes: int = 1
    scheduler: str | None = None
    verify: bool = False
    progress: Callable[[str, int, int], None] | None = None

    def find(self, source: str | Path, card: InputCard, notes: list[str]) -> list[Input]:
        """Find the scans of an input that pass the filters, for all parts; see `find_inputs`."""
        return find_inputs(source, card.scan, self.filters, filter_file=self.filter_file, notes=notes)

    def share(self, scans: list[Any]) -> list[Any]:
        """Scans of this part: every n-th from the k-th on.

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
    """Summary of a run, as written to `summary.json`."""

    encoder: str
    scans: int
    done: int = 0
    present: int = 0
    failed: int = 0
    dropped: int = 0
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, result: JobResult) -> None:
        """Count the result of one scan."""
        setattr(self, result.status, getattr(self, result.status) + 1)
        if result.status == "failed":
            self.failures.append({"file": result.file, "error": result.error, "exit_code": result.exit_code})


def prepare_into_store(
    source: str | Path, output: str | Path, card: InputCard, preparation: Preparation, **options: Any
) -> Summary:
    """Prepare all scans of an input as an encoder's card says, each into one item of a `ScanStore`.

    Args:
        source: a scan, a folder, a BIDS dataset or a manifest; see `find_inputs`.
        output: folder of the store; an existing store of the same spec is resumed.
        card: card of the encoder.
        preparation: see `Preparation`.
        options: see `StoreOptions`.

    Raises:
        NeuroFlamingoError: no scans, a faulty manifest, an output that cannot be written, an unreachable scheduler.
    """
    spread, began = checked_options(options), time.perf_counter()
    notes: list[str] = []
    inputs = spread.share(spread.find(source, card, notes))
    preparation.check_tables([one.confounds for one in inputs], card.scan)
    store = ScanStore.create(output, encoder=card.name, card_digest=card.digest, spec_digest=card.scan.digest)
    job = PrepareJob(store.path.absolute(), card, preparation)
    return run_job(store, job, file_tasks(inputs, job), Summary(card.name, len(inputs), notes=notes), spread, began)


def checked_options(options: Mapping[str, Any]) -> StoreOptions:
    """Options of a run, after a check of its scheduler; see `StoreOptions`."""
    from neuroflamingo_preprocessing.stores.dask_cluster import check_scheduler

    spread = StoreOptions(**options)
    check_scheduler(spread.scheduler)
    return spread


def run_job(
    store: ItemStore[Any],
    job: Job,
    scans: Iterable[Task | JobResult],
    summary: Summary,
    spread: StoreOptions,
    began: float,
) -> Summary:
    """Process the scans that are missing in a store, keep the log, and write the summary and the index."""
    store.sweep()
    for note in summary.notes:
        _append(store, LOG, {"status": "note", "note": note})
    known, tasks = known_keys(store), []
    scans = list(scans)
    keys = {known.get(one.fingerprint) for one in scans if isinstance(one, Task)} if spread.part else set(store)
    summary.dropped = len(drop_damaged(store, sorted(filter(None, keys)), thorough=spread.verify))
    for one in scans:
        if isinstance(one, JobResult):
            _note(summary, one, store, spread)
        elif (key := known.get(one.fingerprint)) is not None and key in store:
            _note(summary, JobResult(one.name, "present", key), store, spread)
        else:
            tasks.append(one)
    for task, result in work_all(job, tasks, spread.processes, spread.scheduler):
        if result.key is not None:
            _append(store, SEEN, {"seen": task.fingerprint, "key": result.key})
        _note(summary, result, store, spread)
    store.sweep()  # drafts of workers that died
    if summary.done or summary.dropped or not (store.path / INDEX).is_file():
        write_index(store)
    summary.seconds = round(time.perf_counter() - began, 3)
    name = "summary.json" if spread.part is None else f"summary.{spread.part[0]}-of-{spread.part[1]}.json"
    write_text_atomic(store.path / name, json.dumps(asdict(summary), indent=1) + "\n", overwrite=True)
    return summary


def drop_damaged(store: ItemStore[Any], keys: Iterable[str], *, thorough: bool) -> list[str]:
    """Remove the damaged items among the given keys, with a line in the log for each.

    Args:
        store: the store.
        keys: items to check.
        thorough: read and hash the files, not only compare their sizes.

    Returns:
        Keys of the items removed.
    """
    faults = [(key, fault) for key in keys if key in store and (fault := store.fault(key, thorough=thorough))]
    for key, fault in faults:
        _append(store, LOG, {"status": "dropped", "key": key, "error": fault})
        store.drop(key)
    return [key for key, _ in faults]


def file_tasks(inputs: list[Input], job: Job) -> Iterator[Task | JobResult]:
    """Tasks for the scans of an input; a scan that cannot even be looked at gives a failed result instead."""
    listed: dict[Path, list[str]] = {}
    for one in inputs:
        name = printable(one.name)
        try:
            table = one.confounds and one.confounds.absolute()
            task = Task(replace(one, path=one.path.absolute(), confounds=table), name, "")
            yield replace(task, fingerprint=fingerprint(task, job, listed))
        except NeuroFlamingoError as error:  # no confounds beside it, or two sidecars at one level
            yield JobResult(name, "failed", error=" ".join(str(error).split()), exit_code=error.exit_code)
        except OSError as error:  # a git-annex link whose content was not fetched
            words = f"{name} is missing ({error.strerror}); if it is a git-annex or DataLad link, get its content first"
            yield JobResult(name, "failed", error=words, exit_code=66)


def fingerprint(task: Task, job: Job, listed: dict[Path, list[str]]) -> str:
    """Hash of a file's path, size and modification time, of its sidecars' times, and of the preparation.

    It recognises files that are already in the store without reading them.
    """
    path, preparation = task.path, job.for_scan(task)
    stat = path.stat()
    words: list[Any] = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    words += [folder_state(path)] if path.is_dir() else []
    words += [[other.name, other.stat().st_mtime_ns] for other in channel_files(path, job.card.scan) if other.exists()]
    words += [preparation.series] if preparation.series is not None else []
    if job.card.scan.takes_runs and not is_dicom_input(path):
        words += [[file.name, file.stat().st_mtime_ns] for file in sidecar_files(path, listed)]
    return sha256_of_text(json.dumps([words, job.key("", preparation.changes(path))]))


def known_keys(store: ItemStore[Any]) -> dict[str, str]:
    """Fingerprints of the inputs of earlier runs, with the keys of their items; paths are kept as hashes only."""
    known = {}
    path = store.path / SEEN
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            known[row["seen"]] = str(row["key"])
        except (ValueError, KeyError, TypeError):
            continue  # half a line from a killed process: that input is hashed again
    return known


def _append(store: ItemStore[Any], name: str, row: Mapping[str, Any]) -> None:
    """Append a line to a log; `O_APPEND` keeps the lines of several processes whole.

    Raises:
        OutputError: it cannot be written (exit 74).
    """
    try:
        with (store.path / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise store.not_written(error) from error


def _note(summary: Summary, result: JobResult, store: ItemStore[Any], spread: StoreOptions) -> None:
    summary.add(result)
    if result.status != "present":
        _append(store, LOG, {key: value for key, value in asdict(result).items() if value not in (None, ())})
    if spread.progress:
        spread.progress("scans", summary.done + summary.present + summary.failed, summary.scans)


def work_all(
    job: Job, tasks: Sequence[Task], processes: int = 1, scheduler: str | None = None
) -> Iterator[tuple[Task, JobResult]]:
    """Process tasks here, in a pool or on a cluster, and yield results as they come; the items do not depend on where.

    When a worker dies, the scans that were being processed are tried again, each alone, to find the one that kills it.

    Args:
        job: settings common to all tasks.
        tasks: one for each scan.
        processes: number of workers; 1 without a scheduler works in this process.
        scheduler: None, `local`, or the address of a Dask scheduler.
    """
    if not tasks:
        return iter(())
    if scheduler is not None:
        from neuroflamingo_preprocessing.stores.dask_cluster import work_on_cluster

        return work_on_cluster(job, tasks, scheduler, processes)
    if processes <= 1:
        return ((task, work(job, task)) for task in tasks)
    return work_in_pool(job, tasks, processes)
