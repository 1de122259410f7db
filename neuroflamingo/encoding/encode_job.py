"""Job of a token store: prepare and encode one scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from neuroflamingo.device import pick_device
from neuroflamingo.encoding.token_file import tokens_of
from neuroflamingo_encoders.contract import weights_digest
from neuroflamingo_encoders.tokens.store import TokenStore
from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.files import sha256_of_text
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.stores.items import ItemStore, StoredItem, item_key
from neuroflamingo_preprocessing.stores.jobs import Job, Task, joint_record
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from neuroflamingo.encoding.encoder_choice import EncoderChoice
    from neuroflamingo_encoders.contract import BrainEncoder
    from neuroflamingo_preprocessing.spec import InputCard


_ENCODERS: dict[tuple[str, str], BrainEncoder] = {}
"""The encoder last loaded in this process, by card digest and weight identity."""


_LOADING = Lock()


@dataclass(frozen=True)
class EncodeJob(Job):
    """Encoding of scans, or of items of a scan store, into tokens.

    Attributes:
        choice: the encoder and its weights.
        weights: identity of its weights and table; a worker that finds different ones refuses.
        device, dtype: device to compute on, and dtype of the stored tokens.
    """

    choice: EncoderChoice
    weights: str
    device: str
    dtype: str

    def open_store(self) -> ItemStore[Any]:
        """Open the token store."""
        return TokenStore(self.store)

    def key(self, input_sha256: str, changes: Mapping[str, Any]) -> str:
        """The item's key: input, card, weights, precision, and the user's changes to the preparation."""
        return item_key(
            input_sha256, str(self.open_store().head["card"]), {**changes, "weights": self.weights, "dtype": self.dtype}
        )

    def origin(self, task: Task) -> tuple[str, dict[str, Any]]:
        """Hash and record of what the tokens are made from."""
        if task.item is None:
            return super().origin(task)
        return _made_of(ScanStore(task.path)[task.item], self.card)

    def encoder(self) -> BrainEncoder:
        """Encoder of this process, loaded once."""
        with _LOADING:
            module = _ENCODERS.get((self.card.digest, self.weights))
            if module is None:
                module, found, _ = load_with_identity(self.choice)
                if found != self.weights:
                    raise ModelError(
                        f"a worker has different weights for '{self.card.name}' than this run",
                        expected=f"weights {self.weights[:12]}",
                        seen=f"weights {found[:12]}",
                        hint="give --weights FILE on a file system that all workers share",
                        exit_code=65,
                    )
            return module.to(pick_device(self.device))

    def make(self, store: Any, key: str, task: Task, made_of: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Encode one input and store its tokens."""
        encoder, place = self.encoder(), pick_device(self.device)
        windows = [
            tokens_of(encoder, tensor, said, place, self.dtype) for tensor, said in self._prepared(task, made_of)
        ]
        metadata = joint_record([one.metadata for one in windows], made_of)
        return store.put(key, windows, metadata), metadata

    def _prepared(
        self, task: Task, made_of: Mapping[str, Any]
    ) -> Iterator[tuple[NDArray[np.float32], Mapping[str, Any]]]:
        """Yield prepared tensors with their metadata."""
        if task.item is None:
            for one in prepare(task.path, self.card.scan, self.with_series_hash(task, made_of)).windows:
                yield one.tensor, one.metadata
            return
        item = ScanStore(task.path)[task.item]
        windows = item.metadata.get("windows") or ()
        plain = {k: v for k, v in item.metadata.items() if k not in ("windows", "made_of")}
        for number in range(item.open().shape[0]):
            yield item.read(number), plain | ({"window": windows[number]} if number < len(windows) else {})


def load_with_identity(choice: EncoderChoice) -> tuple[BrainEncoder, str, dict[str, Any]]:
    """Load the encoder; returns it with the hash of its weights and table, and the source of the weights."""
    module, origin = choice.load()
    identity = encoder_identity(module, (origin.get("table") or {}).get("sha256"))
    _ENCODERS.clear()
    _ENCODERS[module.card.digest, identity] = module
    return module, identity, origin


def encoder_identity(encoder: nn.Module, table_sha256: str | None = None) -> str:
    """Hash of an encoder's weights, and of its table's file if it has one, which identifies token stores."""
    digest = weights_digest(encoder)
    return sha256_of_text(digest + table_sha256) if table_sha256 else digest


def _made_of(item: StoredItem, card: InputCard) -> tuple[str, dict[str, Any]]:
    """Hash of the scan and the options that a prepared item was made from, checked against the item's key."""
    try:
        digest, changes = str(item.metadata["made_of"]["input_sha256"]), dict(item.metadata["made_of"]["how"])
    except (KeyError, TypeError, ValueError):
        digest, changes = "", {}
    if item_key(digest, card.scan.digest, changes) != item.key:
        raise ModelError(
            f"the prepared scan {item.key[:12]} does not state what it was made from",
            expected="hash of the input and options from which its address follows",
            hint="run `neuroflamingo prepare` into a new folder",
            exit_code=65,
        )
    return digest, changes
