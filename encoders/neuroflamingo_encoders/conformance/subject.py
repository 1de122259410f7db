"""`Subject`: the encoder under test, with fresh instances and example inputs for the checks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neuroflamingo_encoders.card import EncoderCard
from neuroflamingo_encoders.contract import BrainEncoder, EncoderOutput
from neuroflamingo_encoders.registry import encoder_card, load_dotted
from neuroflamingo_preprocessing.errors import ModelError, UsageError

if TYPE_CHECKING:
    from neuroflamingo_preprocessing.spec import Axis

Source = str | type[BrainEncoder] | Callable[[], BrainEncoder]

NUDGE = 0.1
"""Size of the change of weights from their initialisation, divided by the root of their number of inputs. Without it,
layers that start at zero would hide faults."""
LARGEST_INPUT = 1 << 22
"""Largest input of a check, in numbers; larger allowed inputs are left to the full-size check."""


class Failure(Exception):
    """Failure of a check: the encoder breaks the contract, as the message says."""


class NotApplicable(Exception):
    """A check does not apply to this encoder, as the message says."""


@dataclass(frozen=True)
class Check:
    """Named check: `run` returns what it saw in words, or raises `Failure` or `NotApplicable`."""

    name: str
    group: int
    run: Callable[[Subject], str | None]


class Subject:
    """Encoder under test.

    Attributes:
        type: class of the encoder.
        full_card: its card as published.
        card: card of the instances that are checked (smaller if the class has a `tiny`).
        fixtures: folder of golden cases, or None.
    """

    def __init__(self, build: Callable[[], BrainEncoder], full_card: EncoderCard | None, fixtures: Path | None) -> None:
        self._build, self.fixtures = build, fixtures
        first = self.fresh()
        self.type = type(first)
        self.card = first.card
        self.full_card = full_card or first.card
        self._first = first.freeze()
        self._tokens: Tensor | None = None

    @classmethod
    def of(cls, source: Source, fixtures: str | Path | None = None) -> Subject:
        """Subject for a registered name, `package.module:Class`, a class, or a function that builds an instance.

        Raises:
            ModelError: it cannot be imported or has no card.
            UsageError: it is not an encoder, or its card cannot be found.
        """
        folder = None if fixtures is None else Path(fixtures)
        if isinstance(source, str):
            if ":" not in source:
                card = encoder_card(source)
                encoder = _encoder_class(load_dotted(source, card.implementation), card.implementation)
                return cls(lambda: encoder.tiny(card), card, folder)
            source = _encoder_class(load_dotted(source, source), source)
        if isinstance(source, type):
            encoder, card = _encoder_class(source, source.__name__), _card_of(source)
            return cls(lambda: encoder.tiny(card), card, folder)
        return cls(source, None, folder)

    def describe(self) -> str:
        """Description of the checked instance, in one line."""
        count = sum(p.numel() for p in self._first.parameters())
        size = "full size" if self.card == self.full_card else "tiny instance"
        return f"{self.full_card.name} {self.full_card.version}, {size}: {self.card.scan.describe()}, {count:,} weights"

    def fresh(self, seed: int = 0) -> BrainEncoder:
        """Build a new instance in eval mode, neither frozen nor loaded; equal weights for equal seeds."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = self._built()
        if not isinstance(encoder, BrainEncoder):
            raise UsageError(
                "what was built is not an encoder",
                expected="a subclass of neuroflamingo_encoders.contract.BrainEncoder",
                seen=type(encoder).__name__,
            )
        perturb_weights(encoder, seed)
        return encoder.train(False)

    def _built(self) -> BrainEncoder:
        try:
            return self._build()
        except ModelError as failure:
            if failure.exit_code != ModelError.exit_code:
                raise
            raise NotApplicable(f"a requirement is not installed: {failure.what} ({failure.hint})") from failure

    def frozen(self) -> BrainEncoder:
        """Copy of the frozen instance, for checks that modify it."""
        return copy.deepcopy(self._first)

    def sizes(self, largest: bool = False) -> tuple[int, ...]:
        """Sizes of the smallest allowed input, or of the largest (a little above the smallest if there is no limit)."""
        return tuple(_size(axis, largest) for axis in self.card.scan.axes)

    def input(self, batch: int = 1, scans: int = 1, seed: int = 0, sizes: Sequence[int] | None = None) -> Tensor:
        """Example scans `[batch, scan, *axes]`, equal for equal seeds; each scan is independent of their number."""
        sizes = tuple(sizes or self.sizes())
        rows = []
        for number in range(batch * scans):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            rows.append(self._first.example((1, 1, *sizes), generator))
        return torch.cat(rows).reshape(batch, scans, *sizes)

    def encode(self, x: Tensor, encoder: BrainEncoder | None = None) -> EncoderOutput:
        """Encode without gradients, by the common frozen instance or another one, and check the type of the output."""
        with torch.no_grad():
            output = (encoder or self._first)(x)
        if not isinstance(output, EncoderOutput):
            raise Failure(f"forward gives {type(output).__name__}, not EncoderOutput")
        if output.tokens.ndim != 4:
            raise Failure(f"tokens have the shape {list(output.tokens.shape)}, not [batch, scan, token, width]")
        return output

    def large_sizes(self) -> tuple[int, ...]:
        """Sizes of the largest allowed input, or of the smallest if that is too large for a check."""
        largest = self.sizes(largest=True)
        return largest if math.prod(largest) <= LARGEST_INPUT else self.sizes()

    def tokens(self) -> Tensor:
        """Tokens of the example of `large_sizes` size, `[1, 1, token, width]`, computed once."""
        if self._tokens is None:
            self._tokens = self.encode(self.input(sizes=self.large_sizes())).tokens
        return self._tokens


