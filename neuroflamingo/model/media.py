"""`Media`: what every token of a text may look at. It travels as an argument, so a layer never holds a scan."""

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
    """How the attention of one forward pass is computed; it depends on the token ids only, so all layers share it.

    Attributes:
        kind: `none`: no token sees a scan; `one`: all tokens of a row see the same single scan; `all`: every token
            sees every scan; `masked`: scores against all scans, the forbidden ones masked; `segments`: tokens are
            regrouped by the scan that they see, so that only allowed scores are computed.
        visible: `[batch, text]`, True where a token sees a scan; None where all do.
        scan: for `one`, `[batch]`, which scan a row sees; None where there is only one.
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
        """What this plan scores, out of the projections of all scans: a group per row, or per scan in `segments`."""
        if self.kind == "one":
            if self.scan is None:
                return packed[:, 0]
            return packed[torch.arange(len(packed), device=packed.device), self.scan]
        if self.kind == "segments":
            return packed.flatten(0, 1)
        return packed.flatten(1, 2)

    def mask(self, latents: int) -> Bool[Tensor, "batch 1 text key"] | None:
        """True where a token may look at a key; None where nothing has to be masked."""
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
    """The number of the scan that each token looks at, from 1; 0 for none.

    Args:
        images: True where a token is `<image>`.
        rule: `previous`: the latest scan so far; `next`: `<image>` sees its own scan, any other token the scan that the
            next `<image>` of this text stands for, and text after the last `<image>` sees none.
        before: `<image>` tokens of each row before this chunk of its text.
        closed: for packed rows, how many `<image>` tokens the row has up to the end of each token's own sequence.

    Source:
        `next` is what OpenFlamingo v1 and Multimodal-GPT do where they do not attend to the previous image.
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
    """Choose the cheapest way to compute exactly the allowed scores.

    Args:
        time: the number of the scan that each token looks at, see `media_time`.
        ordinal: which `<image>` of its row each scan belongs to, from 1; 0 for a padded slot.
        immediate: a token sees that scan only, else every scan up to it.
        earlier: for packed rows, how many `<image>` tokens the sequences before each token's own have.

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
    """Which scans each token may look at; arguments as in `make_plan`."""
    now, opened = time[:, :, None], ordinal[:, None, :]
    first = 0 if earlier is None else earlier[:, :, None]
    return (now == opened if immediate else now >= opened) & (opened > first)


def masked_plan(allowed: Bool[Tensor, "batch text scan"]) -> Plan:
    """The plan that scores everything and masks what is forbidden: always right, never the cheapest."""
    seen = allowed.any(-1)
    # A row of scores with nothing allowed would be 0/0: such rows see everything here and are emptied afterwards.
    return Plan("masked", None if bool(seen.all()) else seen, allowed=(allowed | ~seen[..., None])[:, None])


def _segments(allowed: Bool[Tensor, "batch text scan"], visible: Bool[Tensor, "batch text"] | None) -> Plan | None:
    """Group the text by the scan that it sees, if that computes clearly fewer scores than masking does."""
    text, scans = allowed.shape[1:]
    longest = int(allowed.sum(1).max())
    if scans * longest > 0.75 * text * scans:
        return None
    rank = allowed.cumsum(1) - 1  # the how-manieth token of its scan a token is
    group = allowed.int().argmax(-1)
    within = rank.gather(-1, group[..., None])[..., 0].clamp(min=0)
    places = group * longest + within
    seen = allowed.any(-1)
    row = torch.arange(len(allowed), device=allowed.device)[:, None]
    position = row * text + torch.arange(text, device=allowed.device)
    # Tokens that see nothing go to an extra slot, which is cut off; empty slots repeat token 0 and are never read.
    target = torch.where(seen, places, scans * longest)
    slots = position.new_zeros(len(allowed), scans * longest + 1).scatter(1, target, position)[:, :-1]
    places = places + row * scans * longest
    return Plan("segments", visible, slots=slots.unflatten(1, (scans, longest)), places=places)


@dataclass(frozen=True)
class Media:
    """The scans of a batch, as the gated blocks take them.

    Attributes:
        plan: which token may look where.
        latents: the resampler's output, `[batch, scan, latent, width]`; keys and values are projected from it in
            each block (training). None where `keys_values` has them all.
        keys_values: by layer, ready to be scored (generation).
        observe: is told, by layer, the hidden states that look at the scans (`model.attention_rollout`).
    """

    plan: Plan
    latents: Float[Tensor, "batch scan latent width"] | None = None
    keys_values: dict[int, KeysValues] | None = None
    observe: Callable[[int | None, Tensor], None] | None = None

    @property
    def sees_nothing(self) -> bool:
        """True if no token of this pass may look at any scan."""
        return self.plan.kind == "none"

    def with_latents(self, latents: Tensor | None) -> Media:
        """The same media with other latents: a checkpointed block takes them as an explicit argument."""
        return replace(self, latents=latents)


# Whoever looks for tensors among a layer's arguments (FSDP's hooks, moves between devices) has to find those of the
# media: FSDP gathers a block's weights for its backward pass when the gradient of one of the arguments is asked for.
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

NOTHING = Media(Plan("none"))


def media_from_locations(
    latents: Float[Tensor, "batch scan latent width"],
    locations: Bool[Tensor, "batch text_before"] | None,
    text: int,
    *,
    immediate: bool,
    cached: bool,
) -> Media:
    """Media in the terms of upstream's blocks, for calling a block by itself.

    Args:
        latents: the scans.
        locations: True where a token is `<image>`; None (only with `cached`): every token sees every scan.
        text: number of tokens in this pass.
        immediate: see `make_plan`.
        cached: all tokens of this pass come after all of `locations`.

    Raises:
        UsageError: no locations, more `<image>` tokens than scans, or another number of tokens than in the text.
    """
    batch, scans = latents.shape[:2]
    ordinal = torch.arange(1, scans + 1, device=latents.device).expand(batch, -1)
    if locations is None:
        if not cached:
            raise UsageError("media locations are missing", hint="pass media_locations, or use_cached_media=True")
        return Media(make_plan(ordinal[:, -1:].expand(-1, text), ordinal, False), latents)
    if not cached and locations.shape[1] != text:
        raise UsageError("media locations do not fit the text", expected=f"{text} tokens", seen=str(locations.shape[1]))
    time = locations.long().cumsum(-1)
    check_count(time[:, -1], scans)
    time = time[:, -1:].expand(-1, text) if cached else time
    return Media(make_plan(time, ordinal, immediate), latents)


def check_count(images: Int[Tensor, " batch"], scans: int | Int[Tensor, " batch"], *, exact: bool = False) -> None:
    """Refuse rows whose `<image>` tokens and scans do not fit each other.

    Args:
        images: `<image>` tokens of each row, the scans before this pass included.
        scans: scans of each row.
        exact: also refuse scans that no `<image>` token points at.

    Raises:
        UsageError: names the first row that is wrong.
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


# Language models that do not hand keywords on to their layers (see language.takes_keyword) find the media here. It is
# set only while one forward pass runs, separately in each thread and task, and reset even when the pass raises.
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
    """The media of the forward pass that runs in this thread."""
    return _scope.get()
