"""The module half of an encoder: `BrainEncoder` and what it gives. One encoder = one card + one module."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, TokenGrid, Weights
from neuroflamingo_preprocessing.errors import ModelError, UsageError
from neuroflamingo_preprocessing.spec import Axis, Parcellation, RepetitionTime, ScanSpec, Step

__all__ = [
    "Axis",
    "BrainEncoder",
    "Cost",
    "Demand",
    "EncoderCard",
    "EncoderOutput",
    "OutputSpec",
    "Parcellation",
    "RepetitionTime",
    "ScanSpec",
    "Step",
    "TokenGrid",
    "Weights",
]


class EncoderOutput(NamedTuple):
    """Patch tokens of a batch of scans.

    Attributes:
        tokens: `[batch, scan, token, width]`.
        mask: True where a token is real, None if all are.
        positions: world position of each token (RAS, template mm), None where tokens have no place.
    """

    tokens: Float[Tensor, "batch scan token width"]
    mask: Bool[Tensor, "batch scan token"] | None = None
    positions: Float[Tensor, "token 3"] | None = None


def _check_batch(encoder: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Forward pre-hook: refuse a batch that the card does not describe, before any layer sees it."""
    assert isinstance(encoder, BrainEncoder)
    shape = tuple(arguments[0].shape) if arguments else ()
    if len(shape) < 2 or not encoder.card.scan.accepts(shape[2:]):
        raise UsageError(
            f"the batch does not fit the encoder '{encoder.card.name}'",
            expected=f"batch, scan, then {encoder.card.scan.describe()}",
            seen=f"shape {list(shape)}",
            hint="prepare the scan with this encoder's card.scan",
        )


def _not_allowed(keys: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    """Keys that no pattern of the card lets pass, sorted."""
    return sorted(key for key in keys if not any(fnmatchcase(key, pattern) for pattern in patterns))


class BrainEncoder(nn.Module):
    """Base of all encoders: prepared scans in, patch tokens out.

    A subclass takes its card as the only required constructor argument (or none, if it has one card) and implements
    `forward(x: [batch, scan, *card.scan.axes]) -> EncoderOutput`, deterministic in eval mode and independent of what
    else is in the batch. Shapes are checked against the card before `forward` runs.
    """

    def __init__(self, card: EncoderCard) -> None:
        super().__init__()
        self.card = card
        self.frozen = False
        self.register_forward_pre_hook(_check_batch)

    def forward(self, x: Float[Tensor, "batch scan *axes"]) -> EncoderOutput:
        """Encode a batch; see the class."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")

    def freeze(self) -> Self:
        """Stop all gradients and stay in eval mode, whatever the parent's mode is."""
        self.requires_grad_(False)
        self.frozen = True
        return self.train(False)

    def unfreeze(self) -> Self:
        """Open the parts that the card declares trainable (all, if it names none)."""
        prefixes = self.card.trainable
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not prefixes or name.startswith(prefixes))
        self.frozen = False
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen encoder stays in eval mode, so that no dropout or running statistic moves."""
        return super().train(mode and not self.frozen)

    def load_weights(self, state: dict[str, Tensor]) -> Self:
        """Load a state dict by the card's key rules; any other missing or left-over key is an error.

        Raises:
            ModelError: keys or shapes differ (exit 65).
        """
        rules = self.card.weights
        for prefix in rules.strip_prefixes:
            state = {key.removeprefix(prefix): value for key, value in state.items()}
        own = self.state_dict()
        missing = _not_allowed(set(own) - set(state), rules.allow_missing)
        unexpected = _not_allowed(set(state) - set(own), rules.allow_unexpected)
        shapes = sorted(
            f"{k}: {list(state[k].shape)}, not {list(own[k].shape)}"
            for k in set(own) & set(state)
            if own[k].shape != state[k].shape
        )
        if missing or unexpected or shapes:
            faults = [("missing", missing), ("unexpected", unexpected), ("other shape", shapes)]
            raise ModelError(
                f"the weights do not fit the encoder '{self.card.name}'",
                expected=f"{len(own)} tensors by this encoder's names and shapes",
                seen="; ".join(f"{len(keys)} {word} ({', '.join(keys[:3])})" for word, keys in faults if keys),
                hint="check that the file belongs to this encoder and version",
                exit_code=65,
            )
        with torch.no_grad():
            self.load_state_dict({k: state[k] for k in own if k in state}, strict=False)
        return self