def _encoder_class(found: object, name: str) -> type[BrainEncoder]:
    if not (isinstance(found, type) and issubclass(found, BrainEncoder)):
        raise UsageError(
            f"{name} is not an encoder",
            expected="a subclass of neuroflamingo_encoders.contract.BrainEncoder",
            seen=found.__name__ if isinstance(found, type) else type(found).__name__,
        )
    return found


def _card_of(encoder: type[BrainEncoder]) -> EncoderCard:
    """Card in the module of a class that names the class, else the one that it takes by default."""
    module = import_module(encoder.__module__)
    dotted = f"{encoder.__module__}:{encoder.__name__}"
    cards = [c for c in vars(module).values() if isinstance(c, EncoderCard) and c.implementation == dotted]
    if len({card.digest for card in cards}) == 1:
        return cards[0]
    try:
        return encoder().card  # type: ignore[call-arg]
    except TypeError as error:
        raise UsageError(
            f"the card of {dotted} cannot be found",
            expected="one EncoderCard in its module that names it, or a constructor without arguments",
            seen=f"{len(cards)} cards",
            hint="check it by its registered name, or pass a function that builds it",
        ) from error


def _size(axis: Axis, largest: bool) -> int:
    if axis.size is not None:
        return axis.size
    step = axis.multiple_of or 1
    smallest = math.ceil((axis.minimum or 1) / step) * step
    if not largest:
        return smallest
    return axis.maximum // step * step if axis.maximum is not None else smallest + 2 * step


@torch.no_grad()
def perturb_weights(module: nn.Module, seed: int = 0) -> None:
    """Change every weight a little, by a rule of its name and index, so that weights initialised to zero matter."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or not parameter.is_floating_point() or parameter.is_meta:
            continue  # fixed tables stay as they are
        index = torch.arange(parameter.numel(), dtype=torch.float64)
        wave = torch.sin(index * index * 0.7071 + sum(map(ord, name)) % 97 + seed).reshape(parameter.shape)
        inputs = parameter.numel() // len(parameter) if parameter.ndim > 1 else 1
        parameter += NUDGE / math.sqrt(inputs) * wave.to(parameter)
