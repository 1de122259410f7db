"""Where the scans of samples come from: files that are prepared on the fly, prepared scans, or ready tokens."""

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
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from neuroflamingo_preprocessing.preparation import prepare_for_encoder
from neuroflamingo_preprocessing.preparation_options import Preparation
from neuroflamingo_preprocessing.stores.scans import ScanStore

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard
    from neuroflamingo_preprocessing.stores.items import ItemStore


class ScanSource(ABC):
    """Gives one tensor of a scan. Made once, sent to each worker; it holds names and keys, never open files."""

    @abstractmethod
    def read(self, scan: str, pick: int) -> Mapping[str, Tensor]:
        """`scan` `[axes of the card]`, or `scan_tokens` `[token, width]` and perhaps `token_mask` `[token]`.

        Args:
            scan: as the sample names it.
            pick: any number: of a run with several windows it chooses one.

        Raises:
            NeuroFlamingoError: the scan cannot be read, or is not what the encoder takes.
        """


class FileScans(ScanSource):
    """Files, prepared as the card says each time that they are wanted.

    Args:
        card: of the encoder; of ready tokens `precomputed`.
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

        prepared = list(prepare_for_encoder(path, self.card.scan, Preparation()))
        tensor = torch.as_tensor(prepared[pick % len(prepared)].tensor)
        return {"scan_tokens" if self.ready else "scan": tensor}


class StoreScans(ScanSource):
    """Items of a scan store or a token store.

    Args:
        store: what was checked to be this encoder's.
        keys: of the items, by the samples' names of the scans.
    """

    def __init__(self, store: ItemStore[Any], keys: Mapping[str, str]) -> None:
        self.store, self.keys = store, keys

    def read(self, scan: str, pick: int) -> Mapping[str, Tensor]:
        """Read the item of the scan; of several windows, the one that `pick` chooses."""
        item = self.store.peek(self.keys[scan])
        shape, _ = item.sizes()
        element = {name: torch.from_numpy(value) for name, value in item.element(pick % shape[0]).items()}
        if "token_mask" in element and bool(element["token_mask"].all()):
            del element["token_mask"]  # nothing to mask is quicker than a mask that masks nothing
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
    """The source of these scans, checked to be what the model's encoder takes or made.

    Args:
        names: of all scans, as samples have them: absolute paths, or `store:KEY`.
        card: of the model's encoder; None: it has none.
        width: of ready tokens, where it has none.
        weights: `encoder_identity` of the model's encoder, without which no token store is believed.
        scans: folder of a `ScanStore`.
        tokens: folder of a `TokenStore`.

    Raises:
        UsageError: both stores, or items of a store and no store.
        NotFoundError: no store there, or scans that are not in it (exit 66).
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
            raise UsageError("this model has no encoder", expected="data.tokens: a store of ready tokens")
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
    """The token store, if this model's encoder made it.

    Raises:
        ModelError: another card, other weights, another width (exit 65).
        UsageError: a card without weights to compare.
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
        f"the tokens in {store.path.name} are those of another encoder",
        expected=expected,
        seen=seen,
        hint="run `neuroflamingo encode` with the encoder and the weights of this recipe into a new folder",
        exit_code=65,
    )
