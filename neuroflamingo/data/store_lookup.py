"""Lookup of a manifest's scans in a store, by key or by file content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflamingo.data.manifest import STORE
from neuroflamingo.encoding.encode_job import EncodeJob
from neuroflamingo.encoding.encoder_choice import EncoderChoice
from neuroflamingo_preprocessing.errors import ModelError, NotFoundError
from neuroflamingo_preprocessing.inputs import Input
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.build import fingerprint, known_keys
from neuroflamingo_preprocessing.stores.jobs import PrepareJob, Task, input_digest
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard
    from neuroflamingo_preprocessing.stores.items import ItemStore
    from neuroflamingo_preprocessing.stores.jobs import Job


def keys_of_scans(names: Sequence[str], store: ItemStore[Any], card: EncoderCard) -> dict[str, str]:
    """Find the key of each scan's item.

    A file is recognised without being read by the path, size and time that `neuroflamingo prepare` or `encode` saw; a
    file that has been moved, or was prepared with other options, is recognised by its content.

    Args:
        names: absolute paths, or `store:KEY`.
        store: a store of scans or tokens.
        card: card of the encoder.

    Raises:
        NotFoundError: scans that are not in the store, all in one message (exit 66).
        ModelError: an ambiguous file, prepared in several ways (exit 65).
    """
    keys: dict[str, str] = {}
    files: list[str] = []
    for name in names:
        if not name.startswith(STORE):
            files.append(name)
        elif _is_key(key := name.removeprefix(STORE)) and key in store:
            keys[name] = key
    known = known_keys(store) if files else {}
    job, listed = _job(store, card), {}
    for name in files:
        key = known.get(_seen_now(name, job, listed))
        if key is not None and key in store:
            keys[name] = key
    if rest := [name for name in files if name not in keys]:
        keys |= _by_content(rest, store, card)
    if missing := [name for name in names if name not in keys]:
        shown = ", ".join(name[:24] if name.startswith(STORE) else Path(name).name for name in missing[:5])
        raise NotFoundError(
            f"{len(missing)} of {len(names)} scans are not in the store {store.path.name}",
            expected="an item for each scan of the manifests",
            seen=f"none for {shown}",
            hint=f"run `{store.ITEM.MADE_BY}` again: it adds what is missing",
        )
    return keys


def _is_key(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def _job(store: ItemStore[Any], card: EncoderCard) -> Job:
    """Job that makes such a store with default options."""
    if isinstance(store, ScanStore):
        return PrepareJob(store.path, card, Preparation())
    head = store.head
    return EncodeJob(
        store.path, card, Preparation(), EncoderChoice(card.name), str(head["weights"]), "cpu", str(head["dtype"])
    )


def _seen_now(name: str, job: Job, listed: dict[Path, list[str]]) -> str:
    try:
        return fingerprint(Task(Input(Path(name)), Path(name).name, ""), job, listed)
    except OSError:
        return ""  # not here any more


def _by_content(files: Sequence[str], store: ItemStore[Any], card: EncoderCard) -> dict[str, str]:
    """Keys of files by the hash of their content; files that are missing or not in the store are omitted."""
    made_of: dict[str, list[str]] = defaultdict(list)
    for key in store:
        origin = store[key].metadata.get("made_of")
        if isinstance(origin, dict):
            made_of[str(origin.get("input_sha256"))].append(key)
    keys: dict[str, str] = {}
    for name in files:
        path = Path(name)
        found = made_of.get(input_digest(path, card.scan), []) if path.exists() else []
        if len(found) > 1:
            raise ModelError(
                f"{path.name} is in the store {store.path.name} {len(found)} times, prepared in several ways",
                expected="one item for a file",
                seen=", ".join(key[:12] for key in found),
                hint=f"write {STORE}KEY into the manifest instead of the file",
                exit_code=65,
            )
        if found:
            keys[name] = found[0]
    return keys
