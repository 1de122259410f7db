"""Sources of scans for training: files prepared on the fly, stores of prepared scans, or stores of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroflamingo.data.manifest import STORE
from neuroflamingo.data.store_lookup import keys_of_scans
from neuroflamingo_encoders.families.precomputed.cards import precomputed_card
from neuroflamingo_encoders.tokens.files import ENDINGS, read_tokens
from neuroflamingo_encoders.tokens.store import TokenStore
from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.preparation import prepare
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard
    from neuroflamingo_preprocessing.stores.items import ItemStore


class ScanSource(ABC):
    """Source of scan tensors. It is pickled to each worker, so it holds names and keys, never open files."""

    @abstractmethod
    def read(self, scan: str, pick: int) -> Mapping[str, Tensor]:
        """Read `scan` `[axes of the card]`, or `scan_tokens` `[token, width]` and perhaps `token_mask` `[token]`.

        Args:
            scan: name of the scan in the sample.
            pick: any integer, which selects a window of a run with several.

        Raises:
            NeuroFlamingoError: the scan cannot be read, or does not suit the encoder.
        """


class FileScans(ScanSource):
    """Files, prepared as the card requires each time they are read.

    Args:
        card: card of the encoder; for precomputed tokens that of `precomputed`.
        ready: the model has no encoder, and its scans are arrays of tokens.
    """

    def __init__(self, card: EncoderCard, *, ready: bool = False) -> None:
        self.card, self.ready = card, ready

    def read(self, scan: str, pick: int) -> Mapping[str, Tensor]:
        """Read and prepare the file; of a run, the window that `pick` chooses."""
        path = Path(scan)
        if self.ready and path.suffix in ENDINGS:
            windows = read_tokens(path, card=self.card).scans
            chosen = windows[pick % len(windows)]
            mask = {} if chosen.mask is None else {"token_mask": torch.from_numpy(chosen.mask)}
            return {"scan_tokens": torch.from_numpy(chosen.tokens), **mask}

        try:
            windows = prepare(path, self.card.scan).windows
        except NeuroFlamingoError as error:
            raise _by_a_store(error, self.card) from error
        tensor = torch.as_tensor(windows[pick % len(windows)].tensor)
        return {"scan_tokens" if self.ready else "scan": tensor}


def _by_a_store(error: NeuroFlamingoError, card: EncoderCard) -> NeuroFlamingoError:
    """The error, and where its advice names options of `prepare`, which a training does not have, how to use them."""
    if "--" not in f"{error.expected} {error.hint}":
        return error
    way = f"neuroflamingo prepare FOLDER -o STORE --encoder {card.name}, with the option; then --set data.scans=STORE"
    hint = f"{error.hint}. " if error.hint else ""
    code = error.exit_code
    return type(error)(error.what, expected=error.expected, seen=error.seen, hint=f"{hint}{way}", exit_code=code)


class StoreScans(ScanSource):
    """Items of a scan store or a token store.

    Args:
        store: a store that was checked to match the encoder.
        keys: keys of the items, by scan names.
    """

    def __init__(self, store: ItemStore[Any], keys: Mapping[str, str]) -> None:
        self.store, self.keys = store, keys

    def read(self, scan: str, pick: int) -> Mapping[str, Tensor]:
        """Read the item of the scan; of several windows, the one that `pick` chooses."""
        item = self.store.peek(self.keys[scan])
        shape, _ = item.sizes()
        element = {name: torch.from_numpy(value) for name, value in item.element(pick % shape[0]).items()}
        if "token_mask" in element and bool(element["token_mask"].all()):
            del element["token_mask"]  # no mask is faster than a mask that masks nothing
        return element


def open_scans(
    names: Iterable[str],
    *,
    card: EncoderCard | None,
    width: int | None = None,
    weights: str | None = None,
    scans: Path | None = None,
    tokens: Path | None = None,
) -> ScanSource:
    """Open the source of scans, checked against the model's encoder.

    Args:
        names: names of all scans in the samples: absolute paths, or `store:KEY`.
        card: card of the model's encoder; None: the model has no encoder.
        width: width of precomputed tokens, if the model has no encoder.
        weights: `encoder_identity` of the model's encoder, required for a token store.
        scans: folder of a `ScanStore`.
        tokens: folder of a `TokenStore`.

    Raises:
        UsageError: both stores, or items of a store without a store.
        NotFoundError: no such store, or scans that are not in it (exit 66).
        ModelError: a store of another card, of other weights, or of tokens of another width (exit 65).
    """
    if scans is not None and tokens is not None:
        raise UsageError("data.scans and data.tokens were both given", expected="one of them", hint="leave one out")
    names = sorted(set(names))
    if tokens is not None:
        store = check_tokens(TokenStore(tokens), card, width, weights)
        return StoreScans(store, keys_of_scans(names, store, store.card))
    if scans is not None:
        if card is None:
            raise UsageError("this model has no encoder", expected="data.tokens: a store of tokens")
        prepared = ScanStore(scans).check_made_for(card.name, card.scan)
        return StoreScans(prepared, keys_of_scans(names, prepared, card))
    if items := [name for name in names if name.startswith(STORE)]:
        raise UsageError(
            f"{len(items)} scans are items of a store, and the recipe names none",
            expected="data.scans or data.tokens",
            seen=items[0][:24],
            hint="--set data.tokens=FOLDER",
        )
    if card is not None:
        return FileScans(card)

    if width is None:
        raise UsageError("a model without an encoder needs the width of its tokens", expected="model.token_width")
    return FileScans(precomputed_card(width=width), ready=True)


def check_tokens(store: Any, card: EncoderCard | None, width: int | None, weights: str | None) -> Any:
    """Check that this model's encoder made the token store.

    Raises:
        ModelError: a different card, weights or width (exit 65).
        UsageError: no weights to compare with.
    """
    if card is None:
        if width is not None and store.card.output.width != width:
            raise _other(store, f"tokens of width {width}", f"width {store.card.output.width}")
        return store
    if weights is None:
        raise UsageError(
            "tokens of a store can only be checked against the weights of the encoder",
            expected="weights=encoder_identity(model.encoder)",
        )
    if store.card_digest != card.digest:
        seen = f"'{store.head.get('encoder')}', card {str(store.head.get('card'))[:12]}"
        raise _other(store, f"'{card.name}', card {card.digest[:12]}", seen)
    if store.head.get("weights") != weights:
        raise _other(store, f"weights {weights[:12]}", f"weights {str(store.head.get('weights'))[:12]}")
    return store


def _other(store: ItemStore[Any], expected: str, seen: str) -> ModelError:
    return ModelError(
        f"the tokens in {store.path.name} come from another encoder",
        expected=expected,
        seen=seen,
        hint="run `neuroflamingo encode` with the encoder and the weights of this recipe into a new folder",
        exit_code=65,
    )
