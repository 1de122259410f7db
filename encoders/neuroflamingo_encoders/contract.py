"""The module half of an encoder: `BrainEncoder` and what it gives. One encoder = one card + one module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from neuroflamingo_encoders.card import Cost, Demand, EncoderCard, OutputSpec, TokenGrid, Weights
from neuroflamingo_encoders.state_dict_fit import check_fit, not_allowed, own_names
from neuroflamingo_preprocessing.errors import ModelError, ScanError, UsageError
from neuroflamingo_preprocessing.spec import Axis, Parcellation, RepetitionTime, ScanSpec, Step

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

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
    x: Tensor = arguments[0]
    if x.is_floating_point() and not x.is_meta and not bool(x.isfinite().all()):
        raise ScanError(
            f"the batch for the encoder '{encoder.card.name}' holds numbers that are not finite",
            expected="finite numbers only",
            seen=f"{int((~x.isfinite()).sum()):,} of {x.numel():,} are NaN or infinite",
            hint="prepare the scan again, or fill what was not measured with the card's fill value",
        )


def _finite(tensor: Tensor) -> bool:
    return tensor.is_meta or not tensor.is_floating_point() or bool(tensor.isfinite().all())


class BrainEncoder(nn.Module):
    """Base of all encoders: prepared scans in, patch tokens out.

    A subclass takes its card as the only required constructor argument (or none, if it has one card) and implements
    `forward(x: [batch, scan, *card.scan.axes]) -> EncoderOutput`, deterministic in eval mode and independent of what
    else is in the batch. Shapes are checked against the card before `forward` runs, and NaN is refused.

    Two optional hooks serve the checks (`conformance`): `tiny` for encoders too large to check at full size, `example`
    for those whose input is not plain numbers. A small encoder needs neither.
    """

    known_deviations: ClassVar[Mapping[str, str]] = {}
    """Checks that this encoder is known to fail, with the reason; the checks name them and fail if they pass."""

    def __init__(self, card: EncoderCard) -> None:
        super().__init__()
        self.card = card
        self.frozen = False
        self.tiny_size = False  # made by `tiny`, for trials
        self.register_forward_pre_hook(_check_batch)

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """An instance that any CPU can check in seconds: same code, `card.shrunk(...)` sizes, side tables filled.

        By default the full size. Its weights are those of its initialisation; checks change them by a rule.
        """
        return cls(card)

    def example(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """A batch of this shape to run checks on; by default normal random numbers."""
        return torch.randn(tuple(shape), generator=generator)

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
            ModelError: keys or shapes differ, or numbers are not finite (exit 65). Nothing is loaded then.
        """
        state = {name: state[key] for name, key in own_names(self.card.weights, state).items()}
        own = self.state_dict()
        check_fit(self.card, {k: v.shape for k, v in own.items()}, {k: v.shape for k, v in state.items()})
        # A table that may be missing may also be there unfilled, which is all NaN.
        required = not_allowed(set(own) & set(state), self.card.weights.allow_missing)
        broken = [k for k in required if not _finite(state[k])]
        if broken:
            raise ModelError(
                f"the weights of the encoder '{self.card.name}' are not all finite",
                expected="numbers",
                seen=f"NaN or infinity in {len(broken)} tensors ({', '.join(broken[:3])})",
                hint="fetch or convert the file again",
                exit_code=65,
            )
        with torch.no_grad():
            self.load_state_dict({k: state[k] for k in own if k in state}, strict=False)
        return self


def weights_digest(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's weights and tables, by sorted name: whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
