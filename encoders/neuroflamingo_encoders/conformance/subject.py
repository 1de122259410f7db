"""What the checks are run on: how instances are built again and again, their inputs, and how they are asked."""

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
"""How far weights are moved from their initialisation, by the root of their inputs: nothing hides behind zeros."""
LARGEST_INPUT = 1 << 22
"""Numbers of an input that a check may make; larger allowed inputs are left to the full-size check."""


class Failed(Exception):
    """The encoder breaks the contract; the message says how."""


class NotApplicable(Exception):
    """The check has nothing to say about this encoder; the message says why."""


@dataclass(frozen=True)
class Check:
    """A named check: `run` returns what it saw, or raises `Failed` or `NotApplicable`."""

    name: str
    group: int
    run: Callable[[Subject], str | None]


class Subject:
    """An encoder under examination.

    Attributes:
        type: the encoder's class.
        full_card: its card as published.
        card: the card of the instances that are checked (smaller where the class has a `tiny`).
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
        """From a registered name, `package.module:Class`, a class, or a function that builds an instance.

        Raises:
            ModelError: it cannot be imported or has no card.
            UsageError: it is no encoder, or its card cannot be found.
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
        """What is checked, in one line."""
        count = sum(p.numel() for p in self._first.parameters())
        size = "full size" if self.card == self.full_card else "tiny instance"
        return f"{self.full_card.name} {self.full_card.version}, {size}: {self.card.scan.describe()}, {count:,} weights"

    def fresh(self, seed: int = 0) -> BrainEncoder:
        """A new instance in eval mode, neither frozen nor loaded; the same weights for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = self._built()
        if not isinstance(encoder, BrainEncoder):
            raise UsageError(
                "what was built is not an encoder",
                expected="a subclass of neuroflamingo_encoders.contract.BrainEncoder",
                seen=type(encoder).__name__,
            )
        nudge(encoder, seed)
        return encoder.train(False)

    def _built(self) -> BrainEncoder:
        try:
            return self._build()
        except ModelError as failure:
            if failure.exit_code != ModelError.exit_code:
                raise
            raise NotApplicable(f"what it needs is not installed: {failure.what} ({failure.hint})") from failure

    def frozen(self) -> BrainEncoder:
        """A frozen instance of its own, with the weights of all others: for checks that change what they check."""
        return copy.deepcopy(self._first)

    def sizes(self, largest: bool = False) -> tuple[int, ...]:
        """The smallest allowed input, or the largest (an open end is taken a little above the smallest)."""
        return tuple(_size(axis, largest) for axis in self.card.scan.axes)

    def input(self, batch: int = 1, scans: int = 1, seed: int = 0, sizes: Sequence[int] | None = None) -> Tensor:
        """Example scans `[batch, scan, *axes]`: the same for the same seed, row by row independent of their number."""
        sizes = tuple(sizes or self.sizes())
        rows = []
        for number in range(batch * scans):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            rows.append(self._first.example((1, 1, *sizes), generator))
        return torch.cat(rows).reshape(batch, scans, *sizes)

    def encode(self, x: Tensor, encoder: BrainEncoder | None = None) -> EncoderOutput:
        """Tokens without gradients, of the common frozen instance unless another is given; what it gives is checked."""
        with torch.no_grad():
            output = (encoder or self._first)(x)
        if not isinstance(output, EncoderOutput):
            raise Failed(f"forward gives {type(output).__name__}, not EncoderOutput")
        if output.tokens.ndim != 4:
            raise Failed(f"tokens have the shape {list(output.tokens.shape)}, not [batch, scan, token, width]")
        return output

    def roomy(self) -> tuple[int, ...]:
        """The largest allowed input, or the smallest where that is too much for a check."""
        largest = self.sizes(largest=True)
        return largest if math.prod(largest) <= LARGEST_INPUT else self.sizes()

    def tokens(self) -> Tensor:
        """Tokens of the example of `roomy` size, `[1, 1, token, width]`, computed once."""
        if self._tokens is None:
            self._tokens = self.encode(self.input(sizes=self.roomy())).tokens
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
    """The card in the class's module that names the class, else the one the class takes by default."""
    module = import_module(encoder.__module__)
    dotted = f"{encoder.__module__}:{encoder.__name__}"
    cards = [c for c in vars(module).values() if isinstance(c, EncoderCard) and c.implementation == dotted]
    if len({card.digest for card in cards}) == 1:
        return cards[0]
    try:
        return encoder().card  # type: ignore[call-arg]
    except TypeError as error:
        raise UsageError(
            f"which card {dotted} goes with cannot be found",
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
def nudge(module: nn.Module, seed: int = 0) -> None:
    """Move every weight a little by a rule of its name and place, so that those that begin at zero count too."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or not parameter.is_floating_point() or parameter.is_meta:
            continue  # fixed tables stay as they are
        index = torch.arange(parameter.numel(), dtype=torch.float64)
        wave = torch.sin(index * index * 0.7071 + sum(map(ord, name)) % 97 + seed).reshape(parameter.shape)
        inputs = parameter.numel() // len(parameter) if parameter.ndim > 1 else 1
        parameter += NUDGE / math.sqrt(inputs) * wave.to(parameter)
