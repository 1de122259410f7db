"""`prepare_into_store`, `encode_into_store`: every scan of an input to a store; run again, they do what is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.encoder_input import Preparation
from neuroflamingo.provenance import printable, sha256_of_text
from neuroflamingo.store_jobs import EncodeJob, Job, Made, PrepareJob, Task, load_with_identity
from neuroflamingo.store_workers import work_all
from neuroflamingo_preprocessing.atomic import write_text_atomic
from neuroflamingo_preprocessing.bids_choice import is_run
from neuroflamingo_preprocessing.bids_filters import wanted_labels
from neuroflamingo_preprocessing.dicom_files import folder_state, is_dicom_input
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, NotFoundError, UsageError
from neuroflamingo_preprocessing.inputs import Input, entities_of, find_inputs
from neuroflamingo_preprocessing.item_store import ItemStore
from neuroflamingo_preprocessing.scan_store import ScanStore
from neuroflamingo_preprocessing.sidecars import sidecar_files
from neuroflamingo_preprocessing.store_index import INDEX, write_index

if TYPE_CHECKING:
    from neuroflamingo.encoding import EncoderChoice
    from neuroflamingo_encoders import EncoderCard

LOG, SEEN = "log.jsonl", "seen.jsonl"
Filters = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Spread:
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

    def find(self, source: str | Path, card: EncoderCard, notes: list[str]) -> list[Input]:
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

    def add(self, made: Made) -> None:
        """Count one scan."""
        setattr(self, made.status, getattr(self, made.status) + 1)
        if made.status == "failed":
            self.failures.append({"file": made.file, "error": made.error, "exit_code": made.exit_code})


def prepare_into_store(
    source: str | Path, output: str | Path, card: EncoderCard, how: Preparation, **options: Any
) -> Summary:
    """Prepare all scans of an input as an encoder's card says, each into one item of a `ScanStore`.

    Args:
        source: a scan, a folder, a BIDS dataset or a manifest; see `find_inputs`.
        output: the store's folder; an existing store for the same input of the encoder is gone on with.
        card: of the encoder.
        how: see `Preparation`.
        options: see `Spread`: which of the scans, and where.

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


def encode_into_store(
    source: str | Path,
    output: str | Path,
    choice: EncoderChoice,
    how: Preparation | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    **options: Any,
) -> Summary:
    """Encode all scans of an input, each into one item of a `TokenStore`.

    Args:
        source: as `prepare_into_store` takes it, or a `ScanStore` for the same input of the encoder, whose tensors
            are then taken as they are.
        output: the store's folder; an existing store of the same card, weights and type of numbers is gone on with.
        choice: of the encoder and its weights.
        how: see `Preparation`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, of each worker.
        dtype: of the tokens, `float32` or `float16`; the encoder computes in float32.
        options: see `Spread`: which of the scans, and where.

    Raises:
        NeuroFlamingoError: see `prepare_into_store`; no weights (exit 69), or a scan store for another input (65).
    """
    from neuroflamingo.loading import pick_device
    from neuroflamingo_encoders.token_store import DTYPES, TokenStore

    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}", expected=" or ".join(DTYPES), seen=dtype)
    spread, how, began = _checked(options), how or Preparation(), time.perf_counter()
    if spread.scheduler is None:
        pick_device(device)
    prepared = Path(source).is_dir() and ScanStore.is_at(source)
    card = choice.card
    notes: list[str] = []
    scans = _items(ScanStore(source), card, how, spread) if prepared else spread.find(source, card, notes)
    scans = spread.share(scans)
    how.check_tables([] if prepared else [one.confounds for one in scans], card.scan)
    _, weights, origin = load_with_identity(choice)
    store = TokenStore.create(output, card=card, weights=weights, origin=origin, dtype=dtype)
    job = EncodeJob(store.path.absolute(), card, how, _everywhere(choice), weights, device, dtype)
    tasks = _of_items(Path(source).absolute(), scans, job) if prepared else _of_files(scans, job)
    return _run(store, job, tasks, Summary(card.name, len(scans), notes=notes), spread, began)


def _checked(options: Mapping[str, Any]) -> Spread:
    from neuroflamingo.store_cluster import check_scheduler

    spread = Spread(**options)
    check_scheduler(spread.scheduler)
    return spread


