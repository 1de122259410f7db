"""`BrainEncoder`: the module half of an encoder, and its output. One encoder = one card + one module."""

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
        mask: `[batch, scan, token]`, True where a token is real; None if all are.
        positions: `[token, 3]`, world position of each token (RAS, template mm); None where tokens have no position.

    Example:
        >>> import torch
        >>> output = EncoderOutput(torch.zeros(2, 1, 252, 384))
        >>> output.tokens.shape, output.mask is None, output.positions is None
        (torch.Size([2, 1, 252, 384]), True, True)
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
            hint="prepare the scan again, or replace missing values by the card's fill value",
        )


def _finite(tensor: Tensor) -> bool:
    return tensor.is_meta or not tensor.is_floating_point() or bool(tensor.isfinite().all())


class BrainEncoder(nn.Module):
    """Base class of all encoders: prepared scans in, patch tokens out.

    A subclass takes its card as the only required constructor argument (or none, if it has one card) and implements
    `forward(x: [batch, scan, *card.scan.axes]) -> EncoderOutput`, deterministic in eval mode and independent of the
    rest of the batch. Shapes are checked against the card before `forward` runs, and NaN is refused.

    Two optional hooks serve the conformance checks: `tiny` for encoders too large to check at full size, `example` for
    encoders whose input is not floating-point numbers. A small encoder needs neither.

    Example:
        >>> import torch
        >>> from neuroflamingo_encoders.build import build_encoder
        >>> encoder = build_encoder("vit3d", tiny=True)
        >>> sizes = [axis.size for axis in encoder.card.scan.axes]
        >>> tokens, mask, positions = encoder(torch.randn(2, 1, *sizes))
        >>> tokens.shape[:2], tokens.shape[3] == encoder.card.output.width
        (torch.Size([2, 1]), True)
        >>> any(parameter.requires_grad for parameter in encoder.parameters())
        False
    """

    known_deviations: ClassVar[Mapping[str, str]] = {}
    """Conformance checks that this encoder is known to fail, with the reason; such a check is reported as an expected
    failure, and fails if it passes."""

    def __init__(self, card: EncoderCard) -> None:
        super().__init__()
        self.card = card
        self.frozen = False
        self.tiny_size = False  # made by `tiny`, for trials
        self.register_forward_pre_hook(_check_batch)

    @classmethod
    def tiny(cls, card: EncoderCard) -> Self:
        """Build a small instance for checks on a CPU: same code, sizes by `card.shrunk(...)`, side tables filled.

        The full size by default. Its weights are those of its initialisation.
        """
        return cls(card)

    def example(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Example batch of a shape, for checks; normal random numbers by default."""
        return torch.randn(tuple(shape), generator=generator)

    def forward(self, x: Float[Tensor, "batch scan *axes"]) -> EncoderOutput:
        """Encode a batch; see the class."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")

    def freeze(self) -> Self:
        """Turn off all gradients and stay in eval mode, whatever the mode of the parent module."""
        self.requires_grad_(False)
        self.frozen = True
        return self.train(False)

    def unfreeze(self) -> Self:
        """Turn on gradients for the parts that the card declares trainable (all, if it names none)."""
        prefixes = self.card.trainable
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not prefixes or name.startswith(prefixes))
        self.frozen = False
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen encoder stays in eval mode, so that dropout and running statistics stay off."""
        return super().train(mode and not self.frozen)

    def load_weights(self, state: dict[str, Tensor]) -> Self:
        """Load a state dict by the key rules of the card; any other missing or unexpected key is an error.

        Raises:
            ModelError: other keys or shapes, or numbers that are not finite (exit 65). Nothing is loaded then.
        """
        state = {name: state[key] for name, key in own_names(self.card.weights, state).items()}
        own = self.state_dict()
        check_fit(self.card, {k: v.shape for k, v in own.items()}, {k: v.shape for k, v in state.items()})
        # A table that may be missing may also be present but unfilled, which means all NaN.
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
    """SHA-256 of an encoder's weights and tables, sorted by name; independent of the file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
