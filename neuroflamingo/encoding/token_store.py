"""Encoding of many scans into a token store, resumable and in parallel."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.device import pick_device
from neuroflamingo.encoding.encode_job import EncodeJob, load_with_identity
from neuroflamingo_encoders.tokens.store import DTYPES, TokenStore
from neuroflamingo_preprocessing.bids.entities import entities_of
from neuroflamingo_preprocessing.bids.filters import label_filters
from neuroflamingo_preprocessing.errors import NotFoundError, UsageError
from neuroflamingo_preprocessing.files import printable, sha256_of_text
from neuroflamingo_preprocessing.inputs import Input
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.build import StoreOptions, Summary, checked_options, file_tasks, run_job
from neuroflamingo_preprocessing.stores.jobs import Job, Task
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo.encoding.encoder_choice import EncoderChoice
    from neuroflamingo_encoders.card import EncoderCard


def encode_into_store(
    source: str | Path,
    output: str | Path,
    choice: EncoderChoice,
    preparation: Preparation | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    **options: Any,
) -> Summary:
    """Encode all scans of an input, each into one item of a `TokenStore`.

    Args:
        source: an input as for `prepare_into_store`, or a `ScanStore` made for this encoder's input, whose tensors are
            then used as they are.
        output: the store's folder; an existing store with the same card, weights and dtype is continued.
        choice: the encoder and its weights.
        preparation: see `Preparation`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`, for each worker.
        dtype: dtype of the tokens, `float32` or `float16`; the encoder computes in float32.
        options: selection of scans and workers, see `StoreOptions`.

    Raises:
        NeuroFlamingoError: see `prepare_into_store`; no weights (exit 69), or a scan store for another input (65).
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}", expected=" or ".join(DTYPES), seen=dtype)
    spread, preparation, began = checked_options(options), preparation or Preparation(), time.perf_counter()
    if spread.scheduler is None:
        pick_device(device)
    prepared = Path(source).is_dir() and ScanStore.is_at(source)
    card = choice.card
    notes: list[str] = []
    scans = _items(ScanStore(source), card, preparation, spread) if prepared else spread.find(source, card, notes)
    scans = spread.share(scans)
    preparation.check_tables([] if prepared else [one.confounds for one in scans], card.scan)
    _, weights, origin = load_with_identity(choice)
    store = TokenStore.create(output, card=card, weights=weights, origin=origin, dtype=dtype)
    job = EncodeJob(store.path.absolute(), card, preparation, _everywhere(choice), weights, device, dtype)
    tasks = _of_items(Path(source).absolute(), scans, job) if prepared else file_tasks(scans, job)
    return run_job(store, job, tasks, Summary(card.name, len(scans), notes=notes), spread, began)


def _everywhere(choice: EncoderChoice) -> EncoderChoice:
    """Make paths absolute, so that workers in other folders find the files."""
    weights, table = choice.weights, choice.table
    return replace(choice, weights=weights and Path(weights).absolute(), table=table and Path(table).absolute())


def _items(
    store: ScanStore, card: EncoderCard, preparation: Preparation, spread: StoreOptions
) -> list[tuple[str, str]]:
    """Keys and names of the selected prepared scans.

    Raises:
        ModelError: they were prepared for a different encoder input (exit 65).
        UsageError: preparation options for scans that are already prepared.
        NotFoundError: no scans (exit 66).
    """
    store.check_made_for(card.name, card.scan)
    if preparation.changes() or not preparation.may_resample:
        raise UsageError(
            "the scans of a store are already prepared",
            expected="none of --tr, --atlas, --scaling, --raw, --no-resample, confounds, filters and frames",
            hint="leave them out, or encode the scans themselves",
        )
    if spread.filter_file is not None:
        raise UsageError(
            "a filter file is for BIDS datasets, not for a store", hint="use --participant-label and the like"
        )
    conditions = label_filters(spread.filters)
    named = [(key, str(store[key].metadata.get("name") or key[:12])) for key in store]
    kept = [
        (key, name)
        for key, name in named
        if all(condition.matches(entities_of(Path(name))) for condition in conditions)
    ]
    if not kept:
        raise NotFoundError(
            f"there are no prepared scans in {store.path.name}" + " after the filters" * bool(named),
            expected="; ".join(map(str, conditions)) or "at least one",
            seen=f"{len(named)} items",
            hint="check the labels" if named else "run `neuroflamingo prepare` first",
        )
    return sorted(kept, key=lambda pair: (pair[1], pair[0]))


def _of_items(place: Path, named: list[tuple[str, str]], job: Job) -> Iterator[Task]:
    for key, name in named:
        yield Task(Input(place), printable(name), sha256_of_text(json.dumps([key, job.key("", {})])), item=key)