def _everywhere(choice: EncoderChoice) -> EncoderChoice:
    """With paths that a worker in another folder finds too."""
    weights, table = choice.weights, choice.table
    return replace(choice, weights=weights and Path(weights).absolute(), table=table and Path(table).absolute())


def _run(
    store: ItemStore[Any], job: Job, scans: Iterable[Task | Made], summary: Summary, spread: Spread, began: float
) -> Summary:
    """Do what is missing, keep the log, and end with the summary and the index."""
    store.sweep()
    known, tasks = seen_before(store), []
    scans = list(scans)
    keys = {known.get(one.seen) for one in scans if isinstance(one, Task)} if spread.part else set(store)
    summary.dropped = len(drop_damaged(store, sorted(filter(None, keys)), thorough=spread.verify))
    for one in scans:
        if isinstance(one, Made):
            _note(summary, one, store, spread)
        elif (key := known.get(one.seen)) is not None and key in store:
            _note(summary, Made(one.name, "present", key), store, spread)
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


def _of_files(inputs: list[Input], job: Job) -> Iterator[Task | Made]:
    listed: dict[Path, list[str]] = {}
    for one in inputs:
        name = printable(one.name)
        try:
            table = one.confounds and one.confounds.absolute()
            task = Task(replace(one, path=one.path.absolute(), confounds=table), name, "")
            yield replace(task, seen=seen(task, job, listed))
        except NeuroFlamingoError as error:  # no confounds beside it, or two sidecars at one level, say
            yield Made(name, "failed", error=" ".join(str(error).split()), exit_code=error.exit_code)
        except OSError as error:  # a link of git-annex whose file was not fetched, say
            words = (
                f"{name} is not here ({error.strerror}); if it is a link of git-annex or DataLad, get its file first"
            )
            yield Made(name, "failed", error=words, exit_code=66)


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


def _items(store: ScanStore, card: EncoderCard, how: Preparation, spread: Spread) -> list[tuple[str, str]]:
    """Keys and names of the prepared scans that are meant.

    Raises:
        ModelError: they were prepared for another input of an encoder (exit 65).
        UsageError: options for preparing what is prepared already.
        NotFoundError: none (exit 66).
    """
    if store.head.get("spec") != card.scan.digest:
        raise ModelError(
            f"the scans in {store.path.name} were not prepared for '{card.name}'",
            expected=f"spec {card.scan.digest[:12]}: {card.scan.describe()}",
            seen=f"spec {str(store.head.get('spec'))[:12]}, for {store.head.get('encoder')}",
            hint="encode the scans themselves, or prepare them for this encoder",
            exit_code=65,
        )
    if how.changes() or not how.may_resample:
        raise UsageError(
            "the scans of a store are prepared already",
            expected="none of --tr, --atlas, --scaling, --raw, --no-resample, confounds, filters and frames",
            hint="leave them out, or encode the scans themselves",
        )
    if spread.filter_file is not None:
        raise UsageError(
            "a filter file is for BIDS datasets, not for a store", hint="use --participant-label and the like"
        )
    wanted = wanted_labels(spread.filters)
    named = [(key, str(store[key].about.get("name") or key[:12])) for key in store]
    kept = [(key, name) for key, name in named if all(want.holds(entities_of(Path(name))) for want in wanted)]
    if not kept:
        raise NotFoundError(
            f"there are no prepared scans in {store.path.name}" + " after the filters" * bool(named),
            expected="; ".join(map(str, wanted)) or "at least one",
            seen=f"{len(named)} items",
            hint="check the labels" if named else "run `neuroflamingo prepare` first",
        )
    return sorted(kept, key=lambda pair: (pair[1], pair[0]))


def _of_items(place: Path, named: list[tuple[str, str]], job: Job) -> Iterator[Task]:
    for key, name in named:
        yield Task(Input(place), printable(name), sha256_of_text(json.dumps([key, job.key("", {})])), item=key)


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


def _note(summary: Summary, made: Made, store: ItemStore[Any], spread: Spread) -> None:
    summary.add(made)
    if made.status != "present":
        _append(store, LOG, {key: value for key, value in asdict(made).items() if value not in (None, ())})
    if spread.progress:
        spread.progress("scans", summary.done + summary.present + summary.failed, summary.scans)
