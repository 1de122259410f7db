"""The training loss, and logits at the labelled places of each row only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

IGNORED = -100  # transformers' and torch's mark of a place without a label


@dataclass(frozen=True)
class Targets:
    """The token that each place of a text is to predict.

    Attributes:
        ids: the next token, `IGNORED` where nothing is learnt.
        weights: of each place in the loss's weighted mean; None: all 1.
    """

    ids: Int[Tensor, "*place"]
    weights: Float[Tensor, "*place"] | None = None

    @property
    def places(self) -> Int[Tensor, " label"]:
        """Where there is a label, counted over all rows."""
        return (self.ids.flatten() != IGNORED).nonzero()[:, 0]

    def at(self, places: Int[Tensor, " label"]) -> Targets:
        """The targets of some places."""
        weights = None if self.weights is None else self.weights.flatten()[places.to(self.weights.device)]
        return Targets(self.ids.flatten()[places], weights)


def next_tokens(
    labels: Int[Tensor, "batch text"],
    weights: Float[Tensor, "batch text"] | None = None,
    sequence_ids: Int[Tensor, "batch text"] | None = None,
) -> Targets:
    """Labels moved to the places that predict them; the last place of a row or of a packed sequence predicts nothing.

    Args:
        labels: `IGNORED` where there is none.
        weights: of each label.
        sequence_ids: which sequence of its row a token belongs to.
    """
    ids = pad(labels, (0, 1), value=IGNORED)[:, 1:]
    if sequence_ids is not None:
        last = sequence_ids != pad(sequence_ids, (0, 1))[:, 1:]
        ids = ids.masked_fill(last.to(ids.device), IGNORED)
    return Targets(ids, None if weights is None else pad(weights, (0, 1))[:, 1:])


def weighted_loss(
    logits: Float[Tensor, "*place vocab"],
    targets: Targets,
    *,
    total: int | Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of the targets, averaged over them (by weight, if there are weights); 0 if there is none.

    Args:
        logits: of each place of the targets.
        targets: see `next_tokens`.
        total: divide the sum by this instead (gradient accumulation).
        label_smoothing: share of the target that is spread evenly over the vocabulary.
    """
    ids = targets.ids.flatten().to(logits.device)
    losses = cross_entropy(
        logits.flatten(0, -2).float(), ids, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )
    weight = (ids != IGNORED).to(losses.dtype)
    if targets.weights is not None:
        weight = weight * targets.weights.flatten().to(weight)
    return (losses * weight).sum() / (total if total is not None else weight.sum().clamp(min=1e-9))


@dataclass
class _Gathering:
    places: Tensor
    done: bool = False


# Set only while one forward pass runs, separately in each thread, and reset even when the pass raises.
_gathering: ContextVar[_Gathering | None] = ContextVar("neuroflamingo_labelled_places", default=None)


def gather_before(head: nn.Module | None) -> None:
    """Let a language model's head compute logits at chosen places only, while `logits_at` says so.

    What a family does to its logits afterwards (caps, scales) it does to the chosen ones; no family needs code.
    """
    if head is not None:
        head.register_forward_pre_hook(_gather)


def _gather(head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    gathering = _gathering.get()
    if gathering is None or gathering.done:
        return None
    gathering.done = True
    return _chosen(given[0], gathering.places), *given[1:]


@contextmanager
def logits_at(places: Int[Tensor, " label"]) -> Iterator[_Gathering]:
    """For the forward pass of this thread: logits at these places, `[1, label, vocab]`."""
    gathering = _Gathering(places)
    token = _gathering.set(gathering)
    try:
        yield gathering
    finally:
        _gathering.reset(token)


def chosen_logits(logits: Tensor, gathering: _Gathering) -> Float[Tensor, "1 label vocab"]:
    """The logits at the places: what the head gave, or, of a language model without a head of its own, a part."""
    return logits if gathering.done else _chosen(logits, gathering.places)


def _chosen(x: Float[Tensor, "batch text width"], places: Tensor) -> Float[Tensor, "1 label width"]:
    return x.flatten(0, 1).index_select(0, places.to(x.device))[None]
