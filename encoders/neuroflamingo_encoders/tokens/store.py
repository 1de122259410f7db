"""`TokenStore`: tokens of a frozen encoder on disk, computed once for each scan; see `stores.items` for the layout.

    items/ab/abcdef.../tokens/       `[window, token, width]`, one chunk per window
                       mask/         `[window, token]`, if tokens may be padding
                       positions/    `[window, token, 3]`, template mm (RAS), if tokens have a position

All items share the card, the weights and the dtype, so that any of them can be in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neuroflamingo_encoders.card import EncoderCard, current_digest
from neuroflamingo_encoders.tokens.format import KINDS, ScanTokens
from neuroflamingo_preprocessing.errors import ModelError
from neuroflamingo_preprocessing.formats.zarr.claims import check_chunks
from neuroflamingo_preprocessing.stores.item_index import read_index
from neuroflamingo_preprocessing.stores.items import ItemStore, StoredItem

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

DTYPES = ("float32", "float16")


class StoredTokens(StoredItem):
    """Tokens of one scan: an array `tokens`, optionally `mask` and `positions`; see the module."""

    MAIN: ClassVar[str] = "tokens"
    KINDS: ClassVar[Mapping[str, tuple[str, ...]]] = KINDS
    MADE_BY: ClassVar[str] = "neuroflamingo encode"

    def open(self, name: str | None = None) -> Any:
        """Open an array of the item, by default `tokens`, as a zarr array; see `StoredItem.open`."""
        array = super().open(name)
        try:
            check_chunks(self.folder / (name or self.MAIN), name or self.MAIN)
        except (ValueError, OSError) as error:
            raise self._damaged(error) from error
        return array

    def element(self, part: Any) -> dict[str, NDArray[Any]]:
        """Element of a dataset: `scan_tokens` `[token, width]` and `token_mask` `[token]` of one window."""
        tokens = self.read(part)
        mask = self.read(part, "mask") if (self.folder / "mask").is_dir() else np.ones(tokens.shape[:-1], bool)
        return {"scan_tokens": tokens, "token_mask": mask}


class TokenStore(ItemStore[StoredTokens]):
    """Folder of tokens, which any number of processes may read and write at the same time.

    Args:
        path: folder of the store.

    Raises:
        NotFoundError: no such folder.
        ModelError: not a store, or one of another version (exit 65).

    Example:
        >>> import numpy as np
        >>> from neuroflamingo_encoders.registry import encoder_card
        >>> from neuroflamingo_encoders.tokens.format import ScanTokens
        >>> from neuroflamingo_preprocessing.stores.items import item_key
        >>> card = encoder_card("precomputed", width=16)
        >>> store = TokenStore.create("tokens", card=card, weights="0" * 64, origin={"source": "none"})
        >>> key = item_key("1" * 64, card.digest, {})
        >>> store.put(key, [ScanTokens(np.zeros((4, 16), np.float32))], {"name": "sub-01_T1w.nii.gz"})
        True
        >>> store[key].read().shape, store.card.name
        ((1, 4, 16), 'precomputed')
    """

    FORMAT: ClassVar[str] = "neuroflamingo-token-store"
    NOUN: ClassVar[str] = "token store"
    SAME: ClassVar[tuple[str, ...]] = ("card", "weights", "dtype")
    ITEM: ClassVar[type[StoredItem]] = StoredTokens

    @classmethod
    def create(
        cls, path: str | Path, *, card: EncoderCard, weights: str, origin: Mapping[str, Any], dtype: str = "float32"
    ) -> TokenStore:
        """Create a store, or open an existing one of the same card, weights and dtype.

        Args:
            path: folder of the store.
            card: card of the encoder.
            weights: `weights_digest` of the encoder.
            origin: source of the weights, plain data.
            dtype: `float32` or `float16`.

        Raises:
            OutputError: the folder holds something else, or cannot be created (exit 73).
            ModelError: a store of another encoder, other weights or another dtype (exit 65).
        """
        began = cls(path) if cls.is_at(path) else None  # perhaps when digests followed another rule
        same = began is not None and began.card_digest == card.digest
        digest = began.head["card"] if began is not None and same else card.digest
        head = {"encoder": card.name, "card": digest, "weights": weights, "dtype": dtype}
        return cls._create(path, head | {"origin": dict(origin), "declared": card.model_dump(mode="json")})

    @property
    def card(self) -> EncoderCard:
        """Card of the encoder that made the tokens.

        Raises:
            ModelError: it does not have the digest stored beside it (exit 65).
        """
        try:
            card = EncoderCard.model_validate(self.head.get("declared"))
        except ValueError as error:
            raise self._other_card(str(error)) from error
        if card.digest != self.card_digest:
            raise self._other_card(f"digest {card.digest}")
        return card

    @property
    def card_digest(self) -> str | None:
        """Digest of the card by the current rule; see `current_digest`."""
        return current_digest(self.head.get("declared"), self.head.get("card"))

    def _other_card(self, seen: str) -> ModelError:
        return ModelError(
            f"store.json in {self.path.name} does not hold the card of its tokens",
            expected=f"a card with the digest {self.head.get('card')}",
            seen=seen[:300],
            exit_code=65,
        )

    def put(self, key: str, windows: Sequence[ScanTokens], metadata: Mapping[str, Any]) -> bool:
        """Write an item; False if it existed already, or another process wrote it in the meantime.

        Args:
            key: see `item_key`.
            windows: tokens of each window of the scan; shorter ones are padded with zeros and masked.
            metadata: plain data.

        Raises:
            OutputError: it cannot be written (exit 74); nothing of it is left.
        """
        arrays = _stacked(windows)
        return self._put(key, metadata, lambda draft: _write_arrays(draft, arrays))

    def index(self) -> pyarrow.Table:
        """Table with one row per item (key, name, BIDS entities, shape, quality, ...); see `read_index`."""
        return read_index(self)


def _stacked(windows: Sequence[ScanTokens]) -> dict[str, NDArray[Any]]:
    """Stack the arrays of all windows along a new first axis."""
    counts = [len(window.tokens) for window in windows]
    longest, (_, width) = max(counts), windows[0].tokens.shape
    arrays: dict[str, NDArray[Any]] = {"tokens": np.zeros((len(windows), longest, width), windows[0].tokens.dtype)}
    if min(counts) < longest or any(window.mask is not None for window in windows):
        arrays["mask"] = np.zeros((len(windows), longest), bool)
    if any(window.positions is not None for window in windows):
        arrays["positions"] = np.full((len(windows), longest, 3), np.nan, np.float32)
    for index, window in enumerate(windows):
        arrays["tokens"][index, : len(window.tokens)] = window.tokens
        if "mask" in arrays:
            arrays["mask"][index, : len(window.tokens)] = True if window.mask is None else window.mask
        if window.positions is not None:
            arrays["positions"][index, : len(window.tokens)] = window.positions
    return arrays


def _write_arrays(draft: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays with one chunk per window, compressed by zstd 1, with crc32c."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    for name, value in arrays.items():
        zarr.create_array(
            draft / name,
            data=value,
            chunks=(1, *value.shape[1:]),
            compressors=(ZstdCodec(level=1), Crc32cCodec()),
            dimension_names=("window", "token", {"tokens": "width", "positions": "mm"}.get(name, ""))[: value.ndim],
            zarr_format=3,
        )
