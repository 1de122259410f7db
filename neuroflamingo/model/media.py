"""`Media`: the scans that the tokens of a text may attend to, passed as an argument so that no layer holds a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from neuroflamingo_preprocessing.errors import UsageError

MediaRule = Literal["previous", "next"]
KeysValues = tuple[Tensor, Tensor]  # each `[batch, head, key, width of a head]`


@dataclass(frozen=True)
class Plan:
    """Layout of the cross-attention in one forward pass; it depends on the token ids only, so all layers share it.

    Attributes:
        kind: `none`: no token sees a scan; `one`: all tokens of a row see the same single scan; `all`: every token
            sees every scan; `masked`: scores against all scans, the forbidden ones masked; `segments`: tokens are
            regrouped by the scan that they see, so that only allowed scores are computed.
        visible: `[batch, text]`, True where a token sees a scan; None if all do.
        scan: for `one`, `[batch]`, the index of the scan that a row sees; None if there is only one.
        allowed: for `masked`, `[batch, 1, text, scan]`.
        slots: for `segments`, `[batch, scan, slot]`, the text position in each slot of a scan's group, counted over
            all rows of the batch.
        places: for `segments`, `[batch, text]`, the slot that holds a text position, counted over rows and scans.
    """

    kind: Literal["none", "one", "all", "masked", "segments"]
    visible: Bool[Tensor, "batch text"] | None = None
    scan: Int[Tensor, " batch"] | None = None
    allowed: Bool[Tensor, "batch 1 text scan"] | None = None
    slots: Int[Tensor, "batch scan slot"] | None = None
    places: Int[Tensor, "batch text"] | None = None

    def select(self, packed: Float[Tensor, "batch scan latent inner"]) -> Float[Tensor, "group key inner"]:
        """Select the projections that this plan scores: one group per row, or per scan for `segments`."""
        if self.kind == "one":
            if self.scan is None:
                return packed[:, 0]
            return packed[torch.arange(len(packed), device=packed.device), self.scan]
        if self.kind == "segments":
            return packed.flatten(0, 1)
        return packed.flatten(1, 2)

    def mask(self, latents: int) -> Bool[Tensor, "batch 1 text key"] | None:
        """True where a token may attend to a key; None if nothing has to be masked."""
        if self.allowed is None:
            return None
        return self.allowed.repeat_interleave(latents, dim=-1)


def media_time(
    images: Bool[Tensor, "batch text"],
    rule: MediaRule,
    *,
    before: Int[Tensor, " batch"] | None = None,
    closed: Int[Tensor, "batch text"] | None = None,
) -> Int[Tensor, "batch text"]:
    """Number of the scan that each token looks at, from 1; 0 for none.

    Args:
        images: True where a token is `<image>`.
        rule: `previous`: the latest scan so far; `next`: `<image>` sees its own scan, any other token the scan that the
            next `<image>` of this text stands for, and text after the last `<image>` sees none.
        before: `<image>` tokens of each row before this chunk of its text.
        closed: for packed rows, the number of `<image>` tokens up to the end of each token's own sequence.

    Source:
        `next` is what OpenFlamingo v1 and Multimodal-GPT do when not attending to the previous image.
    """
    time = images.long().cumsum(-1)
    time = time if before is None else time + before[:, None]
    if rule == "previous":
        return time
    last = time[:, -1:] if closed is None else closed
    time = time + (~images).long()
    return time.masked_fill(time > last, 0)


def make_plan(
    time: Int[Tensor, "batch text"],
    ordinal: Int[Tensor, "batch scan"],
    immediate: bool,
    earlier: Int[Tensor, "batch text"] | None = None,
) -> Plan:
    """Choose the cheapest plan that computes exactly the allowed scores.

    Args:
        time: the number of the scan that each token looks at, see `media_time`.
        ordinal: number of each scan's `<image>` in its row, from 1; 0 for a padded slot.
        immediate: a token sees that scan only, else every scan up to it.
        earlier: for packed rows, the number of `<image>` tokens in the sequences before each token's own.

    Source:
        OpenFlamingo's text_time and media_time. Differs from upstream: text before the first scan sees nothing in
        both modes (upstream lets it see everything when `immediate` is false).
    """
    if ordinal.shape[1] == 0 or not bool(time.any()):
        return Plan("none")
    allowed = allowed_scans(time, ordinal, immediate, earlier)
    seen = allowed.any(-1)
    if not bool(seen.any()):
        return Plan("none")
    visible = None if bool(seen.all()) else seen
    if immediate and ordinal.shape[1] == 1:
        return Plan("one", visible)
    if immediate and bool((time == time[:, :1]).all()):
        return Plan("one", visible, scan=allowed.any(1).int().argmax(-1))
    if bool(allowed.all()):
        return Plan("all")
    if immediate:
        plan = _segments(allowed, visible)
        if plan is not None:
            return plan
    return masked_plan(allowed)


def allowed_scans(
    time: Int[Tensor, "batch text"],
    ordinal: Int[Tensor, "batch scan"],
    immediate: bool,
    earlier: Int[Tensor, "batch text"] | None = None,
) -> Bool[Tensor, "batch text scan"]:
    """Mask of the scans that each token may attend to; arguments as in `make_plan`."""
    now, opened = time[:, :, None], ordinal[:, None, :]
    first = 0 if earlier is None else earlier[:, :, None]
    return (now == opened if immediate else now >= opened) & (opened > first)


def masked_plan(allowed: Bool[Tensor, "batch text scan"]) -> Plan:
    """Plan that scores all scans and masks the forbidden ones: always correct, never the cheapest."""
    seen = allowed.any(-1)
    # The softmax of a row with nothing allowed would be 0/0: such rows see everything here and are zeroed afterwards.
    return Plan("masked", None if bool(seen.all()) else seen, allowed=(allowed | ~seen[..., None])[:, None])


def _segments(allowed: Bool[Tensor, "batch text scan"], visible: Bool[Tensor, "batch text"] | None) -> Plan | None:
    """Group tokens by the scan that they see; None if that saves less than a quarter of the scores of masking.

    Masked attention scores every token against every scan, `text * scans` blocks, though with `immediate` each token
    sees one scan. Here each scan gets a group of `longest` slots, filled with its tokens in order, so that attention
    runs over `scans * longest` blocks without a mask. `slots` gathers the queries into the groups, `places` scatters
    the results back.
    """
    text, scans = allowed.shape[1:]
    longest = int(allowed.sum(1).max())
    if scans * longest > 0.75 * text * scans:
        return None
    rank = allowed.cumsum(1) - 1  # rank of each token among the tokens that see a scan
    group = allowed.int().argmax(-1)
    within = rank.gather(-1, group[..., None])[..., 0].clamp(min=0)
    places = group * longest + within
    seen = allowed.any(-1)
    row = torch.arange(len(allowed), device=allowed.device)[:, None]
    position = row * text + torch.arange(text, device=allowed.device)
    # Tokens that see no scan go to an extra slot, which is cut off; empty slots repeat token 0 and are never read back.
    target = torch.where(seen, places, scans * longest)
    slots = position.new_zeros(len(allowed), scans * longest + 1).scatter(1, target, position)[:, :-1]
    places = places + row * scans * longest
    return Plan("segments", visible, slots=slots.unflatten(1, (scans, longest)), places=places)


@dataclass(frozen=True)
class Media:
    """The scans of a batch in the form that gated blocks take.

    Attributes:
        plan: the scans that each token may attend to.
        latents: the resampler's output, `[batch, scan, latent, width]`; keys and values are projected from it in
            each block (training). None if `keys_values` has them all.
        keys_values: ready keys and values by layer number (generation).
        observe: callback with the layer number and the hidden states that attend to the scans (`attention_rollout`).
    """

    plan: Plan
    latents: Float[Tensor, "batch scan latent width"] | None = None
    keys_values: dict[int, KeysValues] | None = None
    observe: Callable[[int | None, Tensor], None] | None = None

    @property
    def sees_nothing(self) -> bool:
        """True if no token of this pass may attend to any scan."""
        return self.plan.kind == "none"

    def with_latents(self, latents: Tensor | None) -> Media:
        """Replace the latents: a checkpointed block takes them as an explicit argument."""
        return replace(self, latents=latents)


# Code that searches a layer's arguments for tensors (FSDP's hooks, moves between devices) must find those of the media:
# FSDP gathers a block's weights for the backward pass when the gradient of one of its arguments is requested.
register_pytree_node(
    Plan,
    lambda plan: ([plan.visible, plan.scan, plan.allowed, plan.slots, plan.places], plan.kind),
    lambda tensors, kind: Plan(kind, *tensors),
)
register_pytree_node(
    Media,
    lambda media: ([media.plan, media.latents, media.keys_values], media.observe),
    lambda parts, observe: Media(*parts, observe=observe),
)

NO_MEDIA = Media(Plan("none"))


def media_from_locations(
    latents: Float[Tensor, "batch scan latent width"],
    locations: Bool[Tensor, "batch text_before"] | None,
    text: int,
    *,
    immediate: bool,
    cached: bool,
) -> Media:
    """Media from upstream's arguments, for calling a block on its own.

    Args:
        latents: the scans.
        locations: True where a token is `<image>`; None (only with `cached`): every token sees every scan.
        text: number of tokens in this pass.
        immediate: see `make_plan`.
        cached: all tokens of this pass come after all of `locations`.

    Raises:
        UsageError: no locations, more `<image>` tokens than scans, or a number of tokens that differs from the text's.
    """
    batch, scans = latents.shape[:2]
    ordinal = torch.arange(1, scans + 1, device=latents.device).expand(batch, -1)
    if locations is None:
        if not cached:
            raise UsageError("media_locations is missing", hint="pass media_locations, or use_cached_media=True")
        return Media(make_plan(ordinal[:, -1:].expand(-1, text), ordinal, False), latents)
    if not cached and locations.shape[1] != text:
        raise UsageError(
            "media_locations does not fit the text", expected=f"{text} tokens", seen=str(locations.shape[1])
        )
    time = locations.long().cumsum(-1)
    check_count(time[:, -1], scans)
    time = time[:, -1:].expand(-1, text) if cached else time
    return Media(make_plan(time, ordinal, immediate), latents)


def check_count(images: Int[Tensor, " batch"], scans: int | Int[Tensor, " batch"], *, exact: bool = False) -> None:
    """Refuse rows whose numbers of `<image>` tokens and scans do not match.

    Args:
        images: `<image>` tokens of each row, the scans before this pass included.
        scans: scans of each row.
        exact: also refuse scans that no `<image>` token points at.

    Raises:
        UsageError: names the first such row.
    """
    have = torch.as_tensor(scans, device=images.device).expand(len(images))
    wrong = (images != have) if exact else (images > have)
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise UsageError(
            f"row {row} of the batch has {int(images[row])} <image> tokens and {int(have[row])} scans",
            expected="one <image> token per scan, in the same order",
            seen=f"<image> tokens per row {images.tolist()}, scans per row {have.tolist()}",
            hint="write <image> once per scan; mark padded scans False in scan_mask",
        )


# Layers of language models that do not pass keywords on (see `fusion.passes_media_keyword`) find the media here. It is
# set for one forward pass only, separately in each thread and task, and reset even if the pass raises.
_scope: ContextVar[Media | None] = ContextVar("neuroflamingo_media", default=None)


@contextmanager
def media_scope(media: Media) -> Iterator[None]:
    """Make `media` the current media of this thread for one forward pass."""
    token = _scope.set(media)
    try:
        yield
    finally:
        _scope.reset(token)


def current_media() -> Media | None:
    """Media of the forward pass that runs in this thread."""
    return _scope.get()
