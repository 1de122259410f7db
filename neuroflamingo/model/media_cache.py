"""`MediaCache`: keys and values of the scans, kept in the language model's generation cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer

from neuroflamingo.model.media import KeysValues, Media, MediaRule, Plan, check_count, make_plan, media_time

Packed = dict[int, Float[Tensor, "batch scan latent inner"]]
Arrange = Callable[[int, Tensor, Plan], KeysValues]


class MediaCache(DummyLayer):
    """Extra layer at the end of a `Cache`, which transformers reorders, repeats, selects and crops with the others.

    It holds what later chunks of the text need: the projected scans, once per prompt however many beams there are, and
    the number of `<image>` tokens that each row has had.

    Args:
        packed: keys and values of all scans, by layer number.
        ordinal: see `media.make_plan`.
        arrange: splits the keys and values that a plan scores into heads, for a layer.
        immediate: see `media.make_plan`.
        rule: see `media.media_time`. With `next`, later chunks are not known yet: text after the last `<image>` of its
            chunk sees nothing, generated text included (as upstream).
    """

    def __init__(
        self,
        packed: Packed,
        ordinal: Int[Tensor, "prompt scan"],
        arrange: Arrange,
        *,
        immediate: bool,
        rule: MediaRule = "previous",
    ) -> None:
        super().__init__()
        self.packed, self.ordinal = packed, ordinal
        self.arrange, self.immediate = arrange, immediate
        self.rule: MediaRule = rule
        self.rows: Tensor | None = None  # prompt that each row of the batch continues; None: row i is prompt i
        self.times = ordinal.new_zeros(len(ordinal), 0)  # scans so far at each token, up to the last chunk with one
        self.length = 0
        self._steady: Media | None = None  # the media of every chunk without a new `<image>`

    def fresh(self) -> MediaCache:
        """Independent copy; tensors are shared, since none is ever changed in place."""
        copy = MediaCache(self.packed, self.ordinal, self.arrange, immediate=self.immediate, rule=self.rule)
        copy.rows, copy.times, copy.length, copy._steady = self.rows, self.times, self.length, self._steady
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> MediaCache:
        return self.fresh()

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return len(self.times)

    @property
    def count(self) -> Int[Tensor, " batch"]:
        """Number of scans of each row."""
        count = (self.ordinal > 0).sum(-1)
        return count if self.rows is None else count[self.rows]

    @property
    def seen(self) -> Int[Tensor, " batch"]:
        """Number of `<image>` tokens of each row so far."""
        return self.times[:, -1] if self.times.shape[1] else self.times.new_zeros(self.batch)

    def expand_to(self, batch: int) -> None:
        """Repeat every prompt for several rows (beams, return sequences) without copying its scans."""
        if batch != self.batch:
            self.batch_repeat_interleave(batch // self.batch)

    def add(self, packed: Packed, present: Tensor) -> None:
        """Append the scans of a later chunk.

        Args:
            packed: by layer, their keys and values, one row per row of the batch.
            present: `[batch, scan]`, False for padding.
        """
        ordinal = (self.count[:, None] + present.long().cumsum(-1)) * present
        if self.rows is not None:
            self.packed = {layer: kept[self.rows] for layer, kept in self.packed.items()}
            self.ordinal, self.rows = self.ordinal[self.rows], None
        if self.ordinal.shape[1]:
            packed = {layer: torch.cat((self.packed[layer], new), dim=1) for layer, new in packed.items()}
        self.packed, self.ordinal = packed, torch.cat((self.ordinal, ordinal), dim=1)
        self._steady = None

    def open(self, images: Tensor, *, exact: bool = False) -> Media:
        """Media of the next chunk; nothing is stored until `advance`.

        Args:
            images: `[batch, text]`, True where a token is `<image>`.
            exact: every scan must have its `<image>` by the end of the chunk.

        Raises:
            UsageError: `<image>` tokens and scans do not match.
        """
        if self._steady is not None and not bool(images.any()):
            return self._steady
        check_count(self.seen + images.sum(-1), self.count, exact=exact)
        return self._media(media_time(images, self.rule, before=self.seen))

    def _later(self) -> Media:
        """Media of text without a new `<image>`."""
        return self._media(self.seen[:, None]) if self.rule == "previous" else Media(Plan("none"))

    def _media(self, time: Tensor) -> Media:
        ordinal = self.ordinal if self.rows is None else self.ordinal[self.rows]
        plan = make_plan(time, ordinal, self.immediate)
        if plan.kind == "none":
            return Media(plan)
        ready = {}
        for layer, packed in self.packed.items():
            ready[layer] = self.arrange(layer, packed if self.rows is None else packed[self.rows], plan)
        return Media(plan, keys_values=ready)

    def advance(self, images: Tensor) -> None:
        """Record a chunk that the language model has processed."""
        self.length += images.shape[1]
        if self._steady is not None and not bool(images.any()):
            return
        # Times are needed up to the last chunk with an `<image>`; before it, chunks without one count as well.
        gap = self.length - images.shape[1] - self.times.shape[1]
        before = self.seen[:, None].expand(-1, gap + images.shape[1])
        new = torch.cat((images.new_zeros(len(images), gap), images), dim=1).long().cumsum(-1)
        self.times = torch.cat((self.times, before + new), dim=1)
        self._steady = self._later()

    def _select(self, index: Tensor) -> None:
        seen, rows = self.seen, self.rows
        self.times = self.times[index]
        self.rows = index if rows is None else rows[index]
        same = rows is not None and len(rows) == len(self.rows) and torch.equal(rows, self.rows)
        if not (same and torch.equal(seen, self.seen)):
            self._steady = None if self.length == 0 else self._later()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows as beam search does."""
        self._select(beam_idx.to(self.times.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._select(torch.arange(self.batch, device=self.times.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the selected rows."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self._select(indices.to(self.times.device))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given by number (positive in newer transformers, negative in older)."""
        self.length -= min(abs(tokens_to_remove), self.length)
        if self.times.shape[1] > self.length:
            self.times = self.times[:, : self.length]
            self._steady = self._later()

    def reset(self) -> None:
        """Clear the cache for another text."""
        self.packed, self.ordinal, self.rows = {}, self.ordinal[:, :0], None
        self.times, self.length, self._steady = self.times[: len(self.ordinal), :0], 0, None


def find_media_cache(cache: Cache | None) -> MediaCache | None:
    """Media cache inside a generation cache, if there is one."""
    layers = getattr(own_part(cache), "layers", None) or ()
    return next((layer for layer in reversed(layers) if isinstance(layer, MediaCache)), None)


def attach(media_cache: MediaCache, cache: Cache | None, images: Tensor) -> None:
    """Attach a media cache to a generation cache after the language model has processed the chunk with `images`."""
    if cache is None:
        return
    media_cache.advance(images)
    layers = own_part(cache).layers
    layers[:] = [*(layer for layer in layers if not isinstance(layer, MediaCache)), media_cache]


def own_part(cache: Any) -> Any:
    """The part of a cache that grows with the text: decoders that could attend to an encoder keep two."""
    return getattr(cache, "self_attention_cache", cache)
