"""Training loss, and logits restricted to labelled positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

IGNORED = -100  # label of positions without a label, in transformers and torch


@dataclass(frozen=True)
class Targets:
    """Target token of each position of a text.

    Attributes:
        ids: id of the next token, `IGNORED` where nothing is learnt.
        weights: weight of each position in the loss; None: all 1.
    """

    ids: Int[Tensor, "*position"]
    weights: Float[Tensor, "*position"] | None = None

    @property
    def positions(self) -> Int[Tensor, " label"]:
        """Indices of labelled positions, counted over all rows."""
        return (self.ids.flatten() != IGNORED).nonzero()[:, 0]

    def at(self, positions: Int[Tensor, " label"]) -> Targets:
        """Select the targets of some positions."""
        weights = None if self.weights is None else self.weights.flatten()[positions.to(self.weights.device)]
        return Targets(self.ids.flatten()[positions], weights)


def next_tokens(
    labels: Int[Tensor, "batch text"],
    weights: Float[Tensor, "batch text"] | None = None,
    sequence_ids: Int[Tensor, "batch text"] | None = None,
) -> Targets:
    """Shift labels to the positions that predict them; the last position of a row or packed sequence predicts nothing.

    Args:
        labels: token ids, `IGNORED` where there is no label.
        weights: weight of each label.
        sequence_ids: sequence of its row that each token belongs to.
    """
    ids = pad(labels, (0, 1), value=IGNORED)[:, 1:]
    if sequence_ids is not None:
        last = sequence_ids != pad(sequence_ids, (0, 1))[:, 1:]
        ids = ids.masked_fill(last.to(ids.device), IGNORED)
    return Targets(ids, None if weights is None else pad(weights, (0, 1))[:, 1:])


def weighted_loss(
    logits: Float[Tensor, "*position vocab"],
    targets: Targets,
    *,
    total: int | Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the targets, weighted if there are weights; 0 if there are no targets.

    Args:
        logits: logits at each position of the targets.
        targets: see `next_tokens`.
        total: divide the sum by this instead (gradient accumulation).
        label_smoothing: share of each target that is spread evenly over the vocabulary.
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
class Gathering:
    """A restriction of the logits to some positions.

    Attributes:
        positions: counted over all rows.
        hidden: the head's whole input, once it was called.
    """

    positions: Int[Tensor, " label"]
    hidden: Float[Tensor, "batch text width"] | None = None


# Set for one forward pass only, separately in each thread, and reset even if the pass raises.
_gathering: ContextVar[Gathering | None] = ContextVar("neuroflamingo_labelled_places", default=None)


def gather_before(head: nn.Module | None) -> None:
    """Make a language model's head compute logits at the positions of `logits_at` only, while that context is open.

    Whatever a family does to its logits afterwards (caps, scales) applies to these; no family needs code of its own.
    """
    if head is not None:
        head.register_forward_pre_hook(_gather)


def _gather(head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    gathering = _gathering.get()
    if gathering is None or gathering.hidden is not None:
        return None
    gathering.hidden = given[0]
    return _chosen(given[0], gathering.positions), *given[1:]


@contextmanager
def logits_at(positions: Int[Tensor, " label"]) -> Iterator[Gathering]:
    """Restrict the logits of this thread's forward pass to some positions, `[1, label, vocab]`."""
    gathering = Gathering(positions)
    token = _gathering.set(gathering)
    try:
        yield gathering
    finally:
        _gathering.reset(token)


def chosen_logits(logits: Tensor, gathering: Gathering) -> Float[Tensor, "1 label vocab"]:
    """Logits at the positions: the head's output, or a selection of it for language models without a separate head."""
    return _chosen(logits, gathering.positions) if gathering.hidden is None else logits


def _chosen(x: Float[Tensor, "batch text width"], positions: Tensor) -> Float[Tensor, "1 label width"]:
    return x.flatten(0, 1).index_select(0, positions.to(x.device))[None]
